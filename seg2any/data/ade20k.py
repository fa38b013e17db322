"""ADE20K (ADEChallengeData2016): 150 classes, 0 is ignored."""

from __future__ import annotations

from pathlib import Path

from seg2any.data.classes import read_class_captions
from seg2any.data.label_maps import LabelMapDataset, Legend


class ADE20KDataset(LabelMapDataset):
    """`image_root` is ADEChallengeData2016/images/{training,validation}, `segm_root` the same of annotations.

    Raises UserError if a folder is missing or no sample can be used, and for the first bad one if `on_error` is "fail".
    """

    def __init__(self, image_root: Path, segm_root: Path, cache_root: Path | None = None, on_error: str = "skip"):
        legend = Legend(read_class_captions("ade20k"), background=0)
        cache = Path(cache_root) if cache_root else None
        super().__init__("ade20k", Path(image_root), Path(segm_root), legend, cache, on_error)
