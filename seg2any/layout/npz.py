"""Read and write layouts as numpy arrays, with overlaps, empty masks and scores."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from seg2any.layout.checks import LayoutError, LayoutParts, check_mask_shape, check_masks
from seg2any.layout.entries import warn_of_unread
from seg2any.layout.masks import cut, without_channel
from seg2any.system.errors import shown
from seg2any.system.files import atomic_write
from seg2any.system.limits import limits

HEADER_BYTES = 1 << 16
LONGEST_READ = 1 << 20  # bytes
KINDS = {  # content of each array, for messages
    "masks": "a bool array",
    "captions": "strings",
    "caption": "strings",
    "seed": "a number",
    "scores": "a float array",
    "source": "strings",
    "empty": "mask numbers",
    "labels": "whole numbers",
}
MEANT = {
    **dict.fromkeys(("prompt", "global_prompt", "global_caption", "description"), "caption"),
    **dict.fromkeys(("prompts", "texts", "phrases", "text"), "captions"),
    **dict.fromkeys(("segmentation", "segmentations", "mask"), "masks"),
}


def read_npz(path: Path) -> LayoutParts:
    """Read a layout from the arrays that `seg2any.layout.readers` describes.

    masks: [N, H, W] or [N, 1, H, W], bool, or numbers that `seg2any.layout.masks` cuts; or one map of labels, whole
        numbers [H, W], where label k is the region of caption k, from 1 on, or of the caption at the place of k in
        `labels`; 0 is background

    Raises LayoutError, also for a mask without a pixel that `empty` does not list.
    """
    arrays = _load_arrays(path)
    for name in ("masks", "captions"):
        if name not in arrays:
            raise LayoutError(f"{path}: {name} is missing; save masks [N, H, W] and captions [N]")
    masks, captions = arrays["masks"], arrays["captions"]
    if captions.dtype.kind != "U" or captions.ndim != 1:
        raise LayoutError(f"{path}: captions are {captions.dtype} {list(captions.shape)}; save a list of strings")
    if masks.dtype.kind in "iu" and masks.ndim == 2:
        masks = _of_labels(path, masks, _labels(path, arrays.get("labels"), len(captions)))
    elif "labels" in arrays:
        raise LayoutError(
            f"{path}: labels belong to masks of one map [H, W], but masks are {list(masks.shape)}; remove them"
        )
    masks = without_channel(masks)
    if masks.dtype.kind not in "biuf" or masks.ndim != 3:
        raise LayoutError(f"{path}: masks are {masks.dtype} {list(masks.shape)}; save a bool array [N, H, W]")
    masks = cut(str(path), masks)
    check_masks(str(path), masks)
    _check_empty(path, masks, arrays.get("empty"))
    caption, seed, source = (_scalar(path, arrays, name) for name in ("caption", "seed", "source"))
    source = "" if source is None else source
    return LayoutParts(masks, tuple(captions.tolist()), caption, seed, path.stem, arrays.get("scores"), source)


def write_npz(layout: LayoutParts, path: Path) -> None:
    """Write all fields but the name, compressed."""
    arrays = {"masks": layout.masks, "captions": np.array(layout.captions, dtype=np.str_)}
    if layout.caption is not None:
        arrays["caption"] = np.array(layout.caption)
    if layout.seed is not None:
        arrays["seed"] = np.array(layout.seed)
    if layout.scores is not None:
        arrays["scores"] = layout.scores
    if layout.source:
        arrays["source"] = np.array(layout.source)
    empty = _without_pixel(layout.masks)
    if len(empty) or not len(layout.masks):
        arrays["empty"] = empty
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)


class _ShortReads(io.BufferedReader):
    """A file that gives no more than LONGEST_READ bytes at once: zipfile reads the list of members in one piece."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self.size - self.tell())
        size = rest if size is None or size < 0 else min(size, rest)
        if size > LONGEST_READ:
            raise ValueError("it lists too many members")
        return super().read(size)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of KINDS from the members whose headers were checked, whatever else the file holds."""
    try:
        if path.stat().st_size > (most := limits().file_bytes):
            raise LayoutError(f"{path}: is larger than {most >> 20} MiB; save it compressed")
        with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if twice := next((name for name in KINDS if names.count(name) > 1), None):
                raise LayoutError(f"{path}: has {twice} twice; save it again with numpy")
            arrays = {name: _read_member(archive, name, path) for name in KINDS if name in names}
    except LayoutError:
        raise
    except Exception as error:  # damaged zip files and headers raise nearly every kind of exception
        raise LayoutError(f"{path}: cannot be read as npz ({shown(str(error))}); save it again with numpy") from error
    warn_of_unread(path, names, KINDS, MEANT)
    return arrays


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """Read an array; its header is checked before memory of the size it claims is allocated."""
    with archive.open(f"{name}.npy") as stream:
        head = stream.read(HEADER_BYTES)
        shape, is_fortran, dtype, begin = _parse_header(head)
        _check_header(path, name, shape, dtype)
        size = dtype.itemsize * math.prod(shape)
        data = bytearray(size)  # filled in place: the masks of a layout may be half of the memory
        data[: len(head) - begin] = head[begin : begin + size]
        at = min(len(head) - begin, size)
        with memoryview(data) as view:
            while at < size and (count := stream.readinto(view[at : at + LONGEST_READ])):
                at += count
        if at < size or stream.read(1):
            raise ValueError(f"{name} does not have the {size} bytes of its shape")
    array = np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise ValueError(f"{name} has bytes other than 0 and 1")
    if dtype.kind == "U":
        array.tolist()  # raises ValueError for numbers that are no characters
    return array


def _parse_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, order, dtype and the first byte of the data. Raises ValueError, also for long headers."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    length = int.from_bytes(head[8 : 10 if version == (1, 0) else 12], "little")
    if length > HEADER_BYTES - 12:
        raise ValueError(f"a header has {length} bytes")
    shape, is_fortran, dtype = read(stream)
    return tuple(int(side) for side in shape), is_fortran, dtype, stream.tell()


def _check_header(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    most = limits()
    if dtype.hasobject:
        raise LayoutError(f"{path}: {name} has pickled Python objects, which are never unpacked; save {KINDS[name]}")
    size = dtype.itemsize * math.prod(shape)
    if name == "masks" and (len(shape) in (2, 3) or (len(shape) == 4 and shape[1] == 1)):
        check_mask_shape(str(path), (shape[0] if len(shape) > 2 else 1, *shape[-2:]))
        if size > most.mask_bytes:
            raise LayoutError(f"{path}: masks are {dtype} of {size >> 20} MiB; save them as bool")
    elif min(shape, default=0) < 0 or size > most.json_bytes:
        raise LayoutError(f"{path}: {name} has shape {shown(shape)}, too large for a layout; save {KINDS[name]}")


def _labels(path: Path, labels: np.ndarray | None, count: int) -> np.ndarray:
    """Return the label of each of `count` captions, int [count]: 1, 2, 3 ... unless `labels` says otherwise."""
    if labels is None:
        return np.arange(1, count + 1)
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or len(np.unique(labels)) < count:
        found = f"{labels.dtype} {list(labels.shape)}"
        raise LayoutError(f"{path}: labels are {found}; save {count} different whole numbers, one for each caption")
    return labels


def _of_labels(path: Path, label_map: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Make the masks of `labels` from a map [H, W]; 0 without a caption is background.

    Raises LayoutError for another label without a caption.
    """
    check_mask_shape(str(path), (len(labels), *label_map.shape))
    found = np.unique(label_map)
    unnamed = np.setdiff1d(found, [0, *labels])
    if len(unnamed):
        listed = ", ".join(map(str, unnamed[:5])) + (", ..." if len(unnamed) > 5 else "")
        raise LayoutError(
            f"{path}: masks are a map of labels, and {listed} has no caption; save one caption for each label from 1 "
            "on, or `labels`, the label of each caption"
        )
    return label_map == labels.reshape(-1, 1, 1)


def _without_pixel(masks: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~masks.any(axis=(1, 2)))


def _check_empty(path: Path, masks: np.ndarray, listed: np.ndarray | None) -> None:
    """Raise LayoutError for masks without a pixel that `listed`, int [E], does not number."""
    if listed is None and not len(masks):
        raise LayoutError(f"{path}: masks are {list(masks.shape)}; a layout needs at least one region")
    if listed is None:
        listed = np.zeros(0, dtype=int)
    if listed.dtype.kind not in "iu" or listed.ndim != 1:
        raise LayoutError(f"{path}: empty is {listed.dtype} {list(listed.shape)}; save a list of mask numbers")
    unlisted = np.setdiff1d(_without_pixel(masks), listed)
    if len(unlisted):
        raise LayoutError(f"{path}: masks[{unlisted[0]}] has no pixel; remove the region, or list it in empty")


def _scalar(path: Path, arrays: dict[str, np.ndarray], name: str) -> object:
    if name not in arrays:
        return None
    if arrays[name].ndim != 0:
        raise LayoutError(f"{path}: {name} has shape {list(arrays[name].shape)}; save a single value")
    return arrays[name].item()
