"""Read the recipe of an image for `replay`, and find the layouts that it names, before torch is imported."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seg2any.attention.settings import NAMES, ConditionSettings
from seg2any.diffusion.step_cache import STEP_CACHES
from seg2any.generate.memory_modes import MEMORY_MODES
from seg2any.generate.recipe import MADE, BrokenImage, read_recipe
from seg2any.layout import Layout
from seg2any.layout.checks import MAX_SEED, LayoutError
from seg2any.system.errors import UserError, shown
from seg2any.system.limits import limits
from seg2any.system.shipped import demo_folder

NEEDED = ("layout", "seed", "size", "settings", "num_inference_steps", "guidance_scale", "model", "weight_dtype")
DTYPES = ("float32", "float16", "bfloat16")
MOST_STEPS = 1000
MOST_FOLDERS = 200  # beside an image that are looked through


@dataclass(frozen=True)
class Member:
    """One image of the batch: its layout by name and digest, and its seed."""

    name: str
    digest: str
    seed: int


@dataclass(frozen=True, eq=False)
class Recorded:
    """An image with its recipe, and the batch it was made in; `place` is its number there."""

    image: Path
    recipe: Mapping[str, Any]
    members: tuple[Member, ...]
    place: int

    @property
    def made(self) -> Mapping[str, Any]:
        """The circumstances; none in images of older versions."""
        return self.recipe.get(MADE, {})

    def alone(self) -> Recorded:
        """Return the same image, as if it had been made in no batch."""
        return replace(self, members=(self.members[self.place],), place=0)


def read_recorded(image: Path) -> Recorded:
    """Read the recipe of an image. Raises UserError for files without one."""
    if not image.is_file():
        raise UserError(f"{image}: no such file; give an image that `seg2any generate` made")
    try:
        recipe = read_recipe(image)
    except BrokenImage:
        raise UserError(f"{image}: is not a whole image; give one that `seg2any generate` made") from None
    if recipe is None:
        raise UserError(f"{image}: holds no recipe; give an image as `seg2any generate` wrote it, not an edited copy")
    if "panel" in recipe:
        raise UserError(f"{image}: is a panel; give the image beside it")
    if lacking := [name for name in NEEDED if name not in recipe]:
        raise UserError(f"{image}: its recipe lacks {', '.join(lacking)}; give an image of `seg2any generate`")
    try:
        _check(recipe)
        made, layout = recipe.get(MADE, {}), recipe["layout"]
        alone = {"name": layout["name"], "sha256": layout["sha256"], "seed": recipe["seed"]}
        members = [Member(str(one["name"]), one["sha256"], int(one["seed"])) for one in made.get("batch", [alone])]
        place = made.get("place", 0)
        if members[place].digest != layout["sha256"]:
            raise ValueError("place")
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        told = f"its recipe is damaged ({shown(str(error), 40)})"
        raise UserError(f"{image}: {told}; give the image as `seg2any generate` wrote it") from None
    return Recorded(image, recipe, tuple(members), place)


def _check(recipe: Mapping[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError for values that no run writes: a recipe comes from outside."""
    adapter = recipe.get("adapter") or {"path": "", "sha256": ""}
    if not all(isinstance(text, str) for text in (*recipe["model"].values(), adapter["path"], adapter["sha256"])):
        raise ValueError("model, adapter")
    numbers = (*recipe["size"], recipe["seed"], recipe["num_inference_steps"])
    if len(recipe["size"]) != 2 or not all(type(number) is int and 0 <= number <= MAX_SEED for number in numbers):
        raise ValueError("size, seed, num_inference_steps")
    if max(recipe["size"]) > limits().pixels ** 0.5 or not 1 <= recipe["num_inference_steps"] <= MOST_STEPS:
        raise ValueError("size, num_inference_steps")
    if not 0 <= float(recipe["guidance_scale"]) < math.inf or recipe["weight_dtype"] not in DTYPES:
        raise ValueError("guidance_scale, weight_dtype")
    ConditionSettings(**{name: value for name, value in recipe["settings"].items() if name in NAMES})
    modes = (recipe.get("quantization", "full"), recipe.get(MADE, {}).get("memory", "full"))
    if not {*modes} <= {*MEMORY_MODES} or recipe.get("step_cache", "none") not in STEP_CACHES:
        raise ValueError("quantization, memory, step_cache")
    switches = [recipe.get(MADE, {}).get(name, False) for name in ("fold", "vae_tiling", "compile")]
    if not all(isinstance(switch, bool) for switch in switches):
        raise ValueError("fold, vae_tiling, compile")


def find_layouts(recorded: Recorded, asked: Path | None) -> dict[str, Layout]:
    """Return the layouts of the batch by digest; those of its neighbours may be missing.

    asked  a layout or a folder of layouts; None: the folders around the image, and the current one

    Raises UserError if the layout of the image itself is missing or has changed.
    """
    wanted, found, others = {member.digest for member in recorded.members}, {}, {}
    own = recorded.members[recorded.place]
    paths = Layout.find(asked) if asked else _likely({member.name for member in recorded.members}, recorded.image)
    for path in paths:
        if wanted <= found.keys():
            break
        for layout in _readings(path):
            if layout.digest() in wanted:
                found[layout.digest()] = _with_overlap(layout, recorded)
                break
            if layout.name == own.name or asked == path:
                others.setdefault(path, layout)
    if own.digest in found:
        return found
    for path, layout in others.items():
        raise UserError(f"{path}: {_change(layout, recorded.recipe['layout'])}; give the old one by --seg_mask_path")
    place = asked or "the folders around the image"
    raise UserError(
        f"layout {shown(own.name)} (sha256 {own.digest[:12]}...) is not in {place}; say where it is by --seg_mask_path"
    )


def _readings(path: Path) -> Iterator[Layout]:
    """Yield a layout as its file says, and with colours snapped, since the image's run may have done so."""
    for snap_colors in (None, False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield Layout.read(path, snap_colors)
            except LayoutError:
                continue


def _likely(names: Iterable[str], image: Path) -> Iterator[Path]:
    """Yield files and folders of these names: around the image, here, one level below each, and among the shipped."""
    roots = dict.fromkeys((image.absolute().parent, image.absolute().parent.parent, Path.cwd()))
    with contextlib.suppress(UserError):  # the small model is not installed
        roots[demo_folder()] = None
    for root in roots:
        below = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        for folder in (root, *below[:MOST_FOLDERS]):
            for name in names:
                if Path(name).name != name:  # a recipe comes from outside: it may not lead elsewhere
                    continue
                candidates = (folder / f"{name}.json", folder / f"{name}.npz", folder / name)
                yield from (
                    path for path in candidates if path.exists() and (path.is_file() or any(path.glob("*.json")))
                )


def _with_overlap(layout: Layout, recorded: Recorded) -> Layout:
    overlap = recorded.recipe["layout"].get("overlap")
    return layout if overlap is None else replace(layout, overlap=overlap)


def _change(layout: Layout, before: Mapping[str, Any]) -> str:
    """Describe how a layout differs from the one that a recipe tells of."""
    captions = list(before.get("captions") or ())
    if layout.caption != before.get("caption"):
        return f"the global caption has changed from {shown(before.get('caption'))}"
    if len(captions) != len(layout.captions):
        return f"has {len(layout.captions)} regions, and the image's layout had {len(captions)}"
    for number, (old, new) in enumerate(zip(captions, layout.captions, strict=True), start=1):
        if old != new:
            return f"the caption of region {number} has changed from {shown(old)} to {shown(new)}"
    return "the masks have changed since the image was made"
