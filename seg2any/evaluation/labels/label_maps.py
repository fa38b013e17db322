"""Label maps as the closed-set judges want them: training classes instead of ids, squashed to the images' size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from seg2any.data.label_maps import read_class_captions
from seg2any.data.pictures import read_label_map
from seg2any.generate.recipe import BrokenImage, read_recipe
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.workers import WorkerPool

UNLABELLED = 255
UNKNOWN = -1
# Values of stuffthingmaps that no picture may hold: ids that COCO has but never used.
UNUSED_IN_COCO = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


@dataclass(frozen=True, eq=False)
class ClassTable:
    """What the values of a data set's label maps are called in training: `classes` int16 [256], with UNLABELLED and
    UNKNOWN; `names` of the classes in order."""

    data_set: str
    classes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, data_set: str) -> ClassTable:
        """Of "ade20k" (150 classes) or "coco_stuff" (171 of 182 ids)."""
        captions = read_class_captions(data_set)
        if data_set == "ade20k":
            values, background = sorted(captions), 0
            names = [captions[value] for value in values]
        else:
            values = [number - 1 for number in sorted(captions) if number - 1 not in UNUSED_IN_COCO]
            names, background = [captions[value + 1] for value in values], 255
        classes = np.full(256, UNKNOWN, np.int16)
        classes[values] = range(len(values))
        classes[background] = UNLABELLED
        return cls(data_set, classes, tuple(names))

    def __call__(self, labels: np.ndarray, where: object) -> np.ndarray:
        """Values uint8 [H, W] -> classes uint8 [H, W]. Raises UserError naming `where` and a value of no class."""
        found = self.classes[labels]
        if (found == UNKNOWN).any():
            wrong = ", ".join(map(str, np.unique(labels[found == UNKNOWN])[:5]))
            raise UserError(f"{where}: holds the id {wrong}, which {self.data_set} does not have; get the file again")
        return found.astype(np.uint8)


def squashed(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] stretched to `size` (H, W) with Pillow's NEAREST, as the published labels are."""
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


@dataclass(frozen=True, eq=False)
class Conversion:
    """Of one picture: through a table, to a size, or both. Picklable, for worker processes."""

    table: ClassTable | None = None
    size: tuple[int, int] | None = None

    def __call__(self, pair: tuple[Path, Path]) -> None:
        """Read the first path, write the second. Raises UserError."""
        source, target = pair
        labels = read_label_map(source)
        labels = labels if self.table is None else self.table(labels, source)
        labels = labels if self.size is None else squashed(labels, self.size)
        with atomic_write(target) as temporary:
            Image.fromarray(labels).save(temporary)


def convert_folder(pairs: Sequence[tuple[Path, Path]], conversion: Conversion, processes: int) -> int:
    """Convert what is not converted yet, in parallel; gives how many that were. Raises UserError at the first fault.

    Targets are written whole, so one that is there, can be decoded, is no older than its source and of the size asked
    for is done.
    """
    missing = [pair for pair in pairs if not (pair[1].exists() and _is_done(*pair, conversion.size))]
    bar = tqdm(total=len(pairs), initial=len(pairs) - len(missing), desc="labels", unit="file")
    with bar, WorkerPool(min(processes, max(1, len(missing))), conversion) as pool:
        for _ in pool.results(_convert, missing):
            bar.update()
    return len(missing)


def _convert(conversion: Conversion, pair: tuple[Path, Path]) -> None:
    conversion(pair)


def _is_done(source: Path, target: Path, size: tuple[int, int] | None) -> bool:
    try:
        read_recipe(target)  # decodes all of it
    except BrokenImage:
        return False
    if target.stat().st_mtime_ns < source.stat().st_mtime_ns:
        return False
    with Image.open(target) as image:
        return size is None or image.size == size[::-1]  # another --size may have been converted to before


def label_files(folder: Path) -> list[Path]:
    """The PNGs of a folder by name. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the label maps")
    files = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    if not files:
        raise UserError(f"{folder}: holds no .png; give the folder of the label maps")
    return files
