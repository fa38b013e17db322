"""Data sets with one picture of class ids beside every photo: what ADE20K and COCO-Stuff have in common."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.attention.settings import MAX_ENTITIES
from seg2any.data.annotation import Annotation, LabelMap
from seg2any.data.checked import check_pictures
from seg2any.data.left_out import LeftOut, check_left_out
from seg2any.data.pictures import check_photo, pictures_by_stem, read_label_map, read_photo, sizes_differ
from seg2any.data.sample import Sample, SampleError


@dataclass(frozen=True)
class Legend:
    """What the values of a label map mean: `captions` by value, and the `background` value of no class."""

    captions: dict[int, str]
    background: int

    def values(self, labels: np.ndarray, path: Path) -> tuple[int, ...]:
        """The classes of uint8 [H, W], ascending. Raises SampleError for unknown ids and for none or too many."""
        values = tuple(value for value in _present(labels) if value != self.background)
        unknown = [value for value in values if value not in self.captions]
        if unknown:
            known = f"{min(self.captions)} to {max(self.captions)} and {self.background} for background"
            raise SampleError(f"{path}: holds the unknown label {', '.join(map(str, unknown[:5]))}; known are {known}")
        if not values:
            raise SampleError(f"{path}: holds no label, only background")
        if len(values) > MAX_ENTITIES:
            raise SampleError(f"{path}: holds {len(values)} labels, the most is {MAX_ENTITIES}; merge some")
        return values


class LabelMapDataset:
    """Photos in `image_root` and label maps in `segm_root`, paired by name, sorted by name.

    Every class that occurs is a region, in ascending order of its value; there is no global caption. What cannot be
    used is `left_out`: one without the other, of different sizes, damaged, with unknown labels or with none. All
    pictures are read once to know; `cache_root` keeps what was found, otherwise it is found anew each time.
    """

    def __init__(
        self, name: str, image_root: Path, segm_root: Path, legend: Legend, cache_root: Path | None, on_error: str
    ):
        self.legend, self.cache_root = legend, cache_root
        self.class_captions = tuple(legend.captions.values())
        photos, maps = pictures_by_stem(name, image_root), pictures_by_stem(name, segm_root)
        paired = sorted(photos.keys() & maps.keys())
        faults = {key: f"{photos[key]}: {segm_root} holds no label map {key}.*" for key in photos.keys() - maps.keys()}
        faults |= {key: f"{maps[key]}: {image_root} holds no photo {key}.*" for key in maps.keys() - photos.keys()}
        checked_photos = check_pictures(
            [photos[key] for key in paired],
            check_photo,
            "photo",
            _kept_in(cache_root, name, image_root, "photos.parquet"),
        )
        checked_maps = check_pictures(
            [maps[key] for key in paired],
            self._check,
            repr(legend),
            _kept_in(cache_root, name, segm_root, "labels.parquet"),
        )
        self._pairs: list[tuple[Path, Path]] = []
        self._photo_digests: list[str] = []
        digest = hashlib.sha256(repr(legend).encode())
        for key, photo, labels in zip(paired, checked_photos, checked_maps, strict=True):
            fault = photo.fault or labels.fault
            if fault is None and photo.size != labels.size:
                fault = sizes_differ(maps[key], labels.size, photos[key], photo.size)
            if fault:
                faults[key] = fault
                continue
            self._pairs.append((photos[key], maps[key]))
            self._photo_digests.append(photo.digest)
            digest.update(f"{key} {labels.digest}\n".encode())
        self._fingerprint = digest.hexdigest()
        self.left_out = tuple(LeftOut(key, faults[key]) for key in sorted(faults))
        listed = _kept_in(cache_root, name, image_root, "left_out.tsv")
        check_left_out(name, self.left_out, len(photos.keys() | maps.keys()), on_error, listed)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        return Sample(read_photo(self._pairs[index][0]), self.annotation(index).layout)

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
        """Of names and bytes of the label maps and of the captions."""
        return self._fingerprint

    def _check(self, path: Path) -> tuple[int, int]:
        labels = read_label_map(path)
        self.legend.values(labels, path)
        return labels.shape


def _present(labels: np.ndarray) -> list[int]:
    """The values of uint8 [H, W], ascending. Every value ends somewhere, and a map of regions has few ends."""
    flat = labels.ravel()
    ends = flat[np.flatnonzero(flat[1:] != flat[:-1])]
    return np.flatnonzero(np.bincount(np.append(ends, flat[-1]))).tolist()


def _kept_in(cache_root: Path | None, name: str, folder: Path, what: str) -> Path | None:
    return cache_root / f"{name}-{folder.name}-{what}" if cache_root else None
