"""Train Seg2Any's adapters: train.py CONFIG.yaml ... --section.key=value ...

    python train.py config/seg2any_shapes.yaml --project.output_dir=runs/try --trainer.max_train_steps=100
    python train.py config/seg2any_shapes.yaml --resume_from_checkpoint latest
    python train.py config/seg2any_shapes.yaml --dry_run

All keys with their defaults are in seg2any/config.py.
"""

from __future__ import annotations

import sys

from seg2any import config
from seg2any.errors import UserError


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    try:
        settings = config.load(arguments)
        from seg2any.training.trainer import Trainer  # late: a typing mistake is reported before torch is loaded

        trainer = Trainer(settings)
        if settings.dry_run:
            print(trainer.describe())
        else:
            trainer.fit()
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
