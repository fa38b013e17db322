"""Make an image again from its recipe, and compare the two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seg2any.attention.processor import kernels_of
from seg2any.attention.settings import NAMES, ConditionSettings
from seg2any.generate.choices import LIBRARIES
from seg2any.generate.made import FLAGS
from seg2any.generate.model import known_adapter, known_model
from seg2any.generate.options import Options
from seg2any.generate.recipe import MADE, save_image
from seg2any.generate.recorded import Recorded
from seg2any.generate.session import ImageOptions, Loading, Session
from seg2any.layout import Layout
from seg2any.layout.images import load_image
from seg2any.system.device import choose_device
from seg2any.system.errors import UserError, shown
from seg2any.system.provenance import machine_name, versions
from seg2any.system.shipped import demo_folder

FLUX = Options().model


@dataclass(frozen=True)
class Places:
    """Where model and adapter lie now; None: where the recipe says."""

    model: str | None = None
    base_parts: str | None = None
    adapter: Path | None = None
    device: str | None = None


def replay(recorded: Recorded, layouts: Mapping[str, Layout], places: Places) -> int:
    """Write the image again beside the old one and print how they compare; return 0 if they are equal, else 1.

    layouts  by digest; if one of the batch is missing, the image is made alone

    Raises UserError if the model or the adapter are missing or others than those of the recipe.
    """
    recipe, made = recorded.recipe, recorded.made
    notes = []
    if any(member.digest not in layouts for member in recorded.members):
        notes.append(f"layouts of its batch of {len(recorded.members)} are missing, so it is made alone")
        recorded = recorded.alone()
    model, adapter = _model(recorded, places), _adapter(recorded, places)
    device = _device(recipe.get("device"), places.device)
    dtype = getattr(torch, recipe["weight_dtype"])
    notes += [*_differences(recorded, device)]
    flags = {name: made[name] for name in FLAGS if name in made}
    loading = Loading(adapter, base_parts=_parts(recipe, places), **{"memory": _memory(recipe), **flags})
    session = Session.open(model, dtype, device, loading)
    sampling = ImageOptions(
        ConditionSettings(**{name: value for name, value in recipe["settings"].items() if name in NAMES}),
        *(recipe[name] for name in ("num_inference_steps", "guidance_scale")),
        *recipe["size"],
        recipe.get("step_cache", "none"),
    )
    members = recorded.members
    images = session.images_quietly([layouts[one.digest] for one in members], sampling, seeds=[m.seed for m in members])
    path = beside(recorded.image)
    save_image(images[recorded.place], _told(recipe, device), path)
    return compare(recorded.image, path, notes)


def compare(old: Path, new: Path, notes: Sequence[str]) -> int:
    """Print whether two images have equal pixels, with notes on what differs; return 0 if they have, else 1."""
    before, after = (np.asarray(load_image(path).convert("RGB")).astype(int) for path in (old, new))
    for note in notes:
        print(f"note: {note}")
    if before.shape != after.shape:
        print(f"{new}: is {after.shape[1]}x{after.shape[0]}, and {old} {before.shape[1]}x{before.shape[0]}")
        return 1
    off = np.abs(before - after).max(axis=2)
    if not off.any():
        print(f"{new}: every pixel equals that of {old}")
        return 0
    why = "" if notes else "; nothing that the recipe records is different here"
    print(f"{new}: {(off > 0).mean():.1%} of the pixels differ from {old}, by up to {off.max()} of 255{why}")
    return 1


def beside(image: Path) -> Path:
    """Return the first free name beside an image: NAME_replay.png, then NAME_replay_2.png."""
    number = 1
    while True:
        path = image.with_name(f"{image.stem}_replay{f'_{number}' if number > 1 else ''}{image.suffix}")
        if not path.exists():
            return path
        number += 1


def _model(recorded: Recorded, places: Places) -> str:
    """Return the model of the recipe. Raises UserError if it is not here, or another one."""
    about = recorded.recipe["model"]
    if "path" not in about:
        name = places.model or about.get("id")
        if places.model is None and name != FLUX:  # an image is no reason to download things
            told = f"the image names the model {shown(name)}"
            raise UserError(f"{told}; allow it by --pretrained_model_name_or_path {shown(name)}")
        return name
    parts = _parts(recorded.recipe, places)

    def is_same(path: Path) -> bool:
        return "fingerprint" not in about or known_model(str(path), parts).get("fingerprint") == about["fingerprint"]

    asked = None if places.model is None else Path(places.model)
    return str(_found("--pretrained_model_name_or_path", about["path"], asked, recorded.image, is_same))


def _adapter(recorded: Recorded, places: Places) -> Path | None:
    """Return the adapters of the recipe, None without. Raises UserError if they are not here, or others."""
    about = recorded.recipe.get("adapter")
    if not about:
        return None

    def is_same(folder: Path) -> bool:
        return folder.is_dir() and known_adapter(folder)["sha256"] == about["sha256"]

    return _found("--lora_ckpt_path", about["path"], places.adapter, recorded.image, is_same)


def _found(flag: str, name: str, asked: Path | None, image: Path, is_same: Callable[[Path], bool]) -> Path:
    """Find weights by the name in a recipe: as asked, else around the image or the current folder, or as shipped.

    Raises UserError if there are none of this name, or only others.
    """
    places = [asked] if asked else dict.fromkeys(_likely(Path(name).name, image))
    present = [place for place in places if place.exists()]
    if same := next((place for place in present if is_same(place)), None):
        return same
    if present:
        raise UserError(f"{flag} {present[0]}: has other weights than the image was made with; give its own")
    raise UserError(f"{shown(str(asked or name))} is not here; say where it is by {flag}")


def _likely(name: str, image: Path) -> Iterator[Path]:
    for root in (Path.cwd(), image.absolute().parent, image.absolute().parent.parent):
        yield root / name
        yield from sorted(root.glob(f"*/{name}"))
    with contextlib.suppress(UserError):
        yield demo_folder() / name


def _parts(recipe: Mapping[str, Any], places: Places) -> str | None:
    """Return where the other parts of a model in one file lie; the recipe tells of hub ids only."""
    return places.base_parts or recipe["model"].get("parts")


def _device(recorded: str | None, asked: str | None) -> torch.device:
    """Choose the device: as asked, else the recipe's kind if it is here, else the best one."""
    if asked is None and recorded is not None:
        try:
            return choose_device(recorded)
        except UserError:
            return choose_device(None)
    return choose_device(asked)


