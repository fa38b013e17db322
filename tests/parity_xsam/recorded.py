"""Read recorded cases of X-SAM, and build its tiny model."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from seg2any.segment.xsam.config import XSamConfig, XSamSegmentorConfig
from seg2any.segment.xsam.keys import our_name
from seg2any.segment.xsam.model import Pictures, XSam, XSamSegmentor
from tests.golden_root import xsam_golden_root

ROOT = xsam_golden_root()  # tests of another set put it here
Tensors = dict[str, torch.Tensor]
T = TypeVar("T")


class Lacking(LookupError):
    """A kind of record that a set does not have."""


def kept(make: Callable[..., T]) -> Callable[..., T]:
    """Keep what a function returns, for each set by itself."""

    @functools.cache
    def of_set(root: Path, *args: Any) -> T:
        return make(*args)

    @functools.wraps(make)
    def found(*args: Any) -> T:
        return of_set(ROOT, *args)

    return found


@kept
def parameters() -> dict:
    return json.loads((ROOT / "cases.json").read_text(encoding="utf-8"))


def parameters_of(file: str, name: str) -> dict:
    """Return the parameters of a case.

    Raises Lacking if the set has no such case.
    """
    if name not in parameters().get(file, {}):
        raise Lacking(f"{ROOT}: has no case {name} of {file}")
    return parameters()[file][name]


@kept
def text() -> dict:
    return json.loads((ROOT / "text.json").read_text(encoding="utf-8"))


@kept
def names_in(file: str) -> tuple[str, ...]:
    path = ROOT / f"{file}.safetensors"
    if not path.is_file():
        return ()
    with safe_open(path, "pt") as tensors:
        return tuple(tensors.keys())


def tensors_of(file: str, prefix: str = "") -> Tensors:
    """Read the tensors of a file whose names begin so, without that beginning.

    Raises Lacking if the set has no such file.
    """
    if not (ROOT / f"{file}.safetensors").is_file():
        raise Lacking(f"{ROOT}: has no {file}.safetensors")
    with safe_open(ROOT / f"{file}.safetensors", "pt") as tensors:
        return {
            name.removeprefix(prefix): tensors.get_tensor(name) for name in names_in(file) if name.startswith(prefix)
        }


@dataclass(frozen=True)
class Case:
    """A recorded case: its tensors `x` and parameters `about`."""

    file: str
    name: str
    about: dict

    @functools.cached_property
    def x(self) -> Tensors:
        return tensors_of(self.file, f"{self.name}/")

    def numbered(self, name: str) -> list[torch.Tensor]:
        """Return the tensors NAME_0, NAME_1 and so on."""
        found = {int(match[1]): x for key, x in self.x.items() if (match := re.fullmatch(rf"{name}_(\d+)", key))}
        return [found[number] for number in sorted(found)]

    def drawn(self, kind: str) -> list[torch.Tensor]:
        """Return the recorded random draws of a kind, in the order drawn."""
        found = {int(match[1]): x for key, x in self.x.items() if (match := re.fullmatch(rf"draw_(\d+)_{kind}", key))}
        return [found[number] for number in sorted(found)]


def close(mine: torch.Tensor, recorded: torch.Tensor, tolerance: float = 1e-5, least: float = 1.0) -> None:
    """Compare within `tolerance`, times the greatest recorded number if that is above `least`."""
    largest = float(recorded.abs().max()) if recorded.numel() else 0.0
    assert_close(mine, recorded, rtol=0, atol=tolerance * max(largest, least))


def same(mine: torch.Tensor, recorded: torch.Tensor) -> None:
    assert mine.shape == recorded.shape and torch.equal(mine.long(), recorded.long())


def language_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer of the language model, without the tokens that X-SAM adds."""
    ending = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(ROOT / "tokenizer.json"), bos_token="<s>", eos_token=ending, pad_token=ending
    )


@kept
def tokenizer() -> PreTrainedTokenizerFast:
    found = language_tokenizer()
    found.add_tokens(text()["special_tokens"], special_tokens=True)
    return found


def segmentor_parts() -> dict:
    about = parameters_of("end_to_end", "config")
    return {
        "sam_config": about["sam"],
        "mask_config": about["mask2former"],
        "connector_layers": about["seg_select_layers"][-3:],
        "connector_scales": about["connector_scale"][-3:],
        "connector_channels": about["connector_hidden"],
    }


def config() -> XSamConfig:
    about, ids = parameters_of("end_to_end", "config"), text()["ids"]
    language = {name: value for name, value in about["phi3"].items() if name != "vocab_before_resize"}
    ours = {"model_type": "phi3", "bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": None}
    return XSamConfig(
        **segmentor_parts(),
        siglip_config=about["siglip"],
        text_config=language | ours,
        seg_token_id=ids["seg"],
        phrase_start_id=ids["pstart"],
        phrase_end_id=ids["pend"],
    )


@kept
def whole_model() -> XSam:
    with torch.inference_mode(False):  # whoever asks first, losses need its gradients
        model = XSam(config())
        model.load_state_dict({our_name(name): value for name, value in tensors_of("model_tiny_stage3").items()})
    return model.eval()


@kept
def closed_model() -> XSamSegmentor:
    with torch.inference_mode(False):
        model = XSamSegmentor(XSamSegmentorConfig(**segmentor_parts()))
        model.load_state_dict({our_name(name): value for name, value in tensors_of("model_tiny_stage1").items()})
    return model.eval()


def pictures(names: list[str]) -> Pictures:
    found = tensors_of("end_to_end", "images/")
    return Pictures(
        torch.stack([found[f"{name}/seg_pixel_values"] for name in names]),
        torch.stack([found[f"{name}/pixel_values"] for name in names]),
    )
