"""What the run will use: settings from the adapter and the command line, and what all its recipes share."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import torch

from seg2any.adapters.card import AdapterCard, package_version
from seg2any.attention.settings import CARD_NAMES, ConditionSettings
from seg2any.diffusion.step_cache import STEP_CACHES
from seg2any.generate.memory import check_mode
from seg2any.generate.memory_modes import QUANTISED
from seg2any.generate.model import known_folder, known_model
from seg2any.generate.options import Options
from seg2any.system.errors import UserError

LIBRARIES = ("torch", "diffusers", "transformers", "peft")

# Their hooks, or bitsandbytes' 8-bit products, cut blocks into pieces and are compiled again and again.
NOT_COMPILED = ("group_offload", "int8", *(name for name in STEP_CACHES if name != "none"))


@dataclass(frozen=True)
class Machine:
    """What images are made on and with."""

    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{name} in {self.precision}"

    @property
    def precision(self) -> str:
        """Its name as `--weight_dtype` has it."""
        return str(self.dtype).removeprefix("torch.")


def choose_settings(
    options: Options, card: AdapterCard | None, untold: ConditionSettings | None = None
) -> tuple[ConditionSettings, list[str]]:
    """As the adapter was trained unless the command line says otherwise, and a warning for each such difference.

    untold  how an adapter without a card was trained; None: as the published one for SACap-1M
    """
    trained = ConditionSettings() if card is None else card.condition
    if untold is not None and (card is None or card.assumed):
        trained = untold
    settings = trained.override(options.settings)
    before, after = trained.to_json(), settings.to_json()
    changed = [name for name in CARD_NAMES if after[name] != before[name]]
    if card is None or card.assumed:
        return settings, []
    return settings, [f"{name} is {after[name]}, but the adapter was trained with {before[name]}" for name in changed]


def shared_recipe(options: Options, settings: ConditionSettings, machine: Machine) -> dict:
    """The part of the recipe that all images of a run have in common."""
    adapter = options.lora_ckpt_path
    return {
        "settings": settings.to_json(),
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "model": known_model(options.pretrained_model_name_or_path),
        "adapter": adapter and known_folder(adapter),
        "weight_dtype": machine.precision,
        # only what changes the image, and only if it does: images of a time without these flags stay finished
        **({"quantization": options.memory} if options.memory in QUANTISED else {}),
        **({"step_cache": options.step_cache} if options.step_cache != "none" else {}),
        "device": machine.device.type,
        "versions": {"seg2any": package_version(), **{name: version(name) for name in LIBRARIES}},
    }


def check_modes(options: Options, machine: Machine) -> None:
    """Raise UserError for flags that do not go with the device or with each other."""
    check_mode(options.memory, machine.device, "--memory")
    if options.memory == "group_offload" and options.step_cache != "none":
        raise UserError(
            f"--step_cache {options.step_cache}: leaves out layers that --memory group_offload has sent for"
        )
    if options.compile and machine.device.type == "cpu":
        raise UserError("--compile: on a CPU compiling takes longer than it saves; leave it out")
    for flag, value in (("memory", options.memory), ("step_cache", options.step_cache)):
        if options.compile and value in NOT_COMPILED:
            raise UserError(f"--compile: does not go with --{flag} {value}; leave out one of them")
