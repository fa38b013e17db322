"""Photos with masks of SA-1B for `annotate`: good ones, and one violation of every rule, planted by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.annotate.draft import Draft
from tests.synthetic_data import write_sa1b_json

SIZE = (240, 320)
LEAST = ("--min_side", "200", "--max_side", "600", "--max_aspect", "2")


def rectangle(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


GOOD = (rectangle(10, 10, 100, 100), rectangle(120, 40, 230, 200), rectangle(20, 210, 220, 310))
NESTED = rectangle(20, 20, 60, 60)  # all of it in the first
MOSTLY_NESTED = rectangle(60, 20, 90, 105)  # 80 of 85 columns in the first
HALF_NESTED = rectangle(60, 60, 90, 140)  # 40 of 80 columns in the first
SMALL = rectangle(0, 150, 20, 180)  # 600 of 76,800 pixels: 0.8 %
LARGE_ENOUGH = rectangle(0, 150, 26, 180)  # 780 pixels: 1.02 %


def stripes(count: int) -> tuple[np.ndarray, ...]:
    return tuple(rectangle(10 * n, 0, 10 * n + 10, 320) for n in range(count))


def write_photo(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BILINEAR).save(path, quality=95)


def write_pair(folder: Path, name: str, seed: int, masks: tuple[np.ndarray, ...], first_id: int = 100) -> None:
    """Write NAME.jpg and NAME.json; the masks have the ids `first_id` and so on."""
    size = masks[0].shape if masks else SIZE
    write_photo(folder / f"{name}.jpg", seed, size)
    stack = np.stack(masks) if masks else np.zeros((0, *SIZE), bool)
    write_sa1b_json(folder / f"{name}.json", f"{name}_1", stack, range(first_id, first_id + len(masks)))


def plant(folder: Path, good: int = 4) -> Mapping[str, tuple[str, str]]:
    """Write good photos good_0.jpg .., and a violation of each rule; return photo -> (state, by) of the violations."""
    for number in range(good):
        write_pair(folder, f"good_{number}", number, GOOD)
    for number, (name, size) in enumerate({"small": (199, 300), "large": (400, 601), "long": (210, 421)}.items()):
        write_pair(folder, name, 50 + number, (rectangle(0, 0, 100, 100, size),))
    image = Image.open(folder / "good_0.jpg")
    image.resize((280, 210), Image.Resampling.LANCZOS).save(folder / "copy.jpg", quality=60)
    write_sa1b_json(folder / "copy.json", "copy_1", np.stack([rectangle(0, 0, 100, 100, (210, 280))]), [1])
    write_pair(folder, "masks_none", 60, ())
    write_pair(folder, "masks_small", 61, (SMALL,))
    write_pair(folder, "masks_21", 62, stripes(21))
    write_pair(folder, "masks_20", 63, stripes(20))
    write_pair(folder, "nested", 64, (NESTED, GOOD[0], MOSTLY_NESTED, HALF_NESTED, SMALL, LARGE_ENOUGH))
    write_pair(folder, "no_json", 65, GOOD)
    (folder / "no_json.json").unlink()
    write_pair(folder, "bad_json", 66, GOOD)
    (folder / "bad_json.json").write_text((folder / "bad_json.json").read_text()[:200])
    write_pair(folder, "cut_off", 67, GOOD)
    (folder / "cut_off.jpg").write_bytes((folder / "cut_off.jpg").read_bytes()[:900])
    return {
        "small.jpg": ("dropped", "min_side"),
        "large.jpg": ("dropped", "max_side"),
        "long.jpg": ("dropped", "max_aspect"),
        "copy.jpg": ("dropped", "hash_distance"),
        "masks_none.jpg": ("dropped", "min_masks"),
        "masks_small.jpg": ("dropped", "min_masks"),
        "masks_21.jpg": ("dropped", "max_masks"),
        "no_json.jpg": ("failed", "masks"),
        "bad_json.jpg": ("failed", "masks"),
        "cut_off.jpg": ("failed", "look"),
    }


def write_captions(path: Path, folder: Path) -> Path:
    """Write a caption for every mask of every JSON in a folder."""
    lines = []
    for document in sorted(folder.glob("*.json")):
        try:
            entries = json.loads(document.read_text())["annotations"]
        except ValueError:
            continue
        regions = {str(entry["id"]): f"mask {entry['id']} of {document.stem}" for entry in entries}
        lines.append({"image": f"{document.stem}.jpg", "caption": f"the photo {document.stem}", "regions": regions})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def slow_stage(folder: Path, seconds: float) -> Callable[[Draft], None]:
    """Open a stage that takes time, and that notes in files where it begins and ends."""
    import ray

    node = ray.get_runtime_context().get_node_id()

    def work(draft: Draft) -> None:
        begun = folder / f"{node}-{draft.photo.name}"
        begun.with_suffix(".begun").touch()
        time.sleep(seconds)
        begun.with_suffix(".ended").touch()

    return work
