"""Read the transformer of FLUX.1 from one file: Black Forest Labs' or diffusers' names, ComfyUI's prefixes, fp8, GGUF.

Sizes come from the shapes of the tensors; the file is read weight by weight.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seg2any.bases.flux1.bfl_names import BFL, DIFFUSERS, Place, file_shapes, places_of
from seg2any.bases.flux1.weight_check import Differences, refuse_differences
from seg2any.system.errors import UserError, shown
from seg2any.system.tensor_file import READABLE, open_tensor_file

KINDS = {  # names of tensors -> what holds them; the first that matches counts
    r".*(lora_|\.lora\.|lokr_|loha_|hada_)": "an adapter; give its folder as the adapter",
    r"(.*\.)?(controlnet_|input_hint_block)": "a ControlNet",
    r".*ip_adapter": "an IP-Adapter",
    r"redux_(up|down)\.": "FLUX.1-Redux, which varies images",
    r"(.*\.)?double_stream_modulation": "FLUX.2",
    r"(.*\.)?distilled_guidance_layer\.": "Chroma",
    r"(.*\.)?joint_blocks\.": "Stable Diffusion 3",
    r"conditioner\.embedders\.": "Stable Diffusion XL",
    r"cond_stage_model\.|model\.diffusion_model\.input_blocks\.": "Stable Diffusion",
    r"(.*\.)?double_blocks\.\d+\.img_attn\.qkv|(.*\.)?transformer_blocks\.\d+\.norm1_context": "FLUX",
    r"(.*\.)?block\.\d+\.layer\.\d+\.SelfAttention": "a T5 text encoder",
    r"(.*\.)?text_model\.encoder\.layers": "a CLIP text encoder",
    r"(encoder|decoder)\.(down|up|mid)": "a VAE",
}
OTHER_PARTS = {  # of a pipeline -> their tensors in a file
    "VAE": r"(vae|first_stage_model)\.",
    "text encoders": r"(text_encoders|cond_stage_model|conditioner)\.",
}
BLOCKS = re.compile(r"((?:.+\.)?)(?:double_blocks|transformer_blocks)\.\d+\.")
SCALE = re.compile(r"(?P<layer>.+)\.(scale_weight|weight_scale)")
NOT_WEIGHTS = re.compile(r"(.+\.)?(scale_input|input_scale|comfy_quant|scaled_fp8)")  # for products of 8-bit numbers
SHARD = re.compile(r".*-\d+-of-\d+")
PARTS_FLAG = "--base_parts (in a config model.base_parts)"
OTHER_CHANNELS = {6: "FLUX.1-Fill, which paints into images", 2: "FLUX.1-Depth or FLUX.1-Canny"}  # read / written
DEV = {"width": 3072, "blocks": (19, 38)}
AXES = {128: (16, 56, 56)}  # channels of a head -> those that rotate with each axis; no file holds them


class OtherFile(UserError):
    """A file without FLUX's transformer. The message lacks the fix."""


