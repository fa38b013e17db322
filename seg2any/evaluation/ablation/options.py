"""The command line of `python -m seg2any.evaluation.ablation`. Nothing heavy is imported, so that --help is quick."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seg2any.evaluation.ablation.rows import KINDS, REFERENCE, TRAINED, TRAINING_FREE, Row, trained_row
from seg2any.evaluation.shapes.options import Options as ShapesOptions
from seg2any.evaluation.shapes.options import shapes_flags
from seg2any.system.console import whole

TRAININGS = [f"  {name}: python train.py config/seg2any_shapes.yaml {config}" for name, (config, _) in TRAINED.items()]
DETAILS = f"""\
Rows that need no training: {", ".join(row.name for row in TRAINING_FREE)}.
Rows that need training, by the names that the document knows:
{chr(10).join(TRAININGS)}
Train them for equally many steps, and give their folders: --variant trained-base=runs/ablation_base/checkpoint-N

A row that is finished is kept in OUTPUT/KIND/ROW.json, so the same command goes on where it stopped. Such a file can be
given to seg2any.evaluation.compare and seg2any.evaluation.report, too. Started several times at once, the same command
shares the rows between its processes; the last to finish writes the document. With --document_only it is written of the
rows that are finished.
"""


@dataclass(frozen=True)
class Options(ShapesOptions):
    """What to measure, and where the results go. `rows` in the order in which they are measured and shown."""

    lora: Path
    limit: int
    seeds: int
    docs: Path
    rows: tuple[Row, ...]
    kinds: tuple[str, ...]
    document_only: bool


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Options of a command line, by default this process's."""
    parser = argparse.ArgumentParser(
        prog="python -m seg2any.evaluation.ablation",
        description="The paper's ablations on scenes of known truth: tables, pictures, and which trends hold.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shapes_flags("result/ablation", 12)],
    )
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=FOLDER", help="a row trained for it")
    parser.add_argument("--docs", type=Path, help="folder for ablation.md, .json and .png (default: OUTPUT)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these, and the reference (default: all)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="of scenes")
    parser.add_argument("--limit", type=whole(2), default=24, help="scenes of each kind (default: %(default)s)")
    parser.add_argument("--seeds", type=whole(1), default=3, help="images of each scene (default: %(default)s)")
    parser.add_argument("--document_only", action="store_true", help="measure nothing more, write the document")
    given = vars(parser.parse_args(arguments))
    if given["lora"] is None:
        parser.error("--lora none: there is nothing to switch off; give the adapters under test")
    if given["overwrite"] and given["document_only"]:
        parser.error("--overwrite measures again, --document_only measures nothing; give one of them")
    variants = dict(_variant(parser, text) for text in given.pop("variant"))
    chosen = given.pop("rows")
    rows = {row.name: row for row in TRAINING_FREE} | variants
    if unknown := [name for name in chosen or () if name not in rows]:
        parser.error(f"--rows {unknown[0]}: no such row; choose of {', '.join(rows)}")
    kept = tuple(row for row in rows.values() if chosen is None or row.name in (REFERENCE.name, *variants, *chosen))
    given["kinds"] = tuple(kind for kind in KINDS if kind in given["kinds"])
    given["docs"] = given["docs"] or given["output"]
    return Options(rows=kept, **given)


def _variant(parser: argparse.ArgumentParser, text: str) -> tuple[str, Row]:
    name, _, folder = text.partition("=")
    if not name or not folder or "/" in name or name in {row.name for row in TRAINING_FREE}:
        parser.error(f"--variant {text}: give a name of its own and a folder, such as trained-base=runs/ablation_base")
    return name, trained_row(name, Path(folder))
