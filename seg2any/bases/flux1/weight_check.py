"""Compare the weights in a FLUX folder with those that its networks need, before any weight is loaded.

diffusers and transformers fill what is missing with random numbers and drop what they do not know, scales of 8-bit
weights for instance. Networks are built on the meta device from their configurations; of the files headers are read.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, FluxTransformer2DModel, ModelMixin
from transformers import AutoConfig, CLIPTextModel, PreTrainedModel, T5EncoderModel

from seg2any.system.errors import UserError
from seg2any.system.headers import TensorHeader, read_headers, variant_of, weights_files
from seg2any.system.json_text import parse_json

CLASSES = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "float8_e4m3fn", "float8_e5m2")
SCALES = re.compile(r"(.*[._])?(weight_scale(_inv|_2)?|scale_weight|scale_input|input_scale|scaled_fp8|absmax)")
NOT_NEEDED = {  # halves of the original models that are not used, and buffers of older versions of transformers
    CLIPTextModel: re.compile(r"vision_model\.|(visual|text)_projection\.|logit_scale|(.*\.)?position_ids"),
    T5EncoderModel: re.compile(r"decoder\.|lm_head\."),
}


@dataclass(frozen=True)
class Differences:
    """Differences between weights in files and those of a network, sorted by name.

    missing     weights of the network that no file has
    unexpected  tensors that the network has no place for
    reshaped    weights of another shape: name, shape in the file, shape in the network
    needed      number of weights that the network needs
    """

    missing: Sequence[str]
    unexpected: Sequence[str]
    reshaped: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    needed: int


def check_weights(folder: Path, parts: Sequence[str], variant: str | None = None) -> str | None:
    """Check that files have every weight of the parts; return the variant to load, None for usual file names.

    Raises UserError for missing, renamed or reshaped weights and for scaled or packed ones; warns about other weights
    that no network has.
    """
    variants = {part: variant or variant_of(folder / part, _stems(CLASSES[part])) for part in parts}
    chosen = sorted({one for one in variants.values() if one})
    if len(chosen) > 1:
        raise UserError(f"{folder}: its parts have the variants {', '.join(chosen)} only; keep one of them")
    for part in parts:
        _check_part(folder / part, CLASSES[part], variants[part])
    return chosen[0] if chosen else None


def _stems(cls: type) -> tuple[str, ...]:
    """Return the names that the library of a network gives its weights."""
    return ("diffusion_pytorch_model",) if issubclass(cls, ModelMixin) else ("model", "pytorch_model")


def _check_part(folder: Path, cls: type[ModelMixin | PreTrainedModel], variant: str | None) -> None:
    stems = _stems(cls)
    files = (variant and weights_files(folder, stems, variant)) or weights_files(folder, stems)
    if not files:
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".gguf"))
        found = f", but there is {others[0]}" if others else ""
        raise UserError(f"{folder}: {stems[0]}.safetensors is missing{found}; fetch the whole model again")
    is_quantised = "quantization_config" in _config(folder)
    left_out = NOT_NEEDED.get(cls, re.compile("(?!)"))
    headers = {name: header for name, header in read_headers(files).items() if not left_out.match(name)}
    if is_quantised:  # the library that packed the weights knows their names, shapes and dtypes
        return
    compare = _compare_diffusers if issubclass(cls, ModelMixin) else _compare_transformers
    found = compare(cls, folder, headers)
    refuse_differences(folder, headers, found)
    if others := found.unexpected:
        warnings.warn(f"{folder}: {len(others)} unknown weights are not used, first {others[0]}", stacklevel=5)


def _config(folder: Path) -> dict:
    """Read config.json. Raises UserError for a damaged one, and for attention on the hub, which would be code."""
    try:
        config = parse_json((folder / "config.json").read_bytes())
        named = [config.get(key) for key in ("attn_implementation", "_attn_implementation")]
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{folder}: config.json is missing or damaged; fetch the whole model again") from None
    if any("/" in str(name) for name in named):
        raise UserError(f"{folder}: config.json names attention code on the hub; remove attn_implementation from it")
    return config


def refuse_differences(where: Path, headers: Mapping[str, TensorHeader], found: Differences) -> None:
    """Raise UserError, naming a folder or file, for what would give other numbers than those that were trained."""
    if scales := [name for name in found.unexpected if SCALES.fullmatch(name)]:
        raise UserError(
            f"{where}: holds scaled weights with {len(scales)} scales, first {scales[0]}, which would not be used; "
            "take weights in bf16, or fp8 without scales"
        )
    if found.reshaped:
        name, shape, needed = found.reshaped[0]
        raise UserError(
            f"{where}: {len(found.reshaped)} weights have another shape than the network needs, first {name}: "
            f"{list(shape)} instead of {list(needed)}; they belong to another model, fetch it again"
        )
    if found.missing:
        unknown = found.unexpected
        instead = f", and has {len(unknown)} of unknown names, first {unknown[0]}" if unknown else ""
        raise UserError(
            f"{where}: lacks {len(found.missing)} of {found.needed} weights, first {found.missing[0]}{instead}; the "
            "download is incomplete or of another model, fetch it again"
        )
    packed = [
        (name, header.dtype)
        for name, header in headers.items()
        if header.dtype not in FLOATS and name not in found.unexpected
    ]
    if packed:
        raise UserError(
            f"{where}: {len(packed)} weights are stored as {packed[0][1]}, first {packed[0][0]}, without saying how "
            "they were quantised; take weights in bf16"
        )


def _compare_diffusers(cls: type[ModelMixin], folder: Path, headers: dict[str, TensorHeader]) -> Differences:
    with torch.device("meta"):
        network = cls.from_config(cls.load_config(folder))
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: header.shape for name, header in headers.items()}
    network._fix_state_dict_keys_on_load(shapes)  # older names, which diffusers changes when it loads
    return Differences(
        sorted(needed.keys() - shapes.keys()),
        sorted(shapes.keys() - needed.keys()),
        [
            (name, shapes[name], needed[name])
            for name in sorted(needed)
            if shapes.get(name, needed[name]) != needed[name]
        ],
        len(needed),
    )


def _compare_transformers(cls: type[PreTrainedModel], folder: Path, headers: dict[str, TensorHeader]) -> Differences:
    """Let transformers load tensors without numbers: it knows which are tied, renamed or made anew."""
    tensors = {name: torch.empty(header.shape, device="meta") for name, header in headers.items()}
    with _silent_transformers():
        network, report = cls.from_pretrained(
            None,
            config=AutoConfig.from_pretrained(folder, trust_remote_code=False),
            state_dict=tensors,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return Differences(
        sorted(report["missing_keys"]),
        sorted(report["unexpected_keys"]),
        sorted(report["mismatched_keys"]),
        len(network.state_dict()) - len(network.all_tied_weights_keys),
    )


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    level, shows_bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if shows_bar:
            transformers.logging.enable_progress_bar()
