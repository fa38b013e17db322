"""Layouts as arrays: the format that holds overlaps, and the quickest to make from a program."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from seg2any.layout.checks import LayoutError, LayoutParts, check_mask_shape, check_masks
from seg2any.system.errors import shown
from seg2any.system.files import atomic_write

MAX_TEXT_BYTES = 2**26
KINDS = {"masks": "a bool array", "seed": "a number", "scores": "a float array"}  # array -> content; else strings


def read_npz(path: Path) -> LayoutParts:
    """Read a layout from `masks` [N, H, W] and `captions` [N], and if present `caption`, `seed`, `scores`, `source`.

    `masks` are bool, or numbers where non-zero is the region. Raises LayoutError.
    """
    arrays = _load_arrays(path)
    for name in ("masks", "captions"):
        if name not in arrays:
            raise LayoutError(f"{path}: array {name} is missing; save masks [N, H, W] and captions [N]")
    masks = arrays["masks"]
    if masks.dtype.kind not in "biuf" or masks.ndim != 3:
        raise LayoutError(f"{path}: masks are {masks.dtype} {list(masks.shape)}; save a bool array [N, H, W]")
    if masks.dtype.kind == "f" and np.isnan(masks).any():
        raise LayoutError(f"{path}: masks hold NaN, which is neither in a region nor out of it; save a bool array")
    masks = masks.astype(bool)
    if len(masks) == 0:
        raise LayoutError(f"{path}: masks are {list(masks.shape)}; a layout needs at least one region")
    check_masks(str(path), masks)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise LayoutError(f"{path}: masks[{empty[0]}] has no pixel; remove the region")
    captions = arrays["captions"]
    if captions.dtype.kind != "U" or captions.ndim != 1:
        raise LayoutError(f"{path}: captions are {captions.dtype} {list(captions.shape)}; save a list of strings")
    caption, seed, source = (_scalar(path, arrays, name) for name in ("caption", "seed", "source"))
    source = "" if source is None else source
    return LayoutParts(masks, tuple(captions.tolist()), caption, seed, path.stem, arrays.get("scores"), source)


def write_npz(layout: LayoutParts, path: Path) -> None:
    """Write everything but the name, compressed."""
    arrays = {"masks": layout.masks, "captions": np.array(layout.captions, dtype=np.str_)}
    if layout.caption is not None:
        arrays["caption"] = np.array(layout.caption)
    if layout.seed is not None:
        arrays["seed"] = np.array(layout.seed)
    if layout.scores is not None:
        arrays["scores"] = layout.scores
    if layout.source:
        arrays["source"] = np.array(layout.source)
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    wanted = ("masks", "captions", "caption", "seed", "scores", "source")
    try:
        with zipfile.ZipFile(path) as archive:
            present = [name for name in wanted if f"{name}.npy" in archive.namelist()]
            for name in present:
                _check_header(archive, name, path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in present}
    except LayoutError:
        raise
    except Exception as error:  # damaged zip files and headers raise nearly every kind there is
        raise LayoutError(f"{path}: cannot be read as npz ({shown(str(error))}); save it again with numpy") from error


def _check_header(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Judge an array by its header, before memory of the size it claims is allocated."""
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        kind = KINDS.get(name, "strings")
        raise LayoutError(f"{path}: {name} holds pickled Python objects, which are never unpacked; save {kind}")
    if name == "masks" and len(shape) == 3:
        check_mask_shape(str(path), shape)
    elif dtype.itemsize * int(np.prod([int(side) for side in shape], dtype=object)) > MAX_TEXT_BYTES:
        raise LayoutError(f"{path}: {name} claims shape {shown(shape)}, which is too large for a layout")


def _scalar(path: Path, arrays: dict[str, np.ndarray], name: str) -> object:
    if name not in arrays:
        return None
    if arrays[name].ndim != 0:
        raise LayoutError(f"{path}: {name} has shape {list(arrays[name].shape)}; save a single value")
    return arrays[name].item()
