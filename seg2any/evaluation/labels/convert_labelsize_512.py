"""Stretch label maps to the generated images' size, 512 x 512, without inventing classes.

    python -m seg2any.evaluation.labels.convert_labelsize_512 \\
        --input_path data/ADEChallengeData2016/annotations/validation \\
        --output_path data/ADEChallengeData2016/annotations/validation_512

Pillow's NEAREST, values unchanged. With --data_set, an id that the data set does not have is an error. Started again,
it resumes where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seg2any.system.arguments import Parser
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command

if TYPE_CHECKING:
    from seg2any.evaluation.labels.label_maps import ClassTable


def known_values(data_set: str) -> ClassTable:
    """Build a table that keeps the values of a data set and refuses all others."""
    import numpy as np

    from seg2any.evaluation.labels.label_maps import ClassTable

    table = ClassTable.of(data_set)
    known = table.classes >= 0
    return ClassTable(data_set, np.where(known, np.arange(256), table.classes).astype(np.int16), table.names)


def convert(source: Path, target: Path, size: int, data_set: str | None, processes: int) -> str:
    """Convert a folder and return a message for the user. Raises UserError."""
    from seg2any.evaluation.labels.label_maps import Conversion, convert_folder, label_files

    if source.resolve() == target.resolve():
        raise UserError(f"--output_path {target}: the label maps lie there; choose another folder")
    pairs = [(path, target / path.name) for path in label_files(source)]
    table = None if data_set is None else known_values(data_set)
    made = convert_folder(pairs, Conversion(table, (size, size)), processes)
    return f"{made} label maps converted, {len(pairs) - made} were there already: {target}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0 done, 2 wrong input, 130 interrupted."""
    parser = Parser(
        prog="python -m seg2any.evaluation.labels.convert_labelsize_512",
        description=__doc__,
    )
    parser.add_argument("--input_path", type=user_path, required=True, help="folder of label maps")
    parser.add_argument("--output_path", type=user_path, required=True, help="folder for the converted ones")
    parser.add_argument("--size", type=int, default=512, help="both sides in pixels (default: %(default)s)")
    parser.add_argument(
        "--data_set", choices=("ade20k", "coco_stuff"), help="check the ids against this data set (default: no check)"
    )
    parser.add_argument("--nproc", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.size < 1:
        parser.error(f"--size {options.size}: the size is not positive; give at least 1")
    paths = options.input_path, options.output_path
    return exit_status(
        "convert_labelsize_512",
        lambda: print(convert(*paths, options.size, options.data_set, max(1, options.nproc))),
    )


if __name__ == "__main__":
    run_command(main)
