"""Load pretrained networks without unpickling, and normalise images as for ImageNet.

Weights are given by path or hub id, also as owner/name@revision; where they are missing or damaged, a UserError of one
line says how to get them. In every function `what` names the network in messages and `source` is its address or hub id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from seg2any.system.errors import UserError
from seg2any.system.hub import split_revision
from seg2any.system.pickled import load_pickled
from seg2any.system.weights import file_digest

Loaded = TypeVar("Loaded")
# As mmsegmentation and torchvision name files; without a letter it may be a date.
NAMED_DIGEST = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.pth$")
WHOLE = "tokenizer.json"  # holds all of a tokenizer, whatever other files there are
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB, 0..255


def weights_file(path: str | Path, what: str, source: str) -> Path:
    """Return `path` with ~ expanded. Raises UserError if there is no such file."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{what}: file {path} is missing; download {source} and put it there, or give its path")
    return path


def state_dict(path: str | Path, what: str, source: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a .safetensors or .pth file by name.

    Raises UserError if the file is missing, if it is not what the digest at the end of its name promises, or if it
    holds more than tensors and plain values.
    """
    path = weights_file(path, what, source)
    named = NAMED_DIGEST.search(path.name)
    if named and not file_digest(path).startswith(named[1]):
        raise UserError(f"{what}: {path} has another sha256 than the end of its name says; download {source} again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = load_pickled(path)
    except (SafetensorError, OSError, ValueError):
        raise UserError(
            f"{what}: {path} is damaged, or holds objects that are not loaded for safety; download {source} again, or "
            "save its state_dict alone as .safetensors"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{what}: {path} holds no state_dict; download {source}")
    return content


def pretrained_model(
    cls: type[Loaded],
    name: str | Path,
    what: str,
    source: str,
    dtype: torch.dtype = torch.float32,
    storage: Mapping[str, object] = MappingProxyType({}),
) -> Loaded:
    """Load a model of transformers: `cls.from_pretrained(name)`.

    storage  more of its options: how and where the weights are kept

    Raises UserError if `name` is not a folder of such a model and cannot be fetched, or if it lacks a weight, which
    transformers would initialise at random.
    """
    model, report = _fetch(cls, name, what, source, output_loading_info=True, dtype=dtype, **storage)
    lacking = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"{what}: {name} lacks {len(lacking)} weights, first {lacking[0]}; fetch `hf download {source}`"
        )
    return model


def pretrained_processor(cls: type[Loaded], name: str | Path, what: str, source: str) -> Loaded:
    """Load a tokenizer or image processor of transformers.

    Raises as `pretrained_model`, and for a tokenizer without its vocabulary, which transformers would make up.
    """
    there = _vocabulary(cls, str(name))
    if any(there.values()) and not there[WHOLE] and not all([*there.values()][1:]):
        raise _lacking(there, name, what, source)
    loaded = _fetch(cls, name, what, source)
    if isinstance(loaded, PreTrainedTokenizerBase):
        special = {*loaded.all_special_tokens, *loaded.get_added_vocab()}
        if {*loaded.get_vocab()} <= special:
            raise _lacking(_vocabulary(type(loaded), str(name)), name, what, source)
    return loaded


def _vocabulary(kind: type, name: str) -> dict[str, bool]:
    """Tell which files of a tokenizer's vocabulary are in a folder; the first one stands for all others."""
    folder = Path(split_revision(name)[0]).expanduser()
    files = (WHOLE, *getattr(kind, "vocab_files_names", {}).values())
    return {file: (folder / file).is_file() for file in files if file}


def _lacking(there: Mapping[str, bool], name: str | Path, what: str, source: str) -> UserError:
    lacking = ", ".join(file for file, is_there in there.items() if not is_there)
    return UserError(
        f"{what}: {name} lacks {lacking}, the files of a tokenizer; fetch them with `hf download {source}`, or give "
        "the folder that holds them"
    )


def _fetch(cls: type, name: str | Path, what: str, source: str, **options: object) -> object:
    where, revision = split_revision(str(name))
    try:
        return cls.from_pretrained(where, trust_remote_code=False, **revision, **options)
    except (OSError, ValueError, SafetensorError, RuntimeError, KeyError, TypeError):
        raise UserError(
            f"{what}: {name} is not a folder of a {cls.__name__} and is not in the hub's cache; fetch it with "
            f"`hf download {source}`, or give the folder that holds it"
        ) from None


def for_inference(model: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """Put the model into evaluation mode on the device, without gradients, and return it."""
    return model.eval().requires_grad_(False).to(device)


def imagenet_normalised(image: np.ndarray) -> torch.Tensor:
    """Normalise uint8 [H, W, 3] by ImageNet's mean and deviation -> float32 [1, 3, H, W]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
