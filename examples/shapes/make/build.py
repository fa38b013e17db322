"""Build the untrained parts of the embedded model, a small FLUX of stock classes.

`python -m examples.shapes.make.build FOLDER` writes a FLUX pipeline with random weights, for tests and benchmarks.
"""

from __future__ import annotations

import argparse
import json
import re

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from seg2any.data.shapes_draw import BACKGROUNDS, COLOURS, LETTERS, PATTERNS, SHAPES
from seg2any.system.console import exit_status, whole
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command

GLOBAL_TOKENS = 96  # max_sequence_length that T5 is trained with
REGION_TOKENS = 16  # regional_max_sequence_length that T5 is trained with


def build_vae() -> AutoencoderKL:
    """Build a small VAE with FLUX's geometry: factor 8, 16 channels.

    It has no attention, so crops and whole images behave alike. Its norms have two groups, because more groups
    normalise flat colours away.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 160),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        sample_size=256,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    _start_linear(vae)
    return vae


def _start_linear(vae: AutoencoderKL) -> None:
    """Initialise the VAE as a linear multi-scale autoencoder; this halves the early L1.

    Residual branches add nothing and resampling keeps the variance. After 75 steps on one batch the L1 is 0.11, with
    the stock initialisation 0.22.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        torch.nn.init.zeros_(module.bias)
        if name.endswith("conv2"):
            torch.nn.init.zeros_(module.weight)
        elif any(part in name for part in ("conv_in", "samplers", "conv_shortcut")):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


def build_transformer() -> FluxTransformer2DModel:
    """Build 3 double and 5 single blocks of width 192, with 7 M parameters.

    As in FLUX, one token stands for 16 x 16 px.
    """
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=3,
        num_single_layers=5,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 20, 20),
    )


def build_text_encoders(clip_vocabulary: int, t5_vocabulary: int) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Build untrained CLIP and T5 for vocabularies of these sizes.

    CLIP gives pooled vectors [64], T5 embeddings [tokens, 128].
    """
    clip = CLIPTextConfig(
        vocab_size=clip_vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=64,
        bos_token_id=clip_vocabulary - 2,
        eos_token_id=clip_vocabulary - 1,
        pad_token_id=clip_vocabulary - 1,
    )
    t5 = T5Config(
        vocab_size=t5_vocabulary,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def vocabulary() -> list[str]:
    """List every word that a caption of the shapes world can contain, in a fixed order."""
    names = " ".join([*COLOURS, *PATTERNS, *SHAPES, *BACKGROUNDS, *LETTERS])
    return list(dict.fromkeys(re.findall(r"\w+", f"a and on with the letter background many figures {names}")))


def build_t5_tokenizer() -> T5TokenizerFast:
    """Build a unigram tokenizer with one token per word of the shapes world.

    It spells other words.
    """
    return T5TokenizerFast(vocab=t5_pieces(), extra_ids=0, model_max_length=512)


def t5_pieces() -> list[tuple[str, float]]:
    """List the tokens of T5 and their log probabilities."""
    characters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -3.0) for word in vocabulary()] + [(",", -4.0), (".", -4.0)]
    pieces += [(c, -9.0) for c in characters if c not in ",."]
    pieces.append(("▁an", -3.0))  # last, so that the tokens of models without it keep their numbers
    return pieces


def build_clip_tokenizer() -> CLIPTokenizer:
    """Build a byte-pair tokenizer with one token per word of the shapes world."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([" ".join(vocabulary()).lower()] * 2, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = list(dict.fromkeys([*sorted(alphabet), *(f"{c}</w>" for c in sorted(alphabet)), *model["vocab"]]))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=77)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build the scheduler with the values of FLUX.1-dev."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def build_pipeline(seed: int = 0) -> FluxPipeline:
    """Build all parts with random float32 weights from a seed."""
    torch.manual_seed(seed)
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    clip, t5 = build_text_encoders(len(clip_tokenizer), len(t5_tokenizer))
    return FluxPipeline(
        scheduler=build_scheduler(),
        vae=build_vae(),
        text_encoder=clip.eval(),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5.eval(),
        tokenizer_2=t5_tokenizer,
        transformer=build_transformer(),
    )


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 saved, 2 wrong input or unwritable folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=user_path, help="folder to write, 22 MB")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the weights (default: %(default)s)")
    args = parser.parse_args(words)

    def save() -> None:
        build_pipeline(args.seed).to(torch.float16).save_pretrained(args.folder)
        print(f"saved {args.folder}")

    return exit_status("examples.shapes.make.build", save, "start again")


if __name__ == "__main__":
    run_command(main)