def _memory(recipe: Mapping[str, Any]) -> str:
    return recipe.get("quantization", "full")


def _differences(recorded: Recorded, device: torch.device) -> Iterator[str]:
    """Describe what is different on this machine, a line each."""
    recipe, made, now = recorded.recipe, recorded.made, versions(LIBRARIES)
    for name, before in recipe.get("versions", {}).items():
        if now.get(name) != before:
            yield f"{name} is {now.get(name, 'missing')} here, and was {before}"
    pairs = [
        ("device", recipe.get("device"), device.type),
        ("attention", recipe.get("attention_kernels"), kernels_of(device)),
        ("processor", made.get("processor"), machine_name(device)),
        ("threads", made.get("threads"), torch.get_num_threads() if device.type == "cpu" else None),
    ]
    yield from (f"{name}: {after} here, {old} then" for name, old, after in pairs if old is not None and old != after)
    if not made:
        yield "the recipe is of an older version, which did not record threads and batch"


def _told(recipe: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the recipe with the circumstances of this machine."""
    here = {"device": device.type, "attention_kernels": kernels_of(device), "versions": versions(LIBRARIES)}
    made = {**recipe.get(MADE, {}), "processor": machine_name(device)}
    return {**recipe, **here, MADE: {**made, "threads": torch.get_num_threads()} if device.type == "cpu" else made}
