"""Read sizes and tokenizers from the small files of a FLUX folder or hub id."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

from seg2any.bases.flux1.latents import pixels_per_token
from seg2any.bases.flux1.pipeline import Flux1Pipeline
from seg2any.bases.flux1.recognise import refuse_other_models
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel


def weightless_pipeline(name: str) -> Flux1Pipeline:
    """Load the pipeline `name`, a folder or hub id, with its networks on the meta device.

    Reads configurations and tokenizers only. Raises UserError for another model, and the errors of diffusers and
    transformers for missing files.
    """
    refuse_other_models(name)
    with torch.device("meta"):
        networks = {
            "transformer": Seg2AnyTransformer2DModel.from_config(
                Seg2AnyTransformer2DModel.load_config(name, subfolder="transformer")
            ),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(name, subfolder="vae")),
            "text_encoder": CLIPTextModel(AutoConfig.from_pretrained(name, subfolder="text_encoder")),
            "text_encoder_2": T5EncoderModel(AutoConfig.from_pretrained(name, subfolder="text_encoder_2")),
        }
    networks["transformer"].requires_grad_(False)
    return Flux1Pipeline.from_pretrained(name, **networks)


def read_small_files(name: str) -> tuple[int, PreTrainedTokenizerBase]:
    """Read pixels per token and the tokenizer of T5.

    Raises UserError for another model, and the errors of diffusers and transformers for missing files.
    """
    refuse_other_models(name)
    vae = AutoencoderKL.load_config(name, subfolder="vae")
    tokenizer = AutoTokenizer.from_pretrained(name, subfolder="tokenizer_2")
    return pixels_per_token(len(vae["block_out_channels"])), tokenizer
