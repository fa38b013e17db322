"""Save a pipeline with its adapters and load it again, whether or not `default` is folded into its weights.

<folder>/transformer/      weights under stock names; if `default` was added to them, the config holds its factor
<folder>/adapters/         `default`, `cond` and their card in the usual format; condition rows need both
<folder>/model_index.json  names stock classes, and under INDEX_KEY the adapters with their weights
<folder>/pipeline.py       the class for `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, ...)`

Stock diffusers loads the folder as FLUX, a folded one as a FLUX that behaves like FLUX with `default`, and logs that it
leaves out INDEX_KEY.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft.tuners.lora import LoraLayer

from seg2any.adapters.card import AdapterCard
from seg2any.adapters.files import read_adapters, save_adapters
from seg2any.adapters.fold import FOLDED_KEY, folded_scale, is_folded, mark_folded
from seg2any.adapters.routing import COND, DEFAULT
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.system.json_text import parse_json

ADAPTERS = "adapters"
MOST_WEIGHT = 1e6  # of an adapter; beyond all use
INDEX, INDEX_KEY = "model_index.json", "seg2any"
HOW = (
    "call Seg2AnyPipeline.from_pretrained(folder), or DiffusionPipeline.from_pretrained(folder, "
    "custom_pipeline=folder, trust_remote_code=True)"
)
PIPELINE_FILE = '''"""Load this folder with its adapters, as the custom_pipeline of DiffusionPipeline."""

from seg2any.generate.saved import SavedPipeline  # noqa: F401
'''


def without_adapters(transformer: Seg2AnyTransformer2DModel) -> FluxTransformer2DModel:
    """Build the transformer to save: stock class, stock names, shared weights, no adapters.

    Its config says whether the weights include `default`. Raises UserError for offloaded or quantised weights, and for
    fused adapters: the saved model would not know that they are in its weights and would apply them to condition rows.
    """
    if fused := sorted(_fused(transformer)):
        raise UserError(
            f"{', '.join(fused)}: fused into the weights, but the model is saved without adapters; call unfuse_lora() "
            "first, and load them again on top of the saved model"
        )
    state = {key: value for key, value in transformer.state_dict().items() if ".lora_" not in key}
    weights = {key.replace(".base_layer.", "."): value for key, value in state.items()}
    if any(value.is_meta for value in weights.values()):
        raise UserError("save_pretrained: the weights are offloaded; save the model before you turn on offloading")
    with torch.device("meta"):
        config = {key: value for key, value in transformer.config.items() if key != FOLDED_KEY}
        plain = FluxTransformer2DModel.from_config(config)
    try:
        plain.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError("save_pretrained: the transformer is quantised; save before you quantise") from error
    if is_folded(transformer):
        plain.register_to_config(**{FOLDED_KEY: folded_scale(transformer)})
    return plain


def _fused(transformer: FluxTransformer2DModel) -> set[str]:
    """Return the adapters that `fuse_lora` added to weights which also have our adapters."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    has_ours = {DEFAULT, COND} & {*getattr(transformer, "peft_config", ())}
    return {name for layer in layers for name in layer.merged_adapters} if has_ours else set()


def save_with_adapters(pipeline: FluxPipeline, folder: str, card: AdapterCard | None, **options: Any) -> None:
    """Save a pipeline whose transformer has adapters.

    options  of diffusers' `save_pretrained`

    Warns of further LoRAs, which are not saved. Raises UserError without a card, for adapters with several weights, and
    as `without_adapters`.
    """
    transformer = pipeline.transformer
    plain = FluxPipeline(**{**pipeline.components, "transformer": without_adapters(transformer)})
    if others := sorted({*transformer.peft_config} - {DEFAULT, COND}):
        warnings.warn(f"{', '.join(others)}: not saved; load again beside the saved model", stacklevel=3)
    weights = _weights(transformer)
    if DEFAULT in weights:
        if card is None:
            raise UserError(
                f"{folder}: the adapters have no card that says how they were trained; load them by load_adapters, "
                "or set pipe.card = AdapterCard(...)"
            )
        save_adapters(transformer, Path(folder) / ADAPTERS, card)
    plain.save_pretrained(folder, **options)
    if DEFAULT in weights:
        with atomic_write(Path(folder) / "pipeline.py") as path:
            path.write_text(PIPELINE_FILE, encoding="utf-8")
    write_index(folder, weights)


