"""Choose device, settings and shared recipe of a run, and advise when memory runs out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from seg2any.adapters.card import AdapterCard
from seg2any.attention.processor import kernels_of
from seg2any.attention.settings import CARD_NAMES, PLAIN, ConditionSettings
from seg2any.diffusion.step_cache import STEP_CACHES
from seg2any.generate.memory import check_mode, next_mode
from seg2any.generate.memory_modes import QUANTISED
from seg2any.generate.model import known_adapter, known_model
from seg2any.generate.options import Options
from seg2any.system.errors import UserError
from seg2any.system.provenance import versions

MEMORY_WORDS = re.compile(r"out of memory|allocate memory|not enough memory", re.IGNORECASE)  # of MPS, CPU, Windows
PLAIN_WORDS = "plain FLUX: only the global captions count, masks and captions of regions do not"
LIBRARIES = ("seg2any", "torch", "diffusers", "transformers", "peft")

FAR = 2  # as in FLUX's own range of sizes around a megapixel

# Their hooks, or bitsandbytes' 8-bit products, cut blocks into pieces and are compiled again and again.
NOT_COMPILED = ("group_offload", "int8", *(name for name in STEP_CACHES if name != "none"))


@dataclass(frozen=True)
class Machine:
    """Device and precision of a run."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{name} in {self.precision}"

    @property
    def precision(self) -> str:
        """The name of the precision, as in `--weight_dtype`."""
        return str(self.dtype).removeprefix("torch.")

    def work(self, to_do: int, finished: int) -> str:
        """Return the first line of a run: how many images, on what, and on a CPU by how many threads."""
        by = f"; threads: {torch.get_num_threads()}" if self.device.type == "cpu" else ""
        return f"{to_do} images to make on {self}, {finished} are there already{by}"


def choose_settings(
    options: Options, card: AdapterCard | None, untold: ConditionSettings | None = None
) -> tuple[ConditionSettings, list[str]]:
    """Choose the adapter's settings, changed by the command line; return a warning for each.

    card    of the adapter; None: there is none, and the model is plain
    untold  settings of an adapter without a card of its own; None: those of the published one for SACap-1M

    To look at layouts alone, regions count even without an adapter.
    """
    without = ConditionSettings() if options.check else PLAIN
    trained = without if card is None else card.condition
    if untold is not None and card is not None and card.assumed:
        trained = untold
    settings = trained.override(options.settings)
    before, after = trained.to_json(), settings.to_json()
    changed = [name for name in CARD_NAMES if after[name] != before[name]]
    if card is None or card.assumed:
        return settings, []
    return settings, [f"{name} is {after[name]}, but the adapter was trained with {before[name]}" for name in changed]


def overlap_remarks(overlaps: Iterable[str | None], card: AdapterCard | None) -> list[str]:
    """Return a warning if regions overlap in another way than in training.

    overlaps  of the layouts, None for those whose regions share no pixel
    """
    trained = card.overlap if card else ""
    others = sorted({overlap for overlap in overlaps if overlap and trained and overlap != trained})
    return [f"overlap is {overlap}, but the adapter was trained with {trained}" for overlap in others]


def size_remarks(sizes: Iterable[tuple[int, int]], card: AdapterCard | None, unit: int) -> list[str]:
    """Return a warning for each image size far from the adapter's training size, with the nearest one that works.

    sizes  of images (H, W) in pixels
    unit   the sides are multiples of it

    Far are more than FAR times the trained pixels, or less than 1 / FAR, and sides of more than FAR times the trained
    one.
    """
    if card is None or card.assumed:
        return []
    side = card.resolution
    far = [(h, w) for h, w in sorted({*sizes}) if not side**2 / FAR <= h * w <= side**2 * FAR or max(h, w) > side * FAR]
    return [
        f"{w}x{h} is far from {side}x{side}, which the adapter was trained with: images fall apart; use "
        f"--width {near[1]} --height {near[0]}"
        for h, w in far
        for near in [_nearest((h, w), side, unit)]
    ]


def _nearest(size: tuple[int, int], side: int, unit: int) -> tuple[int, int]:
    """Return the size (H, W) of about the same shape with about side^2 pixels."""
    ratio = min(max((size[0] / size[1]) ** 0.5, 1 / FAR), FAR)
    return tuple(max(1, round(length / unit)) * unit for length in (side * ratio, side / ratio))


def shared_recipe(options: Options, settings: ConditionSettings, machine: Machine) -> dict:
    """Build the part of the recipe that all images of a run share."""
    adapter = options.lora_ckpt_path
    return {
        "settings": settings.to_json(),
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "model": known_model(options.model, options.base_parts),
        "adapter": adapter and known_adapter(adapter),
        "weight_dtype": machine.precision,
        # only where they change the image, so that images made before these flags existed stay finished
        **({"quantization": options.memory} if options.memory in QUANTISED else {}),
        **({"step_cache": options.step_cache} if options.step_cache != "none" else {}),
        "device": machine.device.type,
        "attention_kernels": kernels_of(machine.device),
        "versions": versions(LIBRARIES),
    }


def check_modes(options: Options, machine: Machine) -> None:
    """Raise UserError for flags that do not go with the device or with each other."""
    check_mode(options.memory, machine.device, "--memory")
    if options.memory == "group_offload" and options.step_cache != "none":
        raise UserError(
            f"--step_cache {options.step_cache}: leaves out layers that --memory group_offload has fetched already"
        )
    if options.compile and machine.device.type == "cpu":
        raise UserError("--compile: on a CPU compiling takes longer than it saves; leave it out")
    for flag, value in (("memory", options.memory), ("step_cache", options.step_cache)):
        if options.compile and value in NOT_COMPILED:
            raise UserError(f"--compile: does not go with --{flag} {value}; leave out one of them")


@contextmanager
def explained_memory(options: Options, settings: ConditionSettings, machine: Machine) -> Iterator[None]:
    """Turn each device's error about memory into a MemoryError with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not MEMORY_WORDS.search(str(error)):
            raise
        advice = [f"--batch_size 1 (now {options.batch_size})"] if options.batch_size > 1 else []
        advice += ["--weight_dtype bf16"] if machine.dtype == torch.float32 else []
        advice += [f"--memory {smaller}"] if (smaller := next_mode(options.memory, machine.device)) else []
        advice += ["a smaller --height and --width"]
        advice += ["--cond_scale_factor 2"] if settings.is_use_cond_token and settings.cond_scale_factor == 1 else []
        advice += ["--device cpu"] if machine.device.type != "cpu" else []
        raise MemoryError(f"out of memory; turn on {', '.join(advice)}") from error
