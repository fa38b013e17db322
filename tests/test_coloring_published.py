"""The published painters of gen2seg, on tiny random copies, against libraries' own steps and plain arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, ViTMAEConfig, ViTMAEForPreTraining

from examples.shapes.make.build import build_clip_tokenizer
from seg2any.segment.coloring.published import MaePainter, UnetPainter, open_published
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError

PHOTO = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def unet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gen2seg-sd")
    torch.manual_seed(0)
    tokenizer = build_clip_tokenizer()
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    UNet2DConditionModel(
        **blocks,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    ).save_pretrained(folder / "unet")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**blocks, **kinds, latent_channels=4).save_pretrained(folder / "vae")
    DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="leading",
    ).save_pretrained(folder / "scheduler")
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def test_the_unet_takes_the_last_step_of_training_whatever_the_schedulers_spacing(unet_folder):
    painter = open_published(str(unet_folder), "cpu")
    assert isinstance(painter, UnetPainter)
    latents = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    seen = []
    painter.unet.register_forward_hook(lambda module, given, out: seen.append((given, out.sample)))
    found = painter.clean(latents)
    (given, velocity) = seen[0]
    assert given[1] == 999 and torch.equal(given[0], latents)
    assert abs(float(painter.scheduler.alphas_cumprod[999]) - 0.00466) < 1e-4
    trailing = DDIMScheduler.from_config(painter.scheduler.config, timestep_spacing="trailing")
    trailing.set_timesteps(1)
    expected = trailing.step(velocity, trailing.timesteps[0], latents).pred_original_sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    leading = DDIMScheduler.from_config(painter.scheduler.config)
    leading.set_timesteps(1)
    assert int(leading.timesteps[0]) != 999  # the trap


def test_the_unet_paints_a_photo_of_any_proportions(unet_folder, monkeypatch):
    monkeypatch.setattr("seg2any.segment.coloring.published.LONGEST", 64)
    painter = UnetPainter(unet_folder)
    colors = painter.colors(PHOTO)
    assert colors.shape == (32, 64, 3) and colors.dtype == np.uint8
    assert colors.min() == 0 and colors.max() == 255
    assert np.array_equal(colors, painter.colors(PHOTO))
    with pytest.raises(UserError, match="read no words"):
        painter.colors(PHOTO, "a ring: red")


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gen2seg-mae")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = {f"decoder_{name}": value for name, value in small.items()}
    ViTMAEForPreTraining(ViTMAEConfig(**small, **decoder, image_size=32, patch_size=8)).save_pretrained(folder)
    return folder


def test_no_patch_is_masked_and_patches_come_back_in_their_places(mae_folder):
    painter = open_published(str(mae_folder), "cpu")
    assert isinstance(painter, MaePainter)
    logits = torch.zeros(1, 16, 8 * 8 * 3)
    logits[0, 6] = torch.arange(192.0) / 192  # row 1, column 2
    seen = {}

    def stand_in(pixels, noise):
        seen.update(pixels=pixels, noise=noise)
        return type("Output", (), {"logits": logits})

    stand_in.config, stand_in.unpatchify = painter.model.config, painter.model.unpatchify
    real, painter.model = painter.model, stand_in
    colors = painter.colors(PHOTO)
    assert seen["pixels"].shape == (1, 3, 32, 32) and (seen["noise"].diff() > 0).all()
    patch = (np.arange(192) / (191 + 192e-5)) ** 0.7 * 255
    assert np.abs(colors[8:16, 16:24].reshape(-1).astype(float) - patch).max() < 1
    outside = colors.copy()
    outside[8:16, 16:24] = 0
    assert not outside.any()
    found = real(seen["pixels"], noise=seen["noise"])
    assert not found.mask.any() and found.ids_restore[0].tolist() == list(range(16))


def test_other_folders_and_names_are_one_line(tmp_path, unet_folder):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="holds neither a U-Net of diffusers nor a ViT-MAE"):
        open_published(str(tmp_path), "cpu")
    with pytest.raises(UserError, match="no such folder; give one, reachomk/gen2seg-sd or reachomk/gen2seg-mae-h"):
        open_published("someone/else", "cpu")
    (tmp_path / "unet").symlink_to(unet_folder / "unet")
    with pytest.raises(UserError, match="vae: is missing or damaged"):
        open_published(str(tmp_path), "cpu")


def test_it_segments_by_points(unet_folder, monkeypatch):
    from seg2any.segment.coloring.segmenter import ColoringSegmenter

    monkeypatch.setattr("seg2any.segment.coloring.published.LONGEST", 64)
    segmenter = ColoringSegmenter(open_published(str(unet_folder), "cpu"))
    found = segmenter.segment(PHOTO, Prompt(points=np.array([[[0.5, 0.5, 1.0]]])))
    assert found.masks.shape == (1, 48, 96) and found.masks[0, 24, 48]
