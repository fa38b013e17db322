"""Write label maps for closed-set judges: training classes at the size of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from seg2any.data.pictures import read_label_map
from seg2any.generate.recipe import BrokenImage, read_recipe
from seg2any.layout.images import opened_image
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.workers import WorkerPool

UNLABELLED = 255
UNKNOWN = -1
# Z_RLE, zlib's strategy that looks for runs only: files of label maps are as small, and made in half of the time.
RUN_LENGTHS = 3
# Values that no file of stuffthingmaps may hold: ids that COCO has but never used.
UNUSED_IN_COCO = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Training classes of the values of a data set's label maps.

    classes  int16 [256], value -> class, UNLABELLED or UNKNOWN
    names    of the classes in order
    """

    data_set: str
    classes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, data_set: str) -> ClassTable:
        """Build the table of "ade20k" (150 classes) or "coco_stuff" (171 of 182 ids)."""
        from seg2any.data.label_maps import read_class_captions  # pyarrow and all, which stretching maps does without

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
        """Map values uint8 [H, W] to classes uint8 [H, W].

        Raises UserError, naming `where` and the value, for a value without a class.
        """
        found = self.classes[labels]
        if (found == UNKNOWN).any():
            wrong = ", ".join(map(str, np.unique(labels[found == UNKNOWN])[:5]))
            raise UserError(
                f"{where}: the file holds id {wrong}, which {self.data_set} does not have; download it again"
            )
        return found.astype(np.uint8)


def squashed(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch uint8 [H, W] to `size` (H, W) with Pillow's NEAREST, as published."""
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


@dataclass(frozen=True, eq=False)
class Conversion:
    """Conversion of one label map: through a table, to a size, or both.

    Picklable, for worker processes.
    """

    table: ClassTable | None = None
    size: tuple[int, int] | None = None

    def __call__(self, pair: tuple[Path, Path]) -> None:
        """Convert the first path into the second. Raises UserError."""
        source, target = pair
        labels = read_label_map(source)
        labels = labels if self.table is None else self.table(labels, source)
        labels = labels if self.size is None else squashed(labels, self.size)
        with atomic_write(target) as temporary:
            Image.fromarray(labels).save(temporary, compress_type=RUN_LENGTHS)


def convert_folder(pairs: Sequence[tuple[Path, Path]], conversion: Conversion, processes: int) -> int:
    """Convert what is not converted yet, and return how many files that were.

    processes  worker processes; 1 converts in this process

    Targets are written whole, so one is finished if it can be decoded, is no older than its source and has the wanted
    size. Raises UserError at the first fault.
    """
    missing = [pair for pair in pairs if not (pair[1].exists() and _is_done(*pair, conversion.size))]
    with tqdm(total=len(pairs), initial=len(pairs) - len(missing), desc="labels", unit="file") as bar:
        for _ in _converted(missing, conversion, min(processes, len(missing))):
            bar.update()
    return len(missing)


def _converted(pairs: Sequence[tuple[Path, Path]], conversion: Conversion, processes: int) -> Iterator[None]:
    """Convert the pairs; yield after each."""
    if processes < 2:
        yield from map(conversion, pairs)
        return
    with WorkerPool(processes, conversion, preload=(__name__,)) as pool:
        for _ in pool.results(_convert, pairs):
            yield


def _convert(conversion: Conversion, pair: tuple[Path, Path]) -> None:
    conversion(pair)


def _is_done(source: Path, target: Path, size: tuple[int, int] | None) -> bool:
    try:
        read_recipe(target)  # decodes all of it
    except BrokenImage:
        return False
    if target.stat().st_mtime_ns < source.stat().st_mtime_ns:
        return False
    with opened_image(target) as image:
        return size is None or image.size == size[::-1]  # an earlier run may have had another --size


def label_files(folder: Path) -> list[Path]:
    """List the PNGs of a folder by name. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the one that holds the label maps")
    files = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    if not files:
        raise UserError(f"{folder}: the folder holds no .png; give the folder of the label maps")
    return files
