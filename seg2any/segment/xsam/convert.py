"""Turn the published weights of X-SAM, pickled dicts of tensors, into a folder that loads with `from_pretrained`.

The file is mapped into memory and unpickled as tensors only; tensors are read and written shard by shard, so memory
stays near two shards. Every name must be matched, with its shape.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from seg2any.segment.xsam.config import PHI3_MINI, XSamConfig, XSamSegmentorConfig
from seg2any.segment.xsam.keys import our_name, published_name
from seg2any.segment.xsam.model import XSam, XSamSegmentor
from seg2any.system.errors import UserError, brief, printable, shown
from seg2any.system.headers import weights_files
from seg2any.system.pickled import load_pickled

STEMS = ("pytorch_model", "model")
SHARD = 2**30  # bytes
SHOWN = 3  # names of a kind in a message
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Published names in a file, against those that a model wants.

    reshaped  name, shape in the file, shape wanted
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} weights matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.reshaped)} reshaped"
        )

    @property
    def fits(self) -> bool:
        """Whether every weight has its place."""
        return not (self.missing or self.unexpected or self.reshaped)

    def details(self) -> str:
        """Name the first weights of each kind that do not fit."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected}
        kinds["reshaped"] = tuple(f"{name} {list(found)} for {list(wanted)}" for name, found, wanted in self.reshaped)
        return "; ".join(
            f"{kind}: {', '.join(map(printable, names[:SHOWN]))}" for kind, names in kinds.items() if names
        )


def compare(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Comparison:
    """Compare the shapes of published weights with those of our networks, by our names."""
    ours = {our_name(name): name for name in found}
    both = [name for name in wanted if name in ours]
    return Comparison(
        tuple(ours[name] for name in both if found[ours[name]] == wanted[name]),
        tuple(published_name(name) for name in wanted if name not in ours),
        tuple(name for own, name in ours.items() if own not in wanted),
        tuple((ours[name], found[ours[name]], wanted[name]) for name in both if found[ours[name]] != wanted[name]),
    )


def config_of(shapes: Mapping[str, Shape], where: str) -> XSamConfig | XSamSegmentorConfig:
    """Complete the published configuration by the sizes in a file, whose names are the published ones.

    Raises UserError for weights of no model, and for those of the second stage, which are two projectors only.
    """
    shapes = {our_name(name): shape for name, shape in shapes.items()}
    queries = shapes.get("segmentor.decoder.queries_features.weight")
    rows = shapes.get("llm.model.embed_tokens.weight")
    if queries is None:
        what = "only projectors, as the second stage" if "visual_projector.model.0.weight" in shapes else "no X-SAM"
        raise UserError(f"{where}: holds {what}; give pytorch_model.bin of s3_mixed_finetune or s1_seg_finetune")
    classes = shapes.get("segmentor.class_predictor.bias", (1,))
    if not (queries and classes and rows != ()):
        raise UserError(f"{where}: holds single numbers where rows belong; fetch it again")
    if rows is None:
        return XSamSegmentorConfig(mask_config={"num_queries": queries[0], "num_labels": classes[0] - 1})
    return XSamConfig(
        mask_config={"num_queries": queries[0], "num_labels": 133},
        text_config={"model_type": "phi3", **PHI3_MINI, "vocab_size": rows[0], "pad_token_id": None},
        **{name: rows[0] + place for name, place in TOKEN_PLACES.items()},
    )


# The last rows of the vocabulary, which training has added.
TOKEN_PLACES = {"seg_token_id": -3, "phrase_start_id": -2, "phrase_end_id": -1}


def wanted_shapes(config: PreTrainedConfig) -> dict[str, Shape]:
    """Return the names and shapes of a model's weights, without building them."""
    with torch.device("meta"):
        model = (XSam if isinstance(config, XSamConfig) else XSamSegmentor)(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def open_published(path: Path) -> dict[str, Tensor]:
    """Map the tensors of pytorch_model.bin, or of a folder with it or its shards, into memory by their names.

    Raises UserError if nothing is there, or if it holds more than tensors.
    """
    files = weights_files(path, STEMS) if path.is_dir() else (path,)
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"{path}: has no pytorch_model.bin; fetch `hf download hao9610/X-SAM`")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _open_file(file)
    return tensors


def convert(
    tensors: Mapping[str, Tensor], config: PreTrainedConfig, tokenizer: object | None, folder: Path, dtype: torch.dtype
) -> None:
    """Write the folder of a model: config.json, weights in a precision, and its tokenizer if it has one.

    The folder appears when it is complete. Raises UserError if it exists with something in it, and for tensors that
    lack numbers.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists; choose another folder, or remove it")
    if hollow := next((name for name, value in tensors.items() if not _is_whole(value)), None):
        raise UserError(f"{shown(hollow)}: has fewer numbers than its shape says; fetch the published file again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.tmp{os.getpid()}")
    try:
        unfinished.mkdir()
        _write_shards(tensors, unfinished, dtype)
        config.dtype = dtype
        config.architectures = ["XSam" if isinstance(config, XSamConfig) else "XSamSegmentor"]
        config.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _open_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        raise UserError(f"{file}: is safetensors already; give pytorch_model.bin")
    try:
        content = load_pickled(file, mapped=True)
    except ValueError as error:
        raise UserError(
            f"{file}: is damaged, or holds objects that are not loaded for safety ({brief(error)}); fetch it again"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not content or not all(map(_is_named, content.items())):
        raise UserError(f"{file}: holds no dict of tensors; fetch pytorch_model.bin of hao9610/X-SAM")
    return content


def _is_named(entry: tuple[object, object]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _is_whole(value: Tensor) -> bool:
    """Tell whether a tensor has each of its numbers; one number that stands for many would fill the disk."""
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    return plain and value.nbytes <= value.untyped_storage().nbytes()


def _write_shards(tensors: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    shards = list(_shards(tensors, dtype.itemsize))
    names, total = {}, 0
    for number, own in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        shard = {our_name(name): tensors[name].to(dtype).clone(memory_format=torch.contiguous_format) for name in own}
        save_file(shard, folder / file, {"format": "pt"})
        names |= dict.fromkeys(shard, file)
        total += sum(value.nbytes for value in shard.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], itemsize: int) -> Iterator[Sequence[str]]:
    """Group names to shards of about SHARD bytes."""
    shard, size = [], 0
    for name, value in tensors.items():
        if shard and size + value.numel() * itemsize > SHARD:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += value.numel() * itemsize
    yield shard
