"""Make the images of a benchmark, under the published name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started as a file, as published

from seg2any.evaluation.generate_image import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
