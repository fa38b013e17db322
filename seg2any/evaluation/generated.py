"""A folder of generated images: group_0, group_1 ... with one image per sample in each, and run.json, which says how.

Group k holds the k-th image of every sample, as the published evaluation has it. Everything that measures images
reads the folder through `Generated`, so that images and samples cannot be paired wrongly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import DataSet
from seg2any.generate.recipe import differences
from seg2any.layout.checks import MAX_SEED
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

RUN_FILE = "run.json"
SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
CIRCUMSTANCES = ("samples", "commit", "machine")  # what two runs that fill one folder may differ in


def image_seed(seed: int, key: str, number: int) -> int:
    """The seed of image `number` of sample `key`: of nothing else, so neither of its neighbours nor of who makes it."""
    digest = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & MAX_SEED


def image_path(folder: Path, group: int, key: str, image_format: str) -> Path:
    """Where an image lies. Keys may hold folders, but none that lead out of the group."""
    path = folder / f"group_{group}" / f"{key}{SUFFIXES[image_format]}"
    if ".." in path.parts or Path(key).is_absolute():
        raise UserError(f"sample {key!r}: is no name for a file; rename it in the data set")
    return path


@dataclass(frozen=True)
class Generated:
    """A folder of images and the run that made it; `run` is the content of run.json."""

    folder: Path
    run: dict

    @classmethod
    def read(cls, folder: Path) -> Generated:
        """Raises UserError if there is no run in `folder`."""
        path = folder / RUN_FILE
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            missing = {"data", "samples", "groups", "format", "size", "recipe"} - run.keys()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; make the images with eval/generate_image.py first") from None
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); generate into another folder") from error
        if missing:
            raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; generate into another folder")
        return cls(folder, run)

    @property
    def groups(self) -> int:
        """How many images there are of every sample."""
        return self.run["groups"]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        height, width = self.run["size"]
        return height, width

    def path(self, group: int, key: str) -> Path:
        """Of the image of a sample, `group` counted from 0."""
        return image_path(self.folder, group, key, self.run["format"])

    def open_data(self) -> DataSet:
        """The data set that the images were made for. Raises UserError if it is another one by now."""
        told = self.run["data"]
        data = open_data_set(told["type"], told["params"])
        if data.fingerprint() != told["fingerprint"]:
            raise UserError(f"{self.folder / RUN_FILE}: data set {told['type']} has changed since; generate again")
        return data

    def keys(self, data: DataSet) -> list[str]:
        """Of the samples that have images, in the data set's order."""
        return [data.key(index) for index in range(self.run["samples"])]

    def check_complete(self, data: DataSet) -> None:
        """Raise UserError if images are missing: a mean over those that are there would be of another benchmark."""
        paths = [self.path(group, key) for key in self.keys(data) for group in range(self.groups)]
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise UserError(f"{missing[0]}: is missing, and {len(missing) - 1} more; finish the generation first")

    def images(self, group: int, data: DataSet) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] of every sample, in order."""
        for key in self.keys(data):
            yield read_image(self.path(group, key))


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]. Raises UserError for a file that is not whole."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and generate again") from error


def write_run(folder: Path, run: dict, overwrite: bool) -> None:
    """Note `run` in `folder`. Raises UserError if the folder belongs to another run."""
    path = folder / RUN_FILE
    if path.exists() and not overwrite:
        other = differences(_essential(Generated.read(folder).run), _essential(run))
        if other:
            raise UserError(f"{path}: was made with another {', '.join(other[:4])}; use --overwrite or another folder")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def discard_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left half-written. To be called before any other writes."""
    for path in folder.rglob(".*.tmp.*"):
        path.unlink(missing_ok=True)


def _essential(run: dict) -> dict:
    """The run as `differences` compares recipes, which has its own list of circumstances."""
    kept = {key: value for key, value in run.items() if key not in (*CIRCUMSTANCES, "recipe")}
    return {**kept, **run["recipe"]}
