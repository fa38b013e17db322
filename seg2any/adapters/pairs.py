"""Read the weights of a LoRA under the names of any trainer: diffusers, peft, ai-toolkit, kohya, ComfyUI, OneTrainer.

diffusers' own converter of kohya's names is not used: it knows FLUX's width only, loses `x_embedder`, and alpha beside
names that begin with `transformer.`; the tests hold both equal where it works. XLabs' names go through diffusers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers.loaders import FluxLoraLoaderMixin
from torch import Tensor, nn

from seg2any.adapters.flux_names import SWAPPED, original_layers, swap_halves
from seg2any.system.errors import UserError
from seg2any.system.limits import limits

MATRIX = re.compile(
    r"(?P<module>.+?)[._](?P<matrix>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up"
    r"|lora_linear_layer\.down|lora_linear_layer\.up)(?:\.(?!weight$)\w+)?\.weight"  # peft may add the adapter's name
)
PREFIX = re.compile(r"(base_model_model|base_model|model|module|diffusion_model|transformer|unet|lycoris|lora)_")
TEXT_ENCODERS = re.compile(r"(base_model\.model\.)?(lora_te\d?_|text_encoders?[._]|clip_|t5xxl)")
OTHER_METHODS = {
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"lokr_": "LoKr",
    r"hada_|loha_": "LoHa",
    r"oft_|boft_": "OFT",
    r"\.diff(_b)?$|\.set_weight$|lora_(A|B|up|down)\.bias$": "a change of whole weights or biases",
}
PARTNERS = {"A": "B", "B": "A", "down": "up", "up": "down"}


@dataclass(frozen=True, eq=False)
class Pair:
    """The matrices of one layer, down [rank, in] and up [out, rank].

    alpha      stands beside them in the file; None: elsewhere or nowhere
    file_rank  rank by which alpha is divided; larger than `rank` where the file has one pair for several layers
    """

    down: Tensor
    up: Tensor
    alpha: float | None
    file_rank: int

    @property
    def rank(self) -> int:
        """Return the rank of the product up @ down."""
        return len(self.down)


@dataclass
class Module:
    """The part of a file that belongs to one module: keys and tensors by end, `down` and `up`, and alpha."""

    keys: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None


def read_pairs(weights: Mapping[str, Tensor], transformer: nn.Module, file: Path) -> tuple[dict[str, Pair], list[str]]:
    """Return the pairs by layer of `transformer`, and the keys for text encoders, which are left over.

    Raises UserError for half a pair, ranks that differ within one, unknown layers, other widths than the layer's, and
    methods other than LoRA.
    """
    refuse_other_methods(weights, file)
    if any(".processor." in key for key in weights):  # XLabs
        weights = FluxLoraLoaderMixin.lora_state_dict(dict(weights))
    left = [key for key in weights if TEXT_ENCODERS.match(key)]
    modules = _modules({key: value for key, value in weights.items() if key not in {*left}}, file)
    linears = {name: layer for name, layer in transformer.named_modules() if hasattr(layer, "in_features")}
    names = _known_names(linears)
    pairs: dict[str, Pair] = {}
    for module, held in modules.items():
        name = _known(module, names)
        key = next(iter(held.keys.values()), module)
        if name is None:
            raise UserError(f"{file}: {key} has no layer here; the adapters belong to another model, load them there")
        pair = _checked(held, file)
        _check_widths(pair, held, [linears[layer] for layer in names[name]], file)
        if name == SWAPPED.replace(".", "_"):
            pair = replace(pair, up=swap_halves(pair.up))
        pairs |= _split(pair, names[name], [linears[layer].out_features for layer in names[name]])
    return pairs, left


def refuse_other_methods(weights: Mapping[str, object], file: Path) -> None:
    """Raise UserError for adapters that change more than LoRA does."""
    for pattern, method in OTHER_METHODS.items():
        if key := next((key for key in weights if re.search(pattern, key)), None):
            raise UserError(f"{file}: {key} belongs to {method}, but only plain LoRA can be read; convert it to LoRA")


def _modules(weights: Mapping[str, Tensor], file: Path) -> dict[str, Module]:
    """Sort tensors by module. Raises UserError for keys that are no LoRA's, and for files without any."""
    modules: dict[str, Module] = {}
    for key, tensor in weights.items():
        if key.endswith(".alpha") and tensor.numel() == 1:
            alpha = float(tensor)
            if not math.isfinite(alpha):
                raise UserError(f"{file}: {key} is {alpha}; the file is damaged, copy it again")
            modules.setdefault(key.removesuffix(".alpha"), Module()).alpha = alpha
            continue
        match = MATRIX.fullmatch(key)
        if not match:
            raise UserError(f"{file}: {key} is no name of a LoRA's weight; give a file with lora_A and lora_B")
        module, end = modules.setdefault(match["module"], Module()), _end(match["matrix"])
        module.keys[end], module.tensors[end] = key, tensor
    if not any(module.tensors for module in modules.values()):
        raise UserError(f"{file}: holds no weights of a LoRA for the transformer; copy it again")
    return modules


