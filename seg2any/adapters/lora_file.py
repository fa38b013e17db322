"""Read one file of adapter weights, and check which layers it has."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from seg2any.adapters.alpha import PREFIX, loadable_config, peft_config, scales_of, warn_of_card
from seg2any.adapters.card import AdapterCard
from seg2any.adapters.pairs import Pair, read_pairs
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.system.errors import UserError

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
OTHER_NAMES = ("adapter_model.safetensors",)  # peft's


@dataclass(frozen=True, eq=False)
class Lora:
    """The adapter in one file: its pairs by layer, the file's metadata, and peft's configuration if there is one.

    layers  names of all Linear layers of the transformer
    """

    file: Path
    pairs: Mapping[str, Pair]
    metadata: Mapping[str, str]
    config: dict[str, Any] | None
    layers: Sequence[str]

    def weights(self) -> dict[str, Tensor]:
        """Return the weights under diffusers' names."""
        ends = {"lora_A": "down", "lora_B": "up"}
        return {
            f"{PREFIX}{layer}.{end}.weight": getattr(pair, matrix).contiguous()
            for layer, pair in self.pairs.items()
            for end, matrix in ends.items()
        }

    def config_to_load(self, suffixes: Iterable[str], card: AdapterCard) -> dict[str, Any]:
        """Return a new peft configuration with ranks and layers of the tensors and the scale of the file.

        suffixes  names of the adapter's layers, as in peft

        Raises UserError if the metadata contradict the weights.
        """
        ranks = {pair.file_rank for pair in self.pairs.values()}
        said = (self.config or {}).get("r")
        if said is not None and said not in ranks and not self.config.get("rank_pattern"):
            told = f"metadata says rank {said}, the weights have rank {min(ranks)}"
            raise UserError(f"{self.file}: {told}; the file is damaged, copy it again")
        scales = scales_of(self.pairs, self.metadata, self.config, card)
        warn_of_card(scales, self.pairs, card, self.file)
        dropout = (self.config or {}).get("lora_dropout", 0.0)
        suffixes = tuple(suffixes)
        if {*matching(self.layers, suffixes)} == self.pairs.keys():
            return loadable_config(self.pairs, scales, list(suffixes), dropout)
        named = "|".join(layer.replace(".", r"\.") for layer in self.pairs)
        return loadable_config(self.pairs, scales, named, dropout)


def weights_file(folder: Path, name: str) -> Path | None:
    """Return the weights of adapter `name`, None without any. Raises UserError for several unknown files."""
    for usual in (WEIGHTS_FILE, *OTHER_NAMES):
        if (folder / name / usual).is_file():
            return folder / name / usual
    others = sorted((folder / name).glob("*.safetensors"))
    if len(others) > 1:
        raise UserError(f"{folder / name}: holds {len(others)} safetensors files; call one of them {WEIGHTS_FILE}")
    return others[0] if others else None


def read_lora(file: Path, transformer: nn.Module) -> Lora:
    """Read a file of adapters for a diffusers model, under the names of any trainer.

    Warns about weights for text encoders. Raises UserError for a damaged file and for adapters of another model.
    """
    try:
        with safe_open(file, "pt") as opened:
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{file}: is not a complete safetensors file ({error}); copy it again") from error
    pairs, left = read_pairs(weights, transformer, file)
    if left:
        warnings.warn(f"{file}: {len(left)} weights for text encoders are not used, first {left[0]}", stacklevel=4)
    layers = [name for name, layer in transformer.named_modules() if hasattr(layer, "in_features")]
    return Lora(file, pairs, metadata, peft_config(metadata, file), layers)


def matching(layers: Iterable[str], targets: Iterable[str]) -> list[str]:
    """Return the layers whose names end in one of peft's targets."""
    ends = tuple(f".{target}" for target in targets)
    return [layer for layer in layers if f".{layer}".endswith(ends)]


def check_layers(expected: Mapping[str, Sequence[str]], found: Mapping[str, Lora]) -> None:
    """Compare the layers of the adapters with those that adapters are made for.

    expected  peft's targets by adapter

    Warns about layers without weights. Raises UserError if the folders are exchanged, and for layers without weights
    that the file itself names.
    """
    wanted = {name: {*matching(lora.layers, expected[name])} for name, lora in found.items()}
    if COND in found:
        hint = f"are {DEFAULT}/ and {COND}/ exchanged?"
        if elsewhere := sorted(found[COND].pairs.keys() - wanted[COND]):
            layers = f"{len(elsewhere)} layers that condition tokens never pass, first {elsewhere[0]}"
            raise UserError(f"{found[COND].file}: has {layers}; {hint}")
        if found[DEFAULT].pairs.keys() == wanted[COND] != wanted[DEFAULT]:
            raise UserError(f"{found[DEFAULT].file}: has the layers of {COND}; {hint}")
    for name, lora in found.items():
        _check_complete(lora, wanted[name])


def _check_complete(lora: Lora, wanted: set[str]) -> None:
    missing = sorted(wanted - lora.pairs.keys())
    if not missing:
        return
    told = f"{lora.file}: lacks {len(missing)} of the {len(wanted)} layers that adapters have, first {missing[0]}"
    targets = (lora.config or {}).get("target_modules")
    if isinstance(targets, list) and (named := matching(missing, targets)):
        raise UserError(f"{told}, but its metadata names {named[0]}; the file is incomplete, copy it again")
    warnings.warn(f"{told}; these stay as in the base model", stacklevel=5)
