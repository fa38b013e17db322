"""Find and open the data that recorded runs read.

Folders are found by what they hold: a golden set may name them as it likes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from seg2any.data.catalog import data_set_name, open_data_set
from seg2any.data.dataset import DataSet
from seg2any.data.left_out import LeftOutWarning
from seg2any.system.errors import UserError

LABEL_MAPS = ("ade20k", "coco_stuff")
PATHS = ("image_root", "segm_root", "seg_caption_path")  # parameters that name files or folders


def data_sets(root: Path) -> list[Path]:
    """List the folders of recorded data sets, which are label maps."""
    return sorted(path.parent for path in root.glob("contour/*/items.json"))


def items(folder: Path) -> list[dict]:
    """Return the recorded samples of a data set's folder."""
    return json.loads((folder / "items.json").read_text())["items"]


def positions(data: DataSet) -> dict[str, int]:
    """Return the position of every sample by its key, which is the image's name without its ending."""
    return {data.key(n): n for n in range(len(data))}


@cache
def label_maps(folder: Path) -> DataSet:
    """Open a recorded data set with the class that gives its recorded captions.

    Raises AssertionError if no class of label maps does.
    """
    recorded = items(folder)
    names = [item["image_name"] for item in recorded]
    captions = [item["regional_captions"] for item in recorded]
    for name in LABEL_MAPS:
        data = _open(name, {"image_root": str(folder / "images"), "segm_root": str(folder / "segm")})
        if data is not None and _captions(data, names) == captions:
            return data
    raise AssertionError(f"{folder}: none of {', '.join(LABEL_MAPS)} gives the recorded captions")


def training_data(root: Path, index: dict) -> tuple[DataSet, dict]:
    """Return the data set that a recorded training run read, and its parameters with existing paths.

    Of all folders with the files that the config names, it is the one that gives the recorded captions.

    Raises AssertionError if there is none.
    """
    section = index["cfg"]["data"]["train"]
    name = data_set_name(section.get("type"), section.get("target"))
    homes = sorted(path for part in ("contour", "train") for path in (root / part).glob("*/"))
    for params in filter(None, (_moved(section["params"], home) for home in homes)):
        data = _open(name, params)
        if data is not None and _captions(data, index["image_names"]) == index["regional_captions"]:
            return data, params
    raise AssertionError(f"{root}: no folder of {name} gives the recorded captions of {index['image_names']}")


def _open(name: str, params: dict) -> DataSet | None:
    """Open a data set; None if it cannot be read as such a one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        try:
            return open_data_set(name, dict(params))
        except UserError:
            return None


def _captions(data: DataSet, image_names: Iterable[str]) -> list[list[str]] | None:
    """Return the captions of the regions of every image; None if one is missing."""
    known, stems = positions(data), [Path(name).stem for name in image_names]
    if not known.keys() >= set(stems):
        return None
    return [list(data.annotation(known[stem]).captions) for stem in stems]


def _moved(params: dict, home: Path) -> dict | None:
    """Return `params` with paths in `home`, or naming `home` itself; None if one is not there."""
    moved = dict(params)
    for key in params.keys() & set(PATHS):
        name = Path(params[key]).name
        path = home / name if (home / name).exists() else home
        if path.name != name:
            return None
        moved[key] = str(path)
    return moved
