"""Open the folder of an X-SAM model: config.json, weights as safetensors, and the files of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedTokenizerFast

from seg2any.segment.xsam.config import XSamConfig
from seg2any.segment.xsam.conversation import CHATS, Encoder
from seg2any.segment.xsam.model import XSam
from seg2any.segment.xsam.speaker import Speaker
from seg2any.segment.xsam.wordings import SPECIAL_TOKENS
from seg2any.system.errors import UserError, brief, shown
from seg2any.system.hub import problem
from seg2any.system.json_text import parse_json
from seg2any.system.limits import bounded_bytes, limits
from seg2any.system.pretrained import for_inference, pretrained_model, pretrained_processor

WHAT, SOURCE = "X-SAM", "hao9610/X-SAM` and convert it by `seg2any convert-xsam"
BITS = ("16", "8", "4")  # of a weight of the language model's layers; 16 stands for the chosen precision
# Not rounded: small, or what masks depend on.
KEPT = (
    *("visual_encoder", "segmentor", "seg_connector", "visual_projector", "seg_projector", "llm_projector"),
    *("bg_embeds", "lm_head"),
)


def open_speaker(name: str | Path, device: torch.device, dtype: torch.dtype, bits: str = "16") -> Speaker:
    """Load a model with its tokenizer.

    bits  one of BITS; fewer than 16 need bitsandbytes, which the caller checks

    Raises UserError if the folder is none, lacks a weight, or if its tokenizer is another model's.
    """
    config = read_config(name, XSamConfig)
    if config.chat not in CHATS:
        raise UserError(f"{WHAT}: {name}: config.json names the chat {config.chat!r}; give one of {', '.join(CHATS)}")
    tokenizer = pretrained_processor(PreTrainedTokenizerFast, name, WHAT, SOURCE)
    check_tokenizer(tokenizer, config, str(name))
    model = pretrained_model(XSam, name, WHAT, SOURCE, dtype, storage_of(bits, device, dtype))
    model = for_inference(model, device) if bits == "16" else model.eval().requires_grad_(False)
    return Speaker(model, Encoder(tokenizer, CHATS[config.chat], model.marks, config.max_length))


def read_config(name: str | Path, *kinds: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Read a model's config.json, which describes one of `kinds`. Raises UserError."""
    _check_json(Path(name) / "config.json")
    try:
        found, _ = PreTrainedConfig.get_config_dict(str(name))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{WHAT}: {name}: {problem(str(name), error)}") from None
    kind = next((one for one in kinds if one.model_type == found.get("model_type")), None)
    if kind is None:
        raise UserError(
            f"{WHAT}: {name}: config.json describes a model of the type {shown(found.get('model_type'))}; give a "
            "folder that `seg2any convert-xsam` or training has written"
        )
    try:
        return kind.from_dict(found)
    except Exception as error:  # transformers' classes check their values, each by errors of its own
        raise UserError(f"{WHAT}: {name}: config.json is damaged ({brief(error)}); convert the model again") from None


def _check_json(path: Path) -> None:
    """Raise UserError for a file that is larger or nested more deeply than the limits say, or holds no object."""
    if not path.is_file():
        return
    try:
        found = parse_json(bounded_bytes(path, limits().json_bytes))
    except (OSError, ValueError) as error:
        raise UserError(f"{WHAT}: {path}: is damaged ({brief(error)}); convert the model again") from None
    if not isinstance(found, dict):
        raise UserError(f"{WHAT}: {path}: is {shown(found)}, no object; convert the model again")


def check_tokenizer(tokenizer: object, config: XSamConfig, where: str) -> None:
    """Raise UserError unless a tokenizer has the model's own tokens at their numbers, and rows for all tokens."""
    numbers = (config.seg_token_id, config.phrase_start_id, config.phrase_end_id)
    for token, number in zip(SPECIAL_TOKENS, numbers, strict=True):
        found = tokenizer.get_vocab().get(token)
        if found != number:
            raise UserError(
                f"{where}: the tokenizer has {token} at {found}, and the model at {number}; take the tokenizer of the "
                "language model that it was trained from"
            )
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, and the model rows for {rows}; take another"
        )


def storage_of(bits: str, device: torch.device, dtype: torch.dtype) -> Mapping[str, object]:
    """Return the options of `from_pretrained` that keep the language model's layers in 8 or 4 bits."""
    if bits == "16":
        return {}
    if bits == "8":
        chosen = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT))
    else:
        chosen = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(KEPT),
        )
    return {"quantization_config": chosen, "device_map": {"": device}}