def write_index(folder: str | os.PathLike, weights: Mapping[str, float]) -> None:
    """Write into a saved folder's index the stock classes, and the adapters with their weights."""
    file = Path(folder) / INDEX
    index = json.loads(file.read_bytes())
    index |= {"_class_name": FluxPipeline.__name__, "transformer": ["diffusers", FluxTransformer2DModel.__name__]}
    index.pop(INDEX_KEY, None)
    if weights:
        index[INDEX_KEY] = {"adapters": dict(weights), "to_load_them": HOW}
    with atomic_write(file) as path:
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _weights(transformer: FluxTransformer2DModel) -> dict[str, float]:
    """Return the weight of each of our adapters, as `set_adapters` takes it.

    Raises UserError for an adapter whose layers have different ones.
    """
    found: dict[str, set[float]] = {}
    for layer in (module for module in transformer.modules() if isinstance(module, LoraLayer)):
        for name in {DEFAULT, COND} & layer.scaling.keys():
            found.setdefault(name, set()).add(layer.scaling[name] / (layer.lora_alpha[name] / layer.r[name]))
    for name, weights in found.items():
        if max(weights) - min(weights) > 1e-6:
            raise UserError(f"{name}: has several weights, but one is saved; call set_adapters with one weight")
    return {name: max(found[name]) for name in (DEFAULT, COND) if name in found}


def saved_adapters(model: str | os.PathLike) -> Path | None:
    """Return the adapter folder of a pipeline that was saved with adapters; None for other models.

    Reads small files only.
    """
    is_with_adapters = _saved_weights(model) is not None or folded_adapters(model) is not None
    return Path(model) / ADAPTERS if is_with_adapters else None


def folded_adapters(model: str | os.PathLike) -> Path | None:
    """Return the adapter folder of a pipeline that was saved folded; None for other models.

    Reads one small file.
    """
    config = _json(Path(model) / "transformer" / "config.json")
    return Path(model) / ADAPTERS if config.get(FOLDED_KEY) is not None else None


def load_saved(transformer: Seg2AnyTransformer2DModel, folder: str | os.PathLike) -> AdapterCard | None:
    """Load the adapters that a pipeline was saved with, with their weights; mark a folded `default` as folded.

    Returns their card; None for other pipelines and on the meta device, where weights do not exist.

    Raises UserError if the adapter folder is missing or damaged.
    """
    scale, weights = transformer.config.get(FOLDED_KEY), _saved_weights(folder)
    if (scale is None and weights is None) or transformer.device.type == "meta":
        return None
    adapters = Path(folder) / ADAPTERS
    if not adapters.is_dir():
        kind = "folded" if scale is not None else "with adapters"
        raise UserError(f"{folder}: saved {kind}, but the folder {ADAPTERS}/ is missing; copy the whole model")
    card = read_adapters(transformer, adapters)
    for layer in (module for module in transformer.modules() if isinstance(module, LoraLayer)):
        for name, weight in (weights or {}).items():
            if name in layer.scaling and weight != 1:
                layer.set_scale(name, weight)
    if scale is not None:
        mark_folded(transformer, scale)
    return card


def _saved_weights(folder: str | os.PathLike) -> dict[str, float] | None:
    """Read the adapters of a saved pipeline, name -> weight; None if it has none or is no folder.

    Raises UserError for an entry that is not of that form.
    """
    entry = _json(Path(folder) / INDEX).get(INDEX_KEY)
    if entry is None:
        return None
    weights = entry.get("adapters") if isinstance(entry, dict) else None
    if not isinstance(weights, dict) or not all(map(_is_weight, weights.values())):
        raise UserError(f"{Path(folder) / INDEX}: {INDEX_KEY} does not list adapters; save the pipeline again")
    return {name: float(weight) for name, weight in weights.items()}


def _is_weight(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST_WEIGHT  # neither NaN nor too large for a float


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):  # loading the model reports what is wrong with it
        return {}
    return content if isinstance(content, dict) else {}
