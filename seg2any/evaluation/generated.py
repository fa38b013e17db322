"""A folder of generated images and the run that made them.

group_0, group_1 and so on hold one image per sample each; run.json holds the settings. Group k holds the k-th image of
every sample, as in the published evaluation. Everything that measures images reads the folder through `Generated`, so
that images and samples cannot be paired wrongly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import DataSet
from seg2any.generate.recipe import differences
from seg2any.layout.checks import MAX_SEED
from seg2any.layout.images import ImageError, opened_image
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.json_text import parse_json

RUN_FILE = "run.json"
MOST_COUNTED = 10**8  # samples, groups, pixels of a side
SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
CIRCUMSTANCES = ("samples", "commit", "machine")  # fields in which two runs that fill one folder may differ


def image_seed(seed: int, key: str, number: int) -> int:
    """Derive the seed of image `number` of the sample `key`.

    It depends on nothing else, so neither neighbours nor processes change an image.
    """
    digest = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & MAX_SEED


def image_path(folder: Path, group: int, key: str, image_format: str) -> Path:
    """Return the path of an image.

    Keys may hold folders. Raises UserError for a key that leads out of the group.
    """
    path = folder / f"group_{group}" / f"{key}{SUFFIXES[image_format]}"
    if ".." in path.parts or Path(key).is_absolute():
        raise UserError(f"sample {key!r}: the key leads out of the folder; rename it in the data set")
    return path


@dataclass(frozen=True)
class Generated:
    """A folder of images and the run that made it; `run` is the content of run.json."""

    folder: Path
    run: dict

    @classmethod
    def read(cls, folder: Path) -> Generated:
        """Read the run of a folder. Raises UserError if there is none."""
        path = folder / RUN_FILE
        try:
            run = parse_json(path.read_bytes())
            missing = {"data", "samples", "groups", "format", "size", "recipe"} - run.keys()
        except FileNotFoundError:
            raise UserError(
                f"{path}: the file does not exist; make the images with eval/generate_image.py first"
            ) from None
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: the file cannot be read ({error}); generate into another folder") from error
        if missing:
            raise UserError(f"{path}: the file lacks {', '.join(sorted(missing))}; generate into another folder")
        _check_run(run, path)
        return cls(folder, run)

    @property
    def groups(self) -> int:
        """Number of images per sample."""
        return self.run["groups"]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        height, width = self.run["size"]
        return height, width

    def path(self, group: int, key: str) -> Path:
        """Return the path of the sample's image in a group, counted from 0."""
        return image_path(self.folder, group, key, self.run["format"])

    def open_data(self, cache_root: Path | None = None) -> DataSet:
        """Open the data set of the images. Raises UserError if it has changed since.

        cache_root  for what it keeps; where the run kept it does not count: the folder may be a stranger's
        """
        data_set = self.run["data"]
        params = {name: value for name, value in data_set["params"].items() if name != "cache_root"}
        if cache_root is not None:
            params["cache_root"] = cache_root
        data = open_data_set(data_set["type"], params)
        if data.fingerprint() != data_set["fingerprint"]:
            raise UserError(f"{self.folder / RUN_FILE}: data set {data_set['type']} has changed since; generate again")
        return data

    def keys(self, data: DataSet) -> list[str]:
        """List the keys of the samples that have images, in the data set's order."""
        return [data.key(index) for index in range(self.run["samples"])]

    def check_complete(self, data: DataSet) -> None:
        """Raise UserError if an image is missing, because the mean would be of another benchmark."""
        paths = [self.path(group, key) for key in self.keys(data) for group in range(self.groups)]
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise UserError(
                f"{missing[0]}: the image is missing, and {len(missing) - 1} more; finish the generation first"
            )

    def images(self, group: int, data: DataSet) -> Iterator[np.ndarray]:
        """Yield the image uint8 [H, W, 3] of every sample, in order."""
        for key in self.keys(data):
            yield read_image(self.path(group, key))


def _check_run(run: dict, path: Path) -> None:
    """Raise UserError for values of another kind than `write_run` writes."""
    data, size = run["data"], run["size"]
    is_right = (
        isinstance(data, dict)
        and isinstance(data.get("params"), dict)
        and isinstance(data.get("type"), str)
        and isinstance(data.get("fingerprint"), str)
        and isinstance(run["recipe"], dict)
        and run["format"] in [*SUFFIXES]  # a list: the value may be of any kind
        and isinstance(size, list)
        and len(size) == 2
        and all(_is_count(number) for number in (run["samples"], run["groups"], *size))
    )
    if not is_right:
        raise UserError(f"{path}: the file is damaged; generate into another folder")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MOST_COUNTED


def read_image(path: Path) -> np.ndarray:
    """Read an image as uint8 [H, W, 3]. Raises UserError for an incomplete file."""
    try:
        with opened_image(path, "delete it and generate again") as image:
            return np.asarray(image.convert("RGB"))
    except ImageError as error:
        raise UserError(f"{path}: {error}") from error


def write_run(folder: Path, run: dict, overwrite: bool) -> None:
    """Write run.json. Raises UserError if the folder belongs to another run."""
    path = folder / RUN_FILE
    if path.exists() and not overwrite:
        other = differences(_essential(Generated.read(folder).run), _essential(run))
        if other:
            raise UserError(
                f"{path}: the run was made with another {', '.join(other[:4])}; use --overwrite or another folder"
            )
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def discard_leftovers(folder: Path) -> None:
    """Remove half-written files of killed processes; call it before any other process writes."""
    for path in folder.rglob(".*.tmp.*"):
        path.unlink(missing_ok=True)


def _essential(run: dict) -> dict:
    """Flatten the run into the form of a recipe, without its circumstances."""
    kept = {key: value for key, value in run.items() if key not in (*CIRCUMSTANCES, "recipe")}
    return {**kept, **run["recipe"]}
