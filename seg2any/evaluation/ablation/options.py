"""The command line of `python -m seg2any.evaluation.ablation`.

Nothing heavy is imported, so that --help is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.evaluation.ablation.rows import KINDS, REFERENCE, TRAINED, TRAINING_FREE, Row, trained_row
from seg2any.evaluation.shapes.options import CommonOptions, shapes_flags
from seg2any.system.arguments import Parser
from seg2any.system.console import whole
from seg2any.system.files import user_path

TRAININGS = [f"  {name}: python train.py config/seg2any_shapes.yaml {config}" for name, (config, _) in TRAINED.items()]
DETAILS = f"""\
Rows that need no training: {", ".join(row.name for row in TRAINING_FREE)}.
Rows that need training, by the names that the document knows:
{chr(10).join(TRAININGS)}
Train them for equally many steps and give their folders: --variant trained-base=runs/ablation_base/checkpoint-N

Every finished row is kept in OUTPUT/KIND/ROW.json, which seg2any.evaluation.compare and seg2any.evaluation.report read
too. The same command resumes where it stopped. Started several times at once, it shares the rows between its processes;
the last to finish writes the document. --document_only writes it from the rows that are finished.
"""


@dataclass(frozen=True)
class Options(CommonOptions):
    """The rows to measure, in the order in which they are shown, and the folder of the results."""

    lora: Path
    limit: int
    seeds: int
    docs: Path
    rows: tuple[Row, ...]
    kinds: tuple[str, ...]
    document_only: bool


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Parse a command line, by default this process's."""
    parser = Parser(
        prog="python -m seg2any.evaluation.ablation",
        description="The paper's ablations on scenes of known truth: tables, pictures, and which trends hold.",
        epilog=DETAILS,
        parents=[shapes_flags("result/ablation", 12)],
    )
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=FOLDER", help="a row with adapters of its own"
    )
    parser.add_argument("--docs", type=user_path, help="folder for ablation.md, .json and .png (default: OUTPUT)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="measure only these and the reference (default: all)")
    parser.add_argument(
        "--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="kinds of scenes (default: all)"
    )
    parser.add_argument("--limit", type=whole(2), default=24, help="scenes of each kind (default: %(default)s)")
    parser.add_argument("--seeds", type=whole(1), default=3, help="images of each scene (default: %(default)s)")
    parser.add_argument("--document_only", action="store_true", help="write the document without measuring")
    given = vars(parser.parse_args(arguments))
    if given["lora"] is None:
        parser.error("--lora none: an ablation needs adapters; give the folder of those under test")
    if given["overwrite"] and given["document_only"]:
        parser.error("--overwrite measures again, --document_only does not measure; give one of them")
    variants = dict(_variant(parser, text) for text in given.pop("variant"))
    chosen = given.pop("rows")
    rows = {row.name: row for row in TRAINING_FREE} | variants
    if unknown := [name for name in chosen or () if name not in rows]:
        parser.error(f"--rows {unknown[0]}: there is no such row; choose from {', '.join(rows)}")
    kept = tuple(row for row in rows.values() if chosen is None or row.name in (REFERENCE.name, *variants, *chosen))
    given["kinds"] = tuple(kind for kind in KINDS if kind in given["kinds"])
    given["docs"] = given["docs"] or given["output"]
    return Options(rows=kept, **given)


def _variant(parser: Parser, text: str) -> tuple[str, Row]:
    name, _, folder = text.partition("=")
    if not name or not folder or "/" in name or name in {row.name for row in TRAINING_FREE}:
        parser.error(
            f"--variant {text}: not an unused name and a folder; give for example trained-base=runs/ablation_base"
        )
    return name, trained_row(name, user_path(folder))
