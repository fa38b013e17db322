"""Read sizes and tokenizers from the small files of a FLUX folder or hub id, and from a single file's header."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPTextModel,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from seg2any.bases.flux1.latents import pixels_per_token
from seg2any.bases.flux1.pipeline import Flux1Pipeline
from seg2any.bases.flux1.source import find_source
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.system.hub import cached_folder, is_offline, split_revision


def weightless_pipeline(name: str, base_parts: str | None = None) -> Flux1Pipeline:
    """Load the pipeline `name`, a folder, hub id or single file, with its networks on the meta device.

    Reads configurations, headers and tokenizers only. Raises UserError for another model, and the errors of diffusers
    and transformers for missing files.
    """
    source = find_source(name, base_parts)
    parts, revision = split_revision(source.pipeline)
    with torch.device("meta"):
        networks = {
            "transformer": Seg2AnyTransformer2DModel.from_config(dict(source.transformer_config())),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(parts, subfolder="vae", **revision)),
            "text_encoder": CLIPTextModel(_config(source.pipeline, "text_encoder")),
            "text_encoder_2": T5EncoderModel(_config(source.pipeline, "text_encoder_2")),
        }
    networks["transformer"].requires_grad_(False)
    return Flux1Pipeline.from_pretrained(name, base_parts=base_parts, **networks)


def read_small_files(name: str, base_parts: str | None = None) -> tuple[int, PreTrainedTokenizerBase]:
    """Read pixels per token and the tokenizer of T5.

    Raises UserError for another model, and the errors of diffusers and transformers for missing files.
    """
    pipeline = find_source(name, base_parts).pipeline
    name, revision = split_revision(pipeline)
    if is_offline() and not Path(name).is_dir() and (folder := cached_folder(pipeline, "model_index.json")):
        name, revision = str(folder), {}  # by its id, transformers would miss files that no FLUX has
    vae = AutoencoderKL.load_config(name, subfolder="vae", **revision)
    tokenizer = AutoTokenizer.from_pretrained(name, subfolder="tokenizer_2", trust_remote_code=False, **revision)
    return pixels_per_token(len(vae["block_out_channels"])), tokenizer


def _config(name: str, part: str) -> PretrainedConfig:
    """Read a text encoder's configuration, without the attention that it names: one on the hub would be code."""
    name, revision = split_revision(name)
    config = AutoConfig.from_pretrained(name, subfolder=part, trust_remote_code=False, **revision)
    config._attn_implementation = "sdpa"
    return config
