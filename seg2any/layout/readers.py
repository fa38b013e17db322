"""Read and write layouts: JSON with several ways to locate a region, and numpy arrays.

`NAME.json` has a caption, a seed and the `source` of its regions, a segmenter (all optional), and the regions, later
ones on top. Each region has its `text` (or `caption`), optionally the segmenter's `score`, and exactly one of

color         its colour in NAME.png beside the JSON: the published format
              {"caption": "a cat on a mat", "seed": 7, "segments_info": [
                  {"color": [255, 0, 0], "text": "a black cat"}, {"color": [0, 0, 255], "text": "a mat"}]}
              also "#ff0000" and names of CSS such as "red"; RGB, RGBA, palette and grey images; transparent pixels,
              black unless it is listed, and unlisted colours are background
mask          a picture of its own, named relative to the JSON; pixels brighter than half of the maximum are inside
              {"segments_info": [{"mask": "cat.png", "text": "a black cat"}, {"mask": "mat.png", "text": "a mat"}]}
segmentation  COCO / SA-1B run lengths, compressed or not, or polygons in pixels; in `annotations`, see docs/layouts.md
              {"annotations": [{"segmentation": {"size": [2, 3], "counts": [0, 2, 4]}, "text": "the left column"}]}

A JSON without regions has `"empty": []`, which says that none are meant, and the size of the image or NAME.png.

`NAME.npz` has `masks` bool [N, H, W], `captions` [N] and optionally `caption`, `seed`, `scores` float [N], `source` and
`empty`, the numbers of masks that have no pixel on purpose; other masks without a pixel are refused as mistakes.
`masks` may also be one map of labels, int [H, W]: caption k is that of label k, from 1 on, or of the k-th of `labels`.

A folder with a single JSON is one layout (so a JSON with its mask pictures is one); a folder with several is a
collection. The report of `infer.py --check` is not counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seg2any.layout.checks import LayoutError, LayoutParts, check_mask_shape, check_pictures
from seg2any.layout.coco import compare_with_mask, read_segments
from seg2any.layout.collection import split_reference
from seg2any.layout.color_map import SUFFIXES, read_color_map, region_colors, write_color_map
from seg2any.layout.document import open_collection, read_annotation, write_annotation
from seg2any.layout.entries import Annotation, Region
from seg2any.layout.find import beside, find_layouts, only_json, panoptic_picture, picture_below
from seg2any.layout.images import read_colors, read_mask
from seg2any.layout.npz import read_npz, write_npz
from seg2any.layout.polygons import check_work, draw_polygons
from seg2any.layout.rle import decode_rle

__all__ = ["decode_rle", "find_layouts", "read_layout", "write_layout"]


def read_layout(path: Path, snap_colors: bool | None = None) -> LayoutParts:
    """Read a layout from NAME.json, NAME.png, NAME.npz or a folder with one JSON.

    A NAME.png needs its NAME.json beside it. NAME.json#ID is an image of a COCO file of several.

    Raises LayoutError, one line that names the file, the field and the fix.
    """
    try:
        if path.is_dir():
            return _read_json(only_json(path), path.resolve().name, snap_colors)
        file, id = split_reference(path)
        if not file.is_file():
            raise LayoutError(f"{path}: no such file; give a layout's .json, .png or .npz, or a folder")
    except OSError as error:
        raise LayoutError(f"{path}: cannot be opened ({error.strerror}); check the path and its permissions") from error
    if id is not None:
        collection = open_collection(file)
        return _read_json(path, collection.names.get(id, id) if collection else id, snap_colors)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    if path.suffix.lower() == ".json":
        return _read_json(path, path.stem, snap_colors)
    if path.suffix.lower() in SUFFIXES:
        annotation = beside(path, (".json",))
        if not annotation.is_file():
            raise LayoutError(f"{path}: {annotation.name}, with the captions, is missing; put it beside the picture")
        return _read_json(annotation, path.stem, snap_colors)
    raise LayoutError(f"{path}: is not a layout; give a .json, .png or .npz file")


def write_layout(layout: LayoutParts, path: Path) -> None:
    """Write NAME.npz, or NAME.png and NAME.json.

    Raises LayoutError for masks that a colour map cannot hold.
    """
    if path.suffix.lower() == ".npz":
        return write_npz(layout, path)
    if path.suffix.lower() not in (".json", ".png"):
        raise LayoutError(f"{path}: has no suffix of a layout; write .json (with .png) or .npz")
    colors = region_colors(len(layout.masks))
    write_color_map(layout.masks, colors, path.with_suffix(".png"))
    write_annotation(layout, colors, path.with_suffix(".json"))


def _read_json(path: Path, name: str, snap_colors: bool | None) -> LayoutParts:
    annotation = read_annotation(path)
    masks: list[np.ndarray | None] = [None] * len(annotation.regions)
    notes: tuple[str, ...] = ()
    colored = [n for n, region in enumerate(annotation.regions) if region.color is not None]
    if colored:
        regions = [annotation.regions[n] for n in colored]
        found, notes = read_color_map(beside(path, SUFFIXES), regions, snap_colors)
        for n, mask in zip(colored, found, strict=True):
            masks[n] = mask
    numbered = [n for n, region in enumerate(annotation.regions) if region.segment is not None]
    if numbered:
        picture = panoptic_picture(split_reference(path)[0], annotation.panoptic)
        segments = tuple(annotation.regions[n] for n in numbered)
        for n, mask in zip(numbered, read_segments(read_colors(picture)[0], picture, segments), strict=True):
            masks[n] = mask
    if annotation.size is not None:
        polygons = [region.segmentation for region in annotation.regions if isinstance(region.segmentation, list)]
        check_work(str(path), [polygon for several in polygons for polygon in several], annotation.size)
    pictures = sum(region.mask is not None for region in annotation.regions)
    for n, region in enumerate(annotation.regions):
        if masks[n] is None:
            masks[n] = _read_region(region, path, annotation.size)
        check_mask_shape(str(path), (len(masks), *masks[n].shape))
        if region.mask is not None:
            check_pictures(str(path), pictures, masks[n].shape)
        compare_with_mask(region, masks[n])
    return LayoutParts(
        _stack(masks, annotation) if masks else np.zeros((0, *_size_without_regions(path, annotation)), bool),
        annotation.texts,
        annotation.caption,
        annotation.seed,
        name,
        None if annotation.scores is None else np.array(annotation.scores, np.float32),
        annotation.source,
        annotation.overlap,
        colors=tuple(region.color for region in annotation.regions) if colored and len(colored) == len(masks) else None,
        notes=notes,
    )


def _read_region(region: Region, path: Path, size: tuple[int, int] | None) -> np.ndarray:
    if region.mask is not None:
        return read_mask(picture_below(path, region.mask, f"{region.where}: mask"))
    if isinstance(region.segmentation, list):
        if size is None:
            raise LayoutError(f"{region.where}: polygons need the size of the image; add its width and height")
        check_mask_shape(str(path), (1, *size))
        return draw_polygons(region.where, region.segmentation, size)
    return decode_rle(region.where, region.segmentation)


def _size_without_regions(path: Path, annotation: Annotation) -> tuple[int, int]:
    """Return (H, W) of a layout of background only: as the JSON says, else that of its colour map."""
    height, width = annotation.size or read_colors(beside(path, SUFFIXES))[0].shape[:2]
    check_mask_shape(str(path), (0, height, width))
    return height, width


def _stack(masks: list[np.ndarray], annotation: Annotation) -> np.ndarray:
    for mask, region in zip(masks, annotation.regions, strict=True):
        if mask.shape != masks[0].shape:
            (height, width), (expected_height, expected_width) = mask.shape, masks[0].shape
            raise LayoutError(
                f"{region.where}: mask is {width}x{height} but that of {annotation.regions[0].field} is "
                f"{expected_width}x{expected_height}; save all masks in one size"
            )
    if annotation.size not in (None, masks[0].shape):
        (height, width), (said_height, said_width) = masks[0].shape, annotation.size
        hint = "height and width are exchanged" if masks[0].shape == annotation.size[::-1] else "correct one of them"
        raise LayoutError(
            f"{annotation.regions[0].where}: mask is {width}x{height}, but the image {said_width}x{said_height}; {hint}"
        )
    return np.stack(masks)
