"""The label sets of open-vocabulary segmentation: where their pictures lie, and the names of their classes.

A set is laid out as its publisher or mmsegmentation leaves it; `docs/segment.md` says what to download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.data.label_maps import read_class_captions
from seg2any.data.pictures import read_label_map
from seg2any.evaluation.metrics.semantic import IGNORED
from seg2any.system.errors import UserError, brief, shown
from seg2any.system.limits import bounded_bytes, limits

VOC = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,table,dog,horse,motorbike,person,plant,sheep,sofa,train,"
    "monitor"
)
CONTEXT = (
    "aeroplane,bag,bed,bedclothes,bench,bicycle,bird,boat,book,bottle,building,bus,cabinet,car,cat,ceiling,chair,cloth,"
    "computer,cow,cup,curtain,dog,door,fence,floor,flower,food,grass,ground,horse,keyboard,light,motorbike,mountain,"
    "mouse,person,plate,platform,plant,road,rock,sheep,shelves,sidewalk,sign,sky,snow,sofa,table,track,train,tree,"
    "truck,monitor,wall,water,window,wood"
)
CITYSCAPES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle"
)
COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)


@dataclass(frozen=True)
class OpenSet:
    """A set of photos with one label map each.

    labels     pattern of the label maps inside the set's folder
    photo      the photo of a label map: pairs of what is replaced in its path, in order
    names      of the classes, in the order of their ids
    first      id of the first class in the label maps; smaller ones are background, IGNORED does not count
    listing    file with the names of the pictures to use, without endings; None: all
    published  mIoU in percent of Seg4Diff with FLUX.1-dev, Table 1 (arXiv 2509.18096): `present` classes only
    """

    labels: str
    photo: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    first: int
    listing: str | None
    published: float

    def pairs(self, folder: Path) -> list[tuple[Path, Path]]:
        """List photo and label map of every picture, sorted. Raises UserError for none, and for a lacking file."""
        found = sorted(folder.glob(self.labels))
        if self.listing is not None:
            listing = folder / self.listing
            if not listing.is_file():
                raise UserError(f"{listing}: is missing; --data names the set's folder, see docs/segment.md")
            wanted = _listed(listing)
            of_name = {path.stem: path for path in found}
            if lacking := [name for name in wanted if name not in of_name]:
                raise UserError(
                    f"{folder}: has no label map of {shown(lacking[0])}, which {self.listing} lists; unpack it again"
                )
            found = [of_name[name] for name in sorted(wanted)]
        if not found:
            raise UserError(f"{folder}: has no {self.labels}; --data names the set's folder, see docs/segment.md")
        return [(self._photo_of(path, folder), path) for path in found]

    def _photo_of(self, path: Path, folder: Path) -> Path:
        inside = str(path.relative_to(folder))
        for old, new in self.photo:
            inside = inside.replace(old, new)
        if not (folder / inside).is_file():
            raise UserError(f"{folder / inside}: is missing, the photo of {path.name}; unpack the photos again")
        return folder / inside

    def read(self, path: Path) -> np.ndarray:
        """Read a label map: uint8 [H, W] with class 0 first, K for background, IGNORED. Raises UserError."""
        labels, count = read_label_map(path).astype(np.int64), len(self.names)
        moved = np.where(labels == IGNORED, IGNORED, labels - self.first)
        if ((moved >= count) & (moved != IGNORED)).any():
            most = self.first + count - 1
            raise UserError(
                f"{path}: holds label {labels[moved >= count].min()}, but the set has {self.first} to {most}"
            )
        return np.where(moved < 0, count, moved).astype(np.uint8)


def _listed(listing: Path) -> list[str]:
    try:
        return bounded_bytes(listing, limits().json_bytes).decode("utf-8-sig").split()
    except (OSError, ValueError) as error:
        raise UserError(f"{listing}: cannot be read ({brief(error)}); unpack the set again") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _of_captions(captions: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(captions[number] for number in sorted(captions))


OPEN_SETS: Mapping[str, OpenSet] = {
    "voc20": OpenSet(
        labels="SegmentationClass/*.png",
        photo=(("SegmentationClass", "JPEGImages"), (".png", ".jpg")),
        names=_names(VOC),
        first=1,
        listing="ImageSets/Segmentation/val.txt",
        published=83.1,
    ),
    "coco_object": OpenSet(
        labels="annotations/val2017/*_instanceTrainIds.png",
        photo=(("annotations", "images"), ("_instanceTrainIds.png", ".jpg")),
        names=_names(COCO),
        first=1,
        listing=None,
        published=50.6,
    ),
    "pc59": OpenSet(
        labels="SegmentationClassContext/*.png",
        photo=(("SegmentationClassContext", "JPEGImages"), (".png", ".jpg")),
        names=_names(CONTEXT),
        first=1,
        listing="ImageSets/SegmentationContext/val.txt",
        published=38.2,
    ),
    "ade150": OpenSet(
        labels="annotations/validation/*.png",
        photo=(("annotations", "images"), (".png", ".jpg")),
        names=_of_captions(read_class_captions("ade20k")),
        first=1,
        listing=None,
        published=23.9,
    ),
    "cityscapes": OpenSet(
        labels="gtFine/val/*/*_gtFine_labelTrainIds.png",
        photo=(("gtFine/", "leftImg8bit/"), ("_gtFine_labelTrainIds", "_leftImg8bit")),
        names=_names(CITYSCAPES),
        first=0,
        listing=None,
        published=17.1,
    ),
}
