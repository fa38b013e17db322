"""ADE20K and COCO-Stuff: data sets with one picture of class ids beside every photo."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.attention.settings import MAX_ENTITIES
from seg2any.data.dataset import Annotation, LabelMap, Sample, SampleError
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.data.picture_index import check_pictures
from seg2any.data.pictures import check_stored_photo, pictures_by_stem, read_label_map, read_stored_photo, sizes_differ

TURNS = "EXIF turns are not followed, so turn the photo's pixels"
CAPTIONS = Path(__file__).parent / "captions"


def read_class_captions(name: str) -> dict[int, str]:
    """Read the caption of every class id from captions/`name`.txt, `id<TAB>caption` per line.

    They are the captions that the published checkpoints were trained with, never improved. Two ids may share one.
    """
    lines = (CAPTIONS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {int(number): caption for number, caption in (line.split("\t") for line in lines)}


@dataclass(frozen=True)
class Legend:
    """The meaning of a label map's values: `captions` by value, and that of `background`."""

    captions: dict[int, str]
    background: int

    def values(self, labels: np.ndarray, path: Path) -> tuple[int, ...]:
        """List the classes in `labels` uint8 [H, W], ascending.

        Raises SampleError for unknown ones, for none, and for more than MAX_ENTITIES.
        """
        values = tuple(value for value in _present(labels) if value != self.background)
        unknown = [value for value in values if value not in self.captions]
        if unknown:
            known = f"{min(self.captions)} to {max(self.captions)} and {self.background} for background"
            raise SampleError(f"{path}: unknown label {', '.join(map(str, unknown[:5]))}; known are {known}")
        if not values:
            raise SampleError(f"{path}: it has no label, only background; leave it out")
        if len(values) > MAX_ENTITIES:
            raise SampleError(f"{path}: it has {len(values)} labels, but {MAX_ENTITIES} is the most; merge some")
        return values


class LabelMapDataset:
    """Photos in `image_root` and label maps in `segm_root`, paired by name, sorted by name.

    Every class that occurs is a region, in ascending order of its value; there is no global caption. `left_out` lists
    what cannot be used: photos or maps without the other, of different sizes, damaged, with unknown labels or with
    none. All pictures are read once to find out; `cache_root` keeps the findings, without it each start reads again.

    Raises UserError if a folder is missing or no sample can be used, and for the first bad one if `on_error` is "fail".
    """

    def __init__(
        self, name: str, image_root: Path, segm_root: Path, legend: Legend, cache_root: Path | None, on_error: str
    ):
        self.legend, self.cache_root = legend, cache_root
        self.class_captions = tuple(legend.captions.values())
        photos, maps = pictures_by_stem(name, image_root), pictures_by_stem(name, segm_root)
        paired = sorted(photos.keys() & maps.keys())
        errors = {key: f"{photos[key]}: {segm_root} holds no label map {key}.*" for key in photos.keys() - maps.keys()}
        errors |= {key: f"{maps[key]}: {image_root} holds no photo {key}.*" for key in maps.keys() - photos.keys()}
        checked_photos = check_pictures(
            [photos[key] for key in paired],
            check_stored_photo,
            "photo, whole",
            _cache_file(cache_root, name, image_root, "photos.parquet"),
        )
        checked_maps = check_pictures(
            [maps[key] for key in paired],
            self._check,
            repr(legend),
            _cache_file(cache_root, name, segm_root, "labels.parquet"),
        )
        self._pairs: list[tuple[Path, Path]] = []
        self._photo_digests: list[str] = []
        digest = hashlib.sha256(repr(legend).encode())
        for key, photo, labels in zip(paired, checked_photos, checked_maps, strict=True):
            error = photo.error or labels.error
            if error is None and photo.size != labels.size:
                error = sizes_differ(maps[key], labels.size, photos[key], photo.size, TURNS)
            if error:
                errors[key] = error
                continue
            self._pairs.append((photos[key], maps[key]))
            self._photo_digests.append(photo.digest)
            digest.update(f"{key} {labels.digest}\n".encode())
        self._fingerprint = digest.hexdigest()
        self.left_out = tuple(LeftOut(key, errors[key]) for key in sorted(errors))
        listed = _cache_file(cache_root, name, image_root, "left_out.tsv")
        check_left_out(name, self.left_out, len(photos.keys() | maps.keys()), on_error, listed)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        return Sample(read_stored_photo(self._pairs[index][0]), self.annotation(index).layout)

    def key(self, index: int) -> str:
        return self._pairs[index][0].stem

    def annotation(self, index: int) -> Annotation:
        path = self._pairs[index][1]
        labels = read_label_map(path)
        values = self.legend.values(labels, path)
        captions = tuple(self.legend.captions[value] for value in values)
        return Annotation(self.key(index), LabelMap(labels, values, self.legend.background), captions)

    def photo_digest(self, index: int) -> str:
        return self._photo_digests[index]

    def fingerprint(self) -> str:
        """Return a digest of the captions and of the label maps' names and bytes."""
        return self._fingerprint

    def _check(self, path: Path) -> tuple[int, int]:
        labels = read_label_map(path)
        self.legend.values(labels, path)
        return labels.shape


def _present(labels: np.ndarray) -> list[int]:
    """List the values of uint8 [H, W], ascending.

    Only pixels where a run of equal values ends are looked at: every value has one, and a map of regions has few.
    """
    flat = labels.ravel()
    ends = flat[np.flatnonzero(flat[1:] != flat[:-1])]
    return np.flatnonzero(np.bincount(np.append(ends, flat[-1]))).tolist()


def _cache_file(cache_root: Path | None, name: str, folder: Path, ending: str) -> Path | None:
    return cache_root / f"{name}-{folder.name}-{ending}" if cache_root else None


class ADE20KDataset(LabelMapDataset):
    """ADE20K (ADEChallengeData2016): 150 classes; 0 is ignored.

    image_root  ADEChallengeData2016/images/training or images/validation
    segm_root   ADEChallengeData2016/annotations/training or annotations/validation
    """

    def __init__(self, image_root: Path, segm_root: Path, cache_root: Path | None = None, on_error: str = "skip"):
        legend = Legend(read_class_captions("ade20k"), background=0)
        cache = Path(cache_root) if cache_root else None
        super().__init__("ade20k", Path(image_root), Path(segm_root), legend, cache, on_error)


class COCOStuffDataset(LabelMapDataset):
    """COCO-Stuff 164K: 182 class ids, 171 in use, stored as id - 1; 255 is unlabelled.

    image_root  train2017 or val2017
    segm_root   stuffthingmaps/train2017 or stuffthingmaps/val2017
    """

    def __init__(self, image_root: Path, segm_root: Path, cache_root: Path | None = None, on_error: str = "skip"):
        captions = {number - 1: caption for number, caption in read_class_captions("coco_stuff").items()}
        legend = Legend(captions, background=255)
        cache = Path(cache_root) if cache_root else None
        super().__init__("coco_stuff", Path(image_root), Path(segm_root), legend, cache, on_error)