class TransformerFile:
    """A file that holds FLUX's transformer, and perhaps other parts, which are not read.

    path     of the file
    headers  shape and dtype of the transformer's tensors, by name without prefix
    others   names of the other parts in the file

    Raises OtherFile for a file of another kind, and UserError for a damaged one.
    """

    def __init__(self, path: Path):
        if path.suffix not in READABLE:
            raise OtherFile(f"{path}: is a file ({path.suffix or 'without ending'}), not one of {', '.join(READABLE)}")
        if SHARD.fullmatch(path.stem):
            raise OtherFile(f"{path}: is one of several files of a network")
        self.path, self._file = path, open_tensor_file(path)
        found = self._file.headers
        if (kind := _kind(found)) != "FLUX":
            raise OtherFile(f"{path}: is one file that holds {kind}")
        if "kontext" in path.stem.lower():
            raise UserError(
                f"{path}: is FLUX.1-Kontext by its name, which edits images; rename it if it is FLUX.1-dev, whose "
                "weights have the same shapes"
            )
        self.others = [part for part, names in OTHER_PARTS.items() if any(re.match(names, name) for name in found)]
        prefix = next(match[1] for name in found if (match := BLOCKS.match(name)))
        self._names = {
            _plain(name[len(prefix) :]): name
            for name in found
            if name.startswith(prefix) and not any(re.match(names, name) for names in OTHER_PARTS.values())
        }
        self.headers = {plain: found[name] for plain, name in self._names.items() if not NOT_WEIGHTS.fullmatch(plain)}
        self._scales = self._take_scales()
        self._scheme = BFL if any(name.startswith(f"{BFL.double}.") for name in self.headers) else DIFFUSERS

    def config(self, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Derive the config of a FluxTransformer2DModel from the shapes of the tensors.

        known  config.json of the transformer that the file replaces, for what shapes do not say

        Raises UserError for tensors that are missing, and warns about another number of blocks.
        """
        names, known = self._scheme, known or {}
        width, channels = self._shape(f"{names.image_in}.weight", 2)
        (head,) = self._shape(names.head_norm, 1)
        if channels != (out := self._shape(f"{names.out}.weight", 2)[0]):
            kind = OTHER_CHANNELS.get(channels / out, "another model")
            raise UserError(f"{self.path}: is {kind}: it reads {channels} channels per token and writes {out}")
        if width % head:
            raise UserError(f"{self.path}: its width {width} is no multiple of its heads' {head}; it is another model")
        blocks = self._count(names.double), self._count(names.single)
        usual = known.get("num_layers"), known.get("num_single_layers")
        if None in usual:
            usual = DEV["blocks"] if width == DEV["width"] else blocks
        if blocks != usual:
            warnings.warn(
                f"{self.path}: has {blocks[0]} double and {blocks[1]} single blocks instead of {usual[0]} and "
                f"{usual[1]}; unless that is known of this model, the file is incomplete",
                stacklevel=4,
            )
        return {
            "in_channels": channels,
            "num_layers": blocks[0],
            "num_single_layers": blocks[1],
            "attention_head_dim": head,
            "num_attention_heads": width // head,
            "joint_attention_dim": self._shape(f"{names.text_in}.weight", 2)[1],
            "pooled_projection_dim": self._shape(f"{names.pooled_in}.weight", 2)[1],
            "guidance_embeds": f"{names.guidance_in}.weight" in self.headers,
            "axes_dims_rope": self._axes(head, known.get("axes_dims_rope")),
        }

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError unless the file has all weights of a network, given by name and shape."""
        needed = file_shapes(places_of(self._scheme, shapes), shapes)
        has = {name: header.shape for name, header in self.headers.items()}
        both = sorted(needed.keys() & has.keys())
        reshaped = [(name, has[name], needed[name]) for name in both if has[name] != needed[name]]
        missing, unexpected = sorted(needed.keys() - has.keys()), sorted(has.keys() - needed.keys())
        refuse_differences(self.path, self.headers, Differences(missing, unexpected, reshaped, len(needed)))
        if unexpected:
            warnings.warn(
                f"{self.path}: {len(unexpected)} unknown weights are not used, first {unexpected[0]}", stacklevel=4
            )

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the weights of a network, each read when it is asked for; scales are multiplied in."""
        return _ReadOnDemand(self, places_of(self._scheme, shapes))

    def read(self, place: Place) -> Tensor:
        """Read one weight: 8-bit and packed numbers as float32, others as they are."""
        # cat copies out of the mapped file, whose addresses are odd: products would be rounded in another order
        return torch.cat([self._read(place.name, begin, end) for begin, end in place.rows or ((0, None),)])

    def _read(self, name: str, begin: int, end: int | None) -> Tensor:
        numbers = self._file.read(self._names[name], begin, end)
        if numbers.dtype.itemsize == 1:
            numbers = numbers.float()
        if name in self._scales:
            scale = self._file.read(self._scales[name]).float()
            numbers = numbers * (scale.reshape(()) if scale.numel() == 1 else scale[begin:end])
        return numbers

    def _take_scales(self) -> dict[str, str]:
        """Remove scales of whole 8-bit tensors or of their rows from the headers; return their names by weight.

        Those of other schemes stay, and `check` refuses them.
        """
        scales = {}
        for name, header in list(self.headers.items()):
            match = SCALE.fullmatch(name)
            weight = self.headers.get(f"{match['layer']}.weight") if match else None
            if weight is None or not weight.dtype.startswith("F8") or header.dtype not in ("F32", "F16", "BF16"):
                continue
            if math.prod(header.shape) == 1 or header.shape == (weight.shape[0], 1):
                scales[f"{match['layer']}.weight"] = self._names[name]
                del self.headers[name]
        return scales

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        header = self.headers.get(name)
        if header is None or len(header.shape) != rank or 0 in header.shape:
            found = "lacks" if header is None else f"has the shape {list(header.shape)} for"
            raise UserError(
                f"{self.path}: {found} {name}; the download is incomplete or of another model, fetch it again"
            )
        return header.shape

    def _count(self, blocks: str) -> int:
        return len({match[1] for name in self.headers if (match := re.match(rf"{blocks}\.(\d+)\.", name))})

    def _axes(self, head: int, known: Any) -> tuple[int, ...]:
        for axes in (known or (), AXES.get(head, ())):
            if sum(axes) == head:
                return tuple(axes)
        raise UserError(
            f"{self.path}: its heads have {head} channels, and how they rotate stands in no file of weights; give by "
            f"{PARTS_FLAG} a folder with this model's transformer/config.json"
        )


class _ReadOnDemand(dict):
    """A state dict whose weights are read from a file when they are asked for; diffusers takes no other mapping."""

    def __init__(self, file: TransformerFile, places: Mapping[str, Place]):
        super().__init__(places)
        self._file = file

    def __getitem__(self, name: str) -> Tensor:
        return self._file.read(super().__getitem__(name))

    def items(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self[name]) for name in self)


def _plain(name: str) -> str:
    """Return a name as Black Forest Labs write it; newer versions of ComfyUI call the scale of a norm its weight."""
    return re.sub(r"(double_blocks|single_blocks)(.+)(query|key)_norm\.weight", r"\1\2\3_norm.scale", name)


def _kind(names: Mapping[str, Any]) -> str:
    kind = next((text for pattern, text in KINDS.items() if any(re.match(pattern, name) for name in names)), None)
    return kind or f"weights of an unknown network, first {shown(next(iter(names), 'none'))}"
