"""Convert COCO-Stuff's label maps from its 182 ids to the 171 training classes.

    python -m seg2any.evaluation.labels.convert_coco_stuff164k data/coco_stuff --out_dir data/coco_stuff --nproc 8

reads COCO_PATH/stuffthingmaps/{train,val}2017/NAME.png, whichever of the two is there, and writes
OUT_DIR/annotations/{train,val}2017/NAME_labelTrainIds.png: the rank among the ids in use, 255 where unlabelled. An id
that COCO-Stuff does not have is an error. Started again, it resumes where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from seg2any.system.arguments import Parser
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command

SPLITS = ("train2017", "val2017")


def convert(coco_path: Path, out_dir: Path, processes: int) -> str:
    """Convert both splits and return a message for the user. Raises UserError."""
    from seg2any.evaluation.labels.label_maps import ClassTable, Conversion, convert_folder, label_files

    maps = coco_path / "stuffthingmaps"
    splits = [split for split in SPLITS if (maps / split).is_dir()]
    if not splits:
        raise UserError(
            f"{maps}: folder {' or '.join(SPLITS)} is missing; unpack stuffthingmaps_trainval2017.zip there"
        )
    pairs = [
        (path, out_dir / "annotations" / split / f"{path.stem}_labelTrainIds.png")
        for split in splits
        for path in label_files(maps / split)
    ]
    made = convert_folder(pairs, Conversion(ClassTable.of("coco_stuff")), processes)
    return f"{made} label maps converted, {len(pairs) - made} were there already: {out_dir / 'annotations'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0 done, 2 wrong input, 130 interrupted."""
    parser = Parser(
        prog="python -m seg2any.evaluation.labels.convert_coco_stuff164k",
        description=__doc__,
    )
    parser.add_argument("coco_path", type=user_path, help="folder that holds stuffthingmaps/")
    parser.add_argument("-o", "--out_dir", type=user_path, help="default: COCO_PATH")
    parser.add_argument("--nproc", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    target = options.out_dir or options.coco_path
    return exit_status(
        "convert_coco_stuff164k",
        lambda: print(convert(options.coco_path, target, max(1, options.nproc))),
    )


if __name__ == "__main__":
    run_command(main)
