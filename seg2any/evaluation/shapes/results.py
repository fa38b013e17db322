"""Turn verdicts on `shapes` images into results, a printed table and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seg2any.evaluation.metrics.result import GENERATED, Result, pooled
from seg2any.evaluation.report.results import Bar, Row, Run
from seg2any.evaluation.shapes.judge import Verdict

OF_REGION = {  # field of a region's verdict -> name of the number
    "colour_right": "colour",
    "pattern_right": "pattern",
    "letter_right": "letter",
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
    "leak": "leak",
}
OF_IMAGE = {"background_right": "background", "clutter": "clutter"}
# A region that shows nothing leaks nothing, so the leak is also given as a share of the pixels in any entity's colour.
LEAK_WHERE_COLOURED = "leak where coloured"
FRACTIONS = ("IoU", "boundary IoU")  # the other numbers are shown in per cent
BARS = {"colour": 0.99, "pattern": 0.90, "letter": 0.80, "IoU": 0.95, "boundary IoU": 0.75, "leak": 0.005}
LOWER_IS_BETTER = ("leak", LEAK_WHERE_COLOURED, "clutter")


def results(verdicts: Mapping[str, Sequence[Verdict]], source: str = GENERATED) -> list[Result]:
    """Average the verdicts over all regions or over all images, in 0..1.

    `verdicts` maps sample keys to the verdicts on the sample's images. Numbers that no verdict mentions, such as the
    background where no caption names one, are left out.
    """
    by_name = {
        name: {key: _sum_and_count(of_sample, field) for key, of_sample in verdicts.items()}
        for field, name in (OF_REGION | OF_IMAGE).items()
    }
    by_name[LEAK_WHERE_COLOURED] = {key: _leak_and_coloured(of_sample) for key, of_sample in verdicts.items()}
    found = []
    for name, sums in by_name.items():
        parts = {key: {"": of_sample} for key, of_sample in sums.items() if of_sample[1]}
        if parts:
            found.append(pooled(name, parts, source=source, better="lower" if name in LOWER_IS_BETTER else "higher"))
    return found


def _sum_and_count(verdicts: Sequence[Verdict], field: str) -> tuple[float, float]:
    parts = [part for verdict in verdicts for part in verdict.regions] if field in OF_REGION else verdicts
    known = [float(value) for part in parts if (value := getattr(part, field)) is not None]
    return sum(known), float(len(known))


def _leak_and_coloured(verdicts: Sequence[Verdict]) -> tuple[float, float]:
    regions = [region for verdict in verdicts for region in verdict.regions]
    return sum(region.leak for region in regions), sum(region.coloured for region in regions)


def bars(run: Run) -> list[Bar]:
    """List the bars for generated images, but those of numbers that the run lacks: a few scenes may have no badge."""
    values = {row.name: row.value for row in run.rows if row.source == GENERATED}
    return [
        Bar(name, values[name], bar, at_least=name not in LOWER_IS_BETTER)
        for name, bar in BARS.items()
        if name in values
    ]


def table(run: Run) -> str:
    """Format one line per number, one column per source of images.

    Numbers of generated images come with their 95 % interval.
    """
    names = list(dict.fromkeys(row.name for row in run.rows))
    sources = list(dict.fromkeys(row.source for row in run.rows))
    found = {(row.name, row.source): row for row in run.rows}
    cells = [[_cell(found.get((name, source))) for source in sources] for name in names]
    heads = [f"{source}, 95 %" if source == GENERATED else source for source in sources]
    return _aligned(["", *heads], [[name, *line] for name, line in zip(names, cells, strict=True)])


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.source != GENERATED or row.low is None:
        return _shown(row.name, row.value)
    low, high = (_shown(row.name, bound).removesuffix(" %") for bound in (row.low, row.high))
    return f"{_shown(row.name, row.value)} [{low}, {high}]"


def _shown(name: str, value: float) -> str:
    return f"{value:.3f}" if name in FRACTIONS else f"{100 * value:.1f} %"


def _aligned(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]

    def joined(line: Sequence[str]) -> str:
        cells = [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join([f"{line[0]:<{widths[0]}}", *cells])

    return "\n".join(map(joined, [heads, *lines]))
