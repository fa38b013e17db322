"""Generate the images of a benchmark; keep the published script's name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds only modules in its own folder

from seg2any.evaluation.generate_image import main  # noqa: E402
from seg2any.system.interrupts import run_command  # noqa: E402

if __name__ == "__main__":
    run_command(main)