def _end(matrix: str) -> str:
    return "down" if matrix.endswith(("A", "down")) else "up"


def _checked(held: Module, file: Path) -> Pair:
    """Return a module's pair. Raises UserError if one is missing, or for other shapes than [rank, in], [out, rank]."""
    if len(held.tensors) < 2:
        if not held.tensors:
            raise UserError(f"{file}: has an alpha without weights; the file is damaged, copy it again")
        (key,) = held.keys.values()
        other = re.sub(r"(?<=[_.])(A|B|down|up)(?=(\.\w+)?\.weight$)", lambda match: PARTNERS[match[1]], key)
        raise UserError(f"{file}: {key} is there, but {other} is missing; the file is damaged, copy it again")
    for end, tensor in held.tensors.items():
        if tensor.ndim != 2:
            raise UserError(
                f"{file}: {held.keys[end]} has shape {list(tensor.shape)}, not two axes; copy the file again"
            )
    down, up = held.tensors["down"], held.tensors["up"]
    if len(down) != up.shape[1]:
        ranks = f"{held.keys['down']} has rank {len(down)}, {held.keys['up']} has rank {up.shape[1]}"
        raise UserError(f"{file}: {ranks}; the file is damaged, copy it again")
    if not 1 <= len(down) <= (most := limits().rank):
        raise UserError(f"{file}: {held.keys['down']} has rank {len(down)}, not 1 to {most}; give another adapter")
    return Pair(down, up, held.alpha, len(down))


def _known_names(layers: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Map names with _ for every dot, as kohya writes them, to layers: of diffusers and of the original code."""
    originals = {name: parts for name, parts in original_layers(layers).items() if layers.keys() >= {*parts}}
    known = originals | {layer: (layer,) for layer in layers}
    return {name.replace(".", "_"): parts for name, parts in known.items()}


def _known(module: str, names: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return the name in `names` that a module has behind the prefixes of its trainer."""
    name = module.replace(".", "_")
    while name not in names:
        match = PREFIX.match(name)
        if not match:
            return None
        name = name[match.end() :]
    return name


def _check_widths(pair: Pair, held: Module, linears: Sequence[nn.Module], file: Path) -> None:
    """Raise UserError unless the pair is as wide as the layers, whose outputs follow each other."""
    needed = {"down": linears[0].in_features, "up": sum(linear.out_features for linear in linears)}
    for end, found in (("down", pair.down.shape[1]), ("up", pair.up.shape[0])):
        if found != needed[end]:
            widths = f"{held.keys[end]} is {found} wide, its layer {needed[end]}"
            raise UserError(f"{file}: {widths}; the adapters belong to another model, load them there")


def _split(pair: Pair, layers: Sequence[str], widths: Sequence[int]) -> dict[str, Pair]:
    """Split the pair of layers whose outputs follow each other.

    Where each layer has columns of `up` to itself, as kohya's split_qkv and our own export write them, it gets these.
    """
    ups, n = pair.up.split(list(widths)), len(layers)
    own = pair.rank // n
    columns = [slice(i * own, (i + 1) * own) for i in range(n)]
    alone = pair.rank % n == 0 and all(not ups[i][:, columns[k]].any() for i in range(n) for k in range(n) if i != k)
    if not alone:
        return {layer: replace(pair, up=up) for layer, up in zip(layers, ups, strict=True)}
    return {
        layer: replace(pair, down=pair.down[part], up=up[:, part])
        for layer, up, part in zip(layers, ups, columns, strict=True)
    }
