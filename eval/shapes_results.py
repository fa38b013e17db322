"""Verdicts on scenes as numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.metrics.result import Parts, Result, pooled
from eval.shapes_judge import Verdict

OF_REGION = {  # field of a region's verdict -> name of the number
    "colour_right": "colour",
    "pattern_right": "pattern",
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
    "leak": "leak",
}
OF_IMAGE = {"background_right": "background", "clutter": "clutter"}
LOWER_IS_BETTER = ("leak", "clutter")


def results(verdicts: Mapping[str, Sequence[Verdict]], source: str = "generated") -> list[Result]:
    """Means over all regions of all images, or over all images, in 0..1. `verdicts` on each sample's images are by key.

    A number that no image has anything to say about, such as the background of unnamed ones, is left out.
    """
    found = []
    for field, name in (OF_REGION | OF_IMAGE).items():
        parts = {key: {"": _sum_and_count(of_sample, field)} for key, of_sample in verdicts.items()}
        if any(count for of_sample in parts.values() for _, count in of_sample.values()):
            found.append(pooled(name, _counted(parts), source=source, better=_better(name)))
    return found


def _sum_and_count(verdicts: Sequence[Verdict], field: str) -> tuple[float, float]:
    parts = [part for verdict in verdicts for part in verdict.regions] if field in OF_REGION else verdicts
    known = [float(value) for part in parts if (value := getattr(part, field)) is not None]
    return sum(known), float(len(known))


def _counted(parts: Parts) -> Parts:
    return {key: of_sample for key, of_sample in parts.items() if of_sample[""][1]}


def _better(name: str) -> str:
    return "lower" if name in LOWER_IS_BETTER else "higher"
