"""Numbers that X-SAM's authors published (arXiv 2508.04655), to print beside measured ones.

They gave the model an answer that holds <SEG>, but for grounded captions, and left samples without a result out. Here
it answers by itself, and what it does not answer counts as a miss: read the two side by side, not as one table.
"""

from __future__ import annotations

from collections.abc import Mapping

CUT = "CIDEr, captions cut as published"  # to their sentences without <SEG>
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "refcoco": {"cIoU": 0.851},
    "refcoco+": {"cIoU": 0.780},
    "refcocog": {"cIoU": 0.838},
    "reasoning": {"gIoU": 0.566},
    "grounded": {"mask mIoU": 0.694, "AP50": 0.332, CUT: 0.463, "METEOR": 0.154},
    "coco_panoptic": {"PQ": 0.547, "mIoU": 0.665},
    "ade_panoptic": {"PQ": 0.209, "mIoU": 0.288},
}
UNMEASURED = ("METEOR",)  # needs a Java program; other implementations give other numbers


def beside(benchmark: str) -> list[str]:
    """Format the published numbers of a benchmark, one line each; those that are not measured here say so."""
    lines = []
    for name, value in PUBLISHED.get(benchmark, {}).items():
        told = ", not measured here" if name in UNMEASURED else ""
        lines.append(f"{name} {value:.3f} as published (X-SAM){told}")
    return lines
