"""Numbers that X-SAM's authors published (arXiv 2508.04655), to print beside measured ones.

They gave the model an answer that holds <SEG>, but for grounded captions, and left samples without a result out. Here
it answers by itself, and what it does not answer counts as a miss: read the two side by side, not as one table.
"""

from __future__ import annotations

from collections.abc import Mapping

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "refcoco": {"cIoU": 0.851},
    "refcoco+": {"cIoU": 0.780},
    "refcocog": {"cIoU": 0.838},
    "reasoning": {"gIoU": 0.566},
    "grounded": {"mask mIoU": 0.694, "AP50": 0.332},
    "coco_panoptic": {"PQ": 0.547, "mIoU": 0.665},
    "ade_panoptic": {"PQ": 0.209, "mIoU": 0.288},
}


def beside(benchmark: str) -> list[str]:
    """Format the published numbers of a benchmark, one line each."""
    return [f"{name} {value:.3f} as published (X-SAM)" for name, value in PUBLISHED.get(benchmark, {}).items()]
