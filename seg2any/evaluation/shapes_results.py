"""Verdicts on scenes as numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seg2any.evaluation.metrics.result import Result, pooled
from seg2any.evaluation.shapes_judge import Verdict

OF_REGION = {  # field of a region's verdict -> name of the number
    "colour_right": "colour",
    "pattern_right": "pattern",
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
    "leak": "leak",
}
OF_IMAGE = {"background_right": "background", "clutter": "clutter"}
# A region that shows nothing leaks nothing, so the leak is also told as a share of what is in any entity's colour.
LEAK_WHERE_COLOURED = "leak where coloured"
LOWER_IS_BETTER = ("leak", LEAK_WHERE_COLOURED, "clutter")


def results(verdicts: Mapping[str, Sequence[Verdict]], source: str = "generated") -> list[Result]:
    """Means over all regions of all images, or over all images, in 0..1. `verdicts` on each sample's images are by key.

    A number that no image has anything to say about, such as the background of unnamed ones, is left out.
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
