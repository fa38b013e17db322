"""The tasks of `train`, in one table by the config key `task`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of the table. Names are written module:name.

    text      says what is trained
    made_by   a class or function: the config -> the `Task`
    told_by   a function: the config -> the text of --dry_run
    sections  sections of the config that only this task and others with them read
    """

    text: str
    made_by: str
    told_by: str
    sections: tuple[str, ...] = ()


TASKS: Mapping[str, Row] = {
    "generation": Row(
        text="Seg2Any's adapters",
        made_by="seg2any.training.tasks.generation:Generation",
        told_by="seg2any.training.dry_run:describe",
    ),
    "mask_alignment": Row(
        text="adapters whose attention follows masks (Seg4Diff), for segment --method attention",
        made_by="seg2any.training.tasks.mask_alignment:MaskAlignment",
        told_by="seg2any.training.tasks.mask_alignment:describe",
        sections=("mask_alignment",),
    ),
    "xsam_segmentor": Row(
        text="X-SAM's segmentor with a closed list of categories (its stage 1)",
        made_by="seg2any.training.tasks.xsam_segmentor:SegmentorTask",
        told_by="seg2any.training.tasks.xsam_task:describe",
        sections=("xsam",),
    ),
    "xsam": Row(
        text="the whole X-SAM, on categories, phrases, questions and descriptions (its stage 3)",
        made_by="seg2any.training.tasks.xsam:MixedTask",
        told_by="seg2any.training.tasks.xsam_task:describe",
        sections=("xsam",),
    ),
    "coloring": Row(
        text="adapters that paint every instance in a colour of its own (gen2seg)",
        made_by="seg2any.training.tasks.coloring:PaintingTask",
        told_by="seg2any.training.tasks.coloring:describe",
        sections=("coloring",),
    ),
}
