"""Find the scale of a LoRA, alpha / rank, wherever its trainer wrote alpha.

In this order: beside the weights, in the file's metadata (peft's configuration or kohya's numbers), in peft's
adapter_config.json, on our card; a file without any is scaled by 1, as in diffusers.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.utils.other import get_pattern_key

from seg2any.adapters.card import AdapterCard
from seg2any.adapters.pairs import Pair
from seg2any.system.errors import UserError, shown
from seg2any.system.json_text import parse_json

PREFIX = "transformer."
PEFT_FILE = "adapter_config.json"
MOST_ALPHA = 1e6
NAME = re.compile(r"\^?[\w.\\]{1,200}\$?")  # of a layer in peft's patterns, perhaps with its ends and escaped dots
NUMBERS = ("ss_network_alpha", "network_alpha", "lora_alpha")  # in the metadata of kohya and others


def peft_config(metadata: Mapping[str, str], file: Path) -> dict[str, Any] | None:
    """Read peft's configuration of the transformer's adapter: from the metadata, or from the file beside the weights.

    It comes from a stranger: of its values, only checked numbers are used. Raises UserError for a damaged one, for
    numbers that are none, and for DoRA.
    """
    where, text = file, metadata.get(LORA_ADAPTER_METADATA_KEY)
    if text is None:
        where = file.parent / PEFT_FILE
        text = where.read_bytes() if where.is_file() else None
    if text is None:
        return None
    try:
        told = parse_json(text)
        if not isinstance(told, dict):
            raise ValueError("it holds no JSON object")
        config = {key.removeprefix(PREFIX): value for key, value in told.items() if not key.startswith("text_encoder")}
        _check_numbers(config)
    except ValueError as error:
        raise UserError(
            f"{where}: {LORA_ADAPTER_METADATA_KEY} in its metadata is damaged ({error}); copy the file again"
            if where == file
            else f"{where}: is damaged ({error}); copy it again"
        ) from error
    if config.get("use_dora"):
        raise UserError(f"{where}: says use_dora, but only plain LoRA can be read; convert it to LoRA")
    return config


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an alpha or a dropout that is no usable number, and for layers named by an expression."""
    pattern = config.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"alpha_pattern is {shown(pattern)}")
    if wrong := next((key for key in pattern if not NAME.fullmatch(key)), None):  # some expressions match for hours
        raise ValueError(f"alpha_pattern names {shown(wrong)}, which is no layer")
    for alpha in (*pattern.values(), config.get("lora_alpha", 1)):
        if not _is_alpha(alpha):
            raise ValueError(f"alpha is {shown(alpha)}")
    rank = config.get("r", 1)
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise ValueError(f"r is {shown(rank)}")
    dropout = config.get("lora_dropout", 0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"lora_dropout is {shown(dropout)}")


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_ALPHA


def scales_of(
    pairs: Mapping[str, Pair], metadata: Mapping[str, str], config: Mapping[str, Any] | None, card: AdapterCard
) -> dict[str, float]:
    """Return the factor of every layer's product up @ down."""
    number = next((metadata[name] for name in NUMBERS if name in metadata), None)
    return {layer: _scale(layer, pair, number, config or {}, card) for layer, pair in pairs.items()}


def _scale(layer: str, pair: Pair, number: str | None, config: Mapping[str, Any], card: AdapterCard) -> float:
    if pair.alpha is not None:
        return pair.alpha / pair.file_rank
    if "lora_alpha" in config:
        pattern = config.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(pattern, layer), config["lora_alpha"])
        return alpha / (math.sqrt(pair.file_rank) if config.get("use_rslora") else pair.file_rank)
    if number is not None and _is_number(number):
        return float(number) / pair.file_rank
    return 1.0 if card.assumed else card.alpha / card.rank


def _is_number(text: str) -> bool:
    try:
        return _is_alpha(float(text))
    except ValueError:
        return False


def warn_of_card(scales: Mapping[str, float], pairs: Mapping[str, Pair], card: AdapterCard, file: Path) -> None:
    """Warn if the card says another rank or scale than the file, which counts."""
    if card.assumed:
        return
    rank = Counter(pair.rank for pair in pairs.values()).most_common(1)[0][0]
    scale = Counter(scales.values()).most_common(1)[0][0]
    if rank != card.rank or not math.isclose(scale, card.alpha / card.rank, rel_tol=1e-3):
        warnings.warn(
            f"{file}: has rank {rank} and alpha {scale * rank:g}, but its card says rank {card.rank} and alpha "
            f"{card.alpha:g}; the file counts",
            stacklevel=5,
        )


def loadable_config(
    pairs: Mapping[str, Pair], scales: Mapping[str, float], targets: Sequence[str] | str, dropout: float = 0.0
) -> dict:
    """Return the peft configuration that loads these pairs with these scales, as diffusers keeps it.

    targets  names of the layers as in peft
    dropout  in further training
    """
    ranks = {layer: pair.rank for layer, pair in pairs.items()}
    alphas = {layer: scales[layer] * pair.rank for layer, pair in pairs.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        target_modules=targets,
        lora_dropout=dropout,
        rank_pattern={f"^{layer}": value for layer, value in ranks.items() if value != rank},
        alpha_pattern={f"^{layer}": value for layer, value in alphas.items() if value != alpha},
    )
    return {PREFIX + key: value for key, value in config.to_dict().items()}
