"""Compare encoded layouts and assembled batches with stock FLUX and with single samples."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from seg2any import Layout
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import Kind
from seg2any.bases.flux1.base import Flux1
from seg2any.bases.packing import pack, unpack
from seg2any.bases.text import TextKey, TruncationWarning, UnknownWordsWarning
from seg2any.diffusion.noise import packed_noise
from seg2any.diffusion.prepare import as_image, assemble, encode_layouts, size_in_tokens
from seg2any.layout.contour import condition_image
from seg2any.system.errors import UserError

SIZE = (64, 96)  # not square: 4 x 6 tokens
GRID = (4, 6)
SETTINGS = ConditionSettings(max_sequence_length=24, regional_max_sequence_length=12)
UNFILTERED = dataclasses.replace(SETTINGS, is_filter_cond_token=False)


def layout(boxes: list[tuple[int, int, int, int]], caption: str | None = "a red circle", **rest) -> Layout:
    """Make a layout of rectangles (top, left, bottom, right), captioned in order."""
    masks = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    names = ("a blue square", "a green star", "a plain heart")
    return Layout(masks, names[: len(boxes)], caption, **rest)


ONE = layout([(5, 5, 40, 50)])
TWO = layout([(0, 0, 20, 96), (30, 40, 60, 80)], caption=None)
THREE = layout([(2, 2, 30, 30), (10, 20, 50, 60), (50, 70, 63, 95)], caption="a star on the letter background")
NOTHING_DRAWN = Layout(np.zeros((1, *SIZE), dtype=bool), ("a blue square",), "a red circle")


@pytest.fixture
def counted(stock_pipe: FluxPipeline, monkeypatch):
    """Yield the pipeline and a list that collects the input ids of every T5 pass."""
    passes = []
    forward = stock_pipe.text_encoder_2.forward
    monkeypatch.setattr(
        stock_pipe.text_encoder_2,
        "forward",
        lambda ids, *args, **kw: (passes.append(ids), forward(ids, *args, **kw))[1],
    )
    return stock_pipe, passes


def t5_alone(pipe: FluxPipeline, caption: str, length: int) -> torch.Tensor:
    """Return the embedding [length, D] that stock FLUX computes for a caption."""
    with torch.no_grad():
        return pipe._get_t5_prompt_embeds(caption, max_sequence_length=length)[0]


def test_every_caption_is_encoded_alone_at_its_own_length_without_its_padding(stock_pipe):
    (encoded,) = encode_layouts([THREE], SIZE, Flux1(stock_pipe), SETTINGS)
    for rows, caption, length in zip(
        (encoded.text.caption, *encoded.text.regions), (THREE.caption, *THREE.captions), (24, 12, 12, 12), strict=True
    ):
        n_own = len(stock_pipe.tokenizer_2(caption).input_ids)
        assert len(rows) == n_own < length
        torch.testing.assert_close(rows, t5_alone(stock_pipe, caption, length)[:n_own], atol=1e-5, rtol=0)


def test_the_padding_length_is_part_of_an_embedding(stock_pipe):
    same_text = Layout(ONE.masks, ("a red circle",), "a red circle")
    (encoded,) = encode_layouts([same_text], SIZE, Flux1(stock_pipe), SETTINGS)
    assert (encoded.text.caption - encoded.text.regions[0]).abs().max() > 1e-3


def test_pooled_text_is_of_the_caption_or_of_the_regions_joined_with_dots(stock_pipe):
    one, two = encode_layouts([ONE, TWO], SIZE, Flux1(stock_pipe), SETTINGS)
    with torch.no_grad():
        expected = stock_pipe._get_clip_prompt_embeds(["a red circle", "a blue square.a green star"])
    torch.testing.assert_close(torch.stack([one.text.pooled, two.text.pooled]), expected, atol=1e-5, rtol=0)
    assert len(two.text.caption) == 0


def test_equal_captions_are_encoded_once_also_across_calls(counted):
    pipe, passes = counted
    known = {}
    encode_layouts([ONE, TWO, THREE, ONE], SIZE, Flux1(pipe), SETTINGS, known)
    assert sum(len(ids) for ids in passes) == 5  # 2 global captions, 3 region captions
    passes.clear()
    key = TextKey("a green star", 12, "t5")
    known[key] = torch.full_like(known[key], 7)
    (encoded,) = encode_layouts([TWO], SIZE, Flux1(pipe), SETTINGS, known)
    assert not passes
    assert (encoded.text.regions[1] == 7).all()
    encode_layouts([TWO], SIZE, Flux1(pipe), dataclasses.replace(SETTINGS, regional_max_sequence_length=11), known)
    assert [ids.shape for ids in passes] == [(2, 11)]


def test_cut_captions_are_named_with_their_loss(stock_pipe):
    n_own = len(stock_pipe.tokenizer_2(THREE.caption).input_ids)
    settings = dataclasses.replace(SETTINGS, max_sequence_length=n_own - 2)
    with pytest.warns(TruncationWarning, match=f"'{THREE.caption}' .*{n_own} tokens, 2 ") as caught:
        (encoded,) = encode_layouts([THREE], SIZE, Flux1(stock_pipe), settings)
    assert len(caught) == 1
    assert encoded.text.lengths[0] == n_own - 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_layouts([THREE], SIZE, Flux1(stock_pipe), dataclasses.replace(SETTINGS, max_sequence_length=n_own))


def test_words_that_the_tokenizer_does_not_know_are_told_once(stock_pipe):
    captions = ("a blue square", "\u7ea2 square", "\u5706")
    layout = dataclasses.replace(THREE, captions=captions)
    with pytest.warns(UnknownWordsWarning, match="'\u7ea2 square' and 1 more: .*'\u7ea2'") as caught:
        encode_layouts([layout], SIZE, Flux1(stock_pipe), SETTINGS)
    assert len(caught) == 1


def test_condition_tokens_are_the_encoded_contour_where_it_is_drawn(stock_pipe):
    settings = dataclasses.replace(SETTINGS, cond_scale_factor=2, vae_posterior="mode")
    (encoded,) = encode_layouts([ONE], SIZE, Flux1(stock_pipe), settings)
    image = condition_image(ONE.masks, (32, 48))
    with torch.no_grad():
        latents = stock_pipe.vae.encode(as_image(image)).latent_dist.mode()
    config = stock_pipe.vae.config
    packed = FluxPipeline._pack_latents((latents - config.shift_factor) * config.scaling_factor, 1, 16, 4, 6)[0]
    drawn = [(row, col) for row in range(2) for col in range(3) if image[16 * row :, 16 * col :][:16, :16].any()]
    assert 0 < len(drawn) < 6
    assert encoded.cond.positions.tolist() == [list(place) for place in drawn]
    expected = packed[[3 * row + col for row, col in drawn]]
    condition = assemble([encoded], settings)
    torch.testing.assert_close(condition.cond[0], expected, atol=1e-5, rtol=0)
    cond = condition.tokens.kind[0] == Kind.COND
    assert condition.tokens.positions[0, cond].tolist() == [[0, 2 * row, 2 * col] for row, col in drawn]


def test_without_the_filter_every_condition_token_stays_in_its_place(stock_pipe):
    (kept,) = encode_layouts([THREE], SIZE, Flux1(stock_pipe), SETTINGS)
    (whole,) = encode_layouts(
        [THREE], SIZE, Flux1(stock_pipe), dataclasses.replace(SETTINGS, is_filter_cond_token=False)
    )
    assert len(kept.cond.positions) < len(whole.cond.positions) == 24
    index = [whole.cond.positions.tolist().index(place) for place in kept.cond.positions.tolist()]
    same_noise = (torch.Generator().manual_seed(5) for _ in range(2))
    samples = [cond.sample(next(same_noise)) for cond in (kept.cond, whole.cond)]
    assert torch.equal(samples[0], samples[1][index])


def test_contour_latents_are_drawn_as_the_vae_draws_them(stock_pipe):
    (encoded,) = encode_layouts(
        [ONE], SIZE, Flux1(stock_pipe), dataclasses.replace(SETTINGS, is_filter_cond_token=False)
    )
    image = as_image(condition_image(ONE.masks, SIZE))
    with torch.no_grad():
        latents = stock_pipe.vae.encode(image).latent_dist.sample(torch.Generator().manual_seed(3))
    config = stock_pipe.vae.config
    expected = pack((latents - config.shift_factor) * config.scaling_factor)[0]
    drawn = assemble([encoded], SETTINGS, [torch.Generator().manual_seed(3)]).cond[0]
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    mode = assemble([encoded], dataclasses.replace(SETTINGS, vae_posterior="mode")).cond[0]
    torch.testing.assert_close(mode, encoded.cond.posterior.mean)
    assert not torch.allclose(mode, drawn, atol=1e-3)


def own_rows(condition, sample: int) -> tuple[torch.Tensor, ...]:
    """Cut one sample out of a batch, without its padding."""
    kind = condition.tokens.kind[sample]
    own = (kind != Kind.TEXT_PAD) & (kind != Kind.COND_PAD)
    text, cond = own[: condition.tokens.n_text], kind[kind.numel() - condition.tokens.n_cond :] == Kind.COND
    return (
        kind[own],
        condition.tokens.entities[sample, own],
        condition.tokens.positions[sample, own],
        condition.text[sample, text],
        condition.pooled[sample],
        condition.cond[sample, cond],
    )


@pytest.mark.same_numbers("a layout in a batch, and alone | 1e-4")
def test_a_batch_holds_what_its_samples_hold_alone(stock_pipe):
    layouts = [ONE, TWO, THREE, NOTHING_DRAWN]
    encoded = encode_layouts(layouts, SIZE, Flux1(stock_pipe), SETTINGS)
    batch = assemble(encoded, SETTINGS, [torch.Generator().manual_seed(s) for s in range(4)])
    for number, one in enumerate(layouts):
        alone = assemble(
            encode_layouts([one], SIZE, Flux1(stock_pipe), SETTINGS), SETTINGS, [torch.Generator().manual_seed(number)]
        )
        for found, expected in zip(own_rows(batch, number), own_rows(alone, 0), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        text_pad = batch.tokens.kind[number, : batch.tokens.n_text] == Kind.TEXT_PAD
        assert not batch.text[number, text_pad].any()


def test_a_sample_that_lost_its_contour_fits_into_a_batch(stock_pipe):
    one, three = encode_layouts([ONE, THREE], SIZE, Flux1(stock_pipe), SETTINGS)
    condition = assemble([dataclasses.replace(one, cond=None), three], SETTINGS)
    assert condition.cond.shape == (2, len(three.cond), 64)
    assert not condition.cond[0].any()
    assert not (condition.tokens.kind[0] == Kind.COND).any()


def test_no_condition_stream_without_condition_tokens(stock_pipe):
    settings = dataclasses.replace(SETTINGS, is_use_cond_token=False)
    condition = assemble(encode_layouts([ONE, THREE], SIZE, Flux1(stock_pipe), settings), settings)
    assert condition.cond is None
    assert condition.tokens.n_cond == 0


def test_plain_flux_takes_the_caption_with_its_padding_and_nothing_else(stock_pipe):
    settings = dataclasses.replace(SETTINGS, attention_mask_method="none")
    condition = assemble(encode_layouts([THREE], SIZE, Flux1(stock_pipe), settings), settings)
    torch.testing.assert_close(condition.text[0], t5_alone(stock_pipe, THREE.caption, 24), atol=1e-5, rtol=0)
    assert condition.tokens.kind.unique().tolist() == [Kind.GLOBAL, Kind.IMAGE]
    with pytest.raises(UserError, match="attention_mask_method none"):
        encode_layouts([TWO], SIZE, Flux1(stock_pipe), settings)


def test_place_weighs_tokens_by_the_covered_part(stock_pipe):
    settings = dataclasses.replace(SETTINGS, attention_mask_method="place")
    condition = assemble(encode_layouts([ONE, THREE], SIZE, Flux1(stock_pipe), settings), settings)
    by_hand = ONE.masks[0].reshape(4, 16, 6, 16).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(condition.tokens.coverage[0, 0].numpy(), by_hand, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 90), (16, 32), (0, 32)])
def test_sizes_that_do_not_fit_the_condition_grid_are_refused(stock_pipe, size):
    with pytest.raises(UserError, match="image size"):
        encode_layouts([ONE], size, Flux1(stock_pipe), dataclasses.replace(SETTINGS, cond_scale_factor=2))


@pytest.mark.parametrize(
    "wrong",
    [{"cond_scale_factor": 0}, {"max_sequence_length": 1.5}, {"region_assignment": "best"}, {"vae_posterior": ""}],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ConditionSettings(**wrong)


def test_override_reaches_settings_and_rules_and_skips_none():
    changed = SETTINGS.override({"attention_mask_method": "base", "cond_scale_factor": 2, "max_sequence_length": None})
    assert changed == dataclasses.replace(SETTINGS, attention_mask_method="base", cond_scale_factor=2)


def test_packing_and_noise_are_those_of_stock_flux(stock_pipe):
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(pack(latents), GRID), latents)
    stock, _ = stock_pipe.prepare_latents(1, 16, *SIZE, torch.bfloat16, "cpu", torch.Generator().manual_seed(4))
    assert torch.equal(packed_noise(GRID, 16, torch.Generator().manual_seed(4)).bfloat16(), stock)


def test_images_survive_the_latent_scaling(stock_pipe, monkeypatch):
    """Check that shift and scale cancel between encoding and decoding."""
    monkeypatch.setitem(stock_pipe.vae._internal_dict, "shift_factor", 0.3)
    monkeypatch.setitem(stock_pipe.vae._internal_dict, "scaling_factor", 0.6)
    images = torch.rand(2, 3, *SIZE) * 2 - 1
    with torch.no_grad():
        expected = stock_pipe.vae.decode(stock_pipe.vae.encode(images).latent_dist.mode()).sample
    base = Flux1(stock_pipe)
    found = base.decode(base.encode_images(images).mean, GRID)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert base.geometry.pixels_per_token == 16 and size_in_tokens(SIZE, 16) == GRID


def test_pixels_become_signed_numbers_bit_by_bit():
    """Compare with the published formula (x / 255 - 0.5) / 0.5, for grey and coloured pixels."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = torch.from_numpy(grey).to(torch.float32).div(255).sub(0.5).div(0.5)
    assert torch.equal(as_image(grey), expected.expand(1, 3, -1, -1))
    assert torch.equal(as_image(np.stack([grey, grey.T, grey], 2)), torch.stack([expected, expected.T, expected])[None])
