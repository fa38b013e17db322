"""The probe over Stable Diffusion 3: bit-equal output, weights against a formula, the published LoRA, and `segment`."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from examples.shapes.make.build import build_clip_tokenizer
from seg2any.attention.settings import PLAIN
from seg2any.bases.sd3.base import Sd3
from seg2any.bases.sd3.lora import load_lora
from seg2any.bases.text import encode_texts
from seg2any.commands import segment
from seg2any.diffusion.prepare import EncodedLayout, assemble
from seg2any.layout import Layout
from seg2any.segment.attention import AttentionSegmenter
from seg2any.segment.attention_maps import AttentionMaps
from seg2any.segment.phrases import chunks_of
from seg2any.segment.probe import ProbeSettings, published_level
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError

GRID = (3, 4)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    """Build a tiny random SD3.5: two blocks, the first with a second attention, norms of query and key."""
    torch.manual_seed(0)
    tokenizer = build_clip_tokenizer()
    clip = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
    config = CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=16, **clip, **ends)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), latent_channels=16, norm_num_groups=4, shift_factor=0.1, scaling_factor=1.5,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    transformer = SD3Transformer2DModel(
        sample_size=16, num_layers=3, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32,
        caption_projection_dim=16, pooled_projection_dim=32, pos_embed_max_size=16,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=CLIPTextModelWithProjection(config).eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(base: Sd3, caption: str = "a red star a ring"):
    torch.manual_seed(1)
    (text,) = encode_texts([base.caption_keys(caption, (), PLAIN)], base)
    condition = assemble([EncodedLayout(text, np.zeros((0, *GRID), dtype=bool))], PLAIN)
    return torch.randn(1, 12, 64), torch.tensor([0.5]), condition


@torch.no_grad()
def test_the_probe_changes_no_bit_and_is_gone_afterwards(pipeline):
    base = Sd3(pipeline)
    x, s, condition = inputs(base)
    before = {name: type(one) for name, one in base.network.attn_processors.items()}
    plain = base.velocity(x, s, condition)
    tapped = base.velocity(x, s, condition, tap=AttentionMaps((0, 2)))
    assert torch.equal(plain, tapped) and plain.shape == x.shape
    assert {name: type(one) for name, one in base.network.attn_processors.items()} == before

    def fails(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        base.velocity(x, s, condition, tap=fails)
    assert {name: type(one) for name, one in base.network.attn_processors.items()} == before
    assert condition.text.shape == (1, 154, 32) and not condition.text[0, 77:].any()


@torch.no_grad()
def test_weights_are_the_softmax_that_the_network_itself_computes(pipeline, monkeypatch):
    base, seen = Sd3(pipeline), []
    x, s, condition = inputs(base)
    fused = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **more):
        if key.shape[2] == 12 + 154:  # joint attention, of [image | text]
            seen.append((query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1).mean(1)[:, :12, 12:])
        return fused(query, key, value, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    maps = AttentionMaps((0, 1, 2))
    base.velocity(x, s, condition, tap=maps)
    assert len(seen) == 3
    torch.testing.assert_close(maps.weights(), torch.stack(seen), atol=1e-6, rtol=1e-5)


def test_the_noise_level_and_the_columns_are_the_published_ones(pipeline):
    base = Sd3(pipeline)
    assert published_level(base, pipeline.scheduler, 4096) == pytest.approx(0.51507, abs=1e-5)
    (chunk,) = chunks_of(["star", "ring"], base.tokenizer, 77)
    first = [len(base.tokenizer(name).input_ids) - 2 for name in ("ring", "star")]
    ring = tuple(range(1, 1 + first[0]))  # behind the token of the beginning, one name after the other
    assert dict(zip(chunk.phrases, chunk.columns, strict=True)) == {
        1: ring,
        0: tuple(range(1 + first[0], 1 + sum(first))),
    }


def test_images_are_segmented_with_and_without_names(pipeline):
    segmenter = AttentionSegmenter(Sd3(pipeline), pipeline.scheduler, ProbeSettings((1,), 64, text_tokens=77))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    names = segmenter.segment(image, Prompt(categories=("star", "ring", "heart")))
    assert (names.masks.sum(0) == 1).all() and names.captions == ("star", "ring", "heart")
    assert segmenter.segment(image, Prompt()).masks.any()


def published(transformer: SD3Transformer2DModel, rank: int = 4) -> dict[str, torch.Tensor]:
    """Return random LoRA weights under the published names, with a tensor of the published head."""
    weights = {"attn_mlp.attn_score_layer.0.weight": torch.zeros(64, 1, 3, 3)}
    for number, block in enumerate(transformer.transformer_blocks):
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            size = block.attn.get_submodule(layer)
            start = f"backbone.transformer.transformer_blocks.{number}.attn.{layer}.lora_"
            weights[f"{start}A.default.weight"] = torch.randn(rank, size.in_features)
            weights[f"{start}B.default.weight"] = torch.randn(size.out_features, rank)
    return weights


@torch.no_grad()
def test_the_published_lora_is_added_to_the_weights(pipeline, tmp_path: Path):
    torch.manual_seed(2)
    weights = published(pipeline.transformer)
    torch.save({"model": weights, "iteration": 3000}, tmp_path / "lora_weights.pth")
    adapted, summed = copy.deepcopy(pipeline.transformer), copy.deepcopy(pipeline.transformer)
    assert load_lora(adapted, tmp_path / "lora_weights.pth") == 12
    for name, layer in summed.named_modules():
        key = f"backbone.transformer.{name}.lora_"
        if f"{key}A.default.weight" in weights:
            layer.weight += weights[f"{key}B.default.weight"] @ weights[f"{key}A.default.weight"]
    x, text, pooled = torch.randn(1, 16, 6, 8), torch.randn(1, 154, 32), torch.randn(1, 32)
    given = {"encoder_hidden_states": text, "pooled_projections": pooled, "timestep": torch.tensor([500.0])}
    wanted, found = (net(x, **given, return_dict=False)[0] for net in (summed, adapted))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, pipeline.transformer(x, **given, return_dict=False)[0], atol=1e-3)


class Evil:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("/tmp/seg2any_was_here"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"model": {**w, "x": Evil()}}, "cannot be read as tensors only"),
        (lambda w: {"model": [1, 2]}, "holds no tensors by name"),
        (lambda w: {"model": {"head.weight": torch.zeros(1)}}, "holds no LoRA tensor"),
        (
            lambda w: {k.replace("blocks.2", "blocks.7"): v for k, v in w.items()},
            "blocks.7.*lacks",
        ),
        (lambda w: {k: v[:, :3] if "lora_A" in k else v for k, v in w.items()}, "has another size here"),
        (lambda w: {k: v for k, v in w.items() if "0.attn.to_q.lora_B" not in k}, "lacks a half of its LoRA"),
    ],
)
def test_other_files_are_refused_in_one_line(change, message: str, pipeline, tmp_path: Path):
    torch.save(change(published(pipeline.transformer)), tmp_path / "other.pth")
    with pytest.raises(UserError, match=message) as refused:
        load_lora(pipeline.transformer, tmp_path / "other.pth")
    assert "\n" not in str(refused.value) and not hasattr(pipeline.transformer, "peft_config")


def test_the_command_opens_a_folder_in_diffusers_format(pipeline, tmp_path: Path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    torch.save({"model": published(pipeline.transformer)}, tmp_path / "lora_weights.pth")
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--pretrained_model_name_or_path", tmp_path / "model", "--base", "sd3"]
    words += ["--blocks", 1, "--side", 64, "--text_tokens", 77, "--device", "cpu", "--output_path", tmp_path / "out"]
    words += ["--masks_lora", tmp_path / "lora_weights.pth", "--categories", "star", "ring"]
    assert segment.main([str(word) for word in words], "segment.py") == 0, capsys.readouterr().err
    assert {*Layout.read(tmp_path / "out" / "a.json").captions} <= {"star", "ring"}
    for more, message in (
        (["--lora_ckpt_path", tmp_path], "adapters are for FLUX"),
        (["--base", "flux1"], "--masks_lora: is a file for Stable Diffusion 3"),
        (["--memory", "nf4"], "takes no --sweep, --base_parts and --memory"),
        (["--pretrained_model_name_or_path", tmp_path], "is no Stable Diffusion 3 pipeline"),
    ):
        assert segment.main([str(word) for word in [*words, *more, "--overwrite"]], "segment.py") == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("segment.py")]
        assert message in line
