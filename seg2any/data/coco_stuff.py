"""COCO-Stuff 164K: 182 ids of which 171 are in use, stored less one; 255 is unlabelled."""

from __future__ import annotations

from pathlib import Path

from seg2any.data.classes import read_class_captions
from seg2any.data.label_maps import LabelMapDataset, Legend


class COCOStuffDataset(LabelMapDataset):
    """`image_root` is {train,val}2017, `segm_root` stuffthingmaps/{train,val}2017.

    Raises UserError if a folder is missing or no sample can be used, and for the first bad one if `on_error` is "fail".
    """

    def __init__(self, image_root: Path, segm_root: Path, cache_root: Path | None = None, on_error: str = "skip"):
        captions = {number - 1: caption for number, caption in read_class_captions("coco_stuff").items()}
        legend = Legend(captions, background=255)
        cache = Path(cache_root) if cache_root else None
        super().__init__("coco_stuff", Path(image_root), Path(segm_root), legend, cache, on_error)
