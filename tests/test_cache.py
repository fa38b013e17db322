"""Encoded data sets against encoding directly."""

from __future__ import annotations

import copy
import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from seg2any.data.catalog import open_data_set
from seg2any.latents import encode_images
from seg2any.prepare import encode_layouts
from seg2any.settings import ConditionSettings
from seg2any.training.cache import EncodedDataSet, cached_data_set, encode_data_set, fingerprint_of, to_pixels

SETTINGS = ConditionSettings(max_sequence_length=48, regional_max_sequence_length=12)
HALF = {"rtol": 1e-3, "atol": 1e-3}  # fp16 storage


@pytest.fixture(scope="module")
def samples():
    data = open_data_set("shapes", {"n_scenes": 4, "entities": [1, 3]})
    return [data[i] for i in range(4)]


def in_batches(samples, size=3):
    return [samples[start : start + size] for start in range(0, len(samples), size)]


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        dataclasses.replace(SETTINGS, vae_posterior="mode", cond_scale_factor=2),
        dataclasses.replace(SETTINGS, is_use_cond_token=False),
        SETTINGS.override({"method": "place"}),
    ],
    ids=["sample", "mode", "no_contour", "place"],
)
def test_every_part_of_a_sample_comes_back_from_the_file(samples, stock_pipe, settings, tmp_path):
    encode_data_set(in_batches(samples), 64, stock_pipe, settings).save(tmp_path / "x.safetensors", "a")
    encoded = EncodedDataSet.read(tmp_path / "x.safetensors", "a")
    layouts = encode_layouts([sample.layout for sample in samples], (64, 64), stock_pipe, settings)
    assert len(encoded) == len(samples)
    for index, (sample, layout) in enumerate(zip(samples, layouts, strict=True)):
        ours = encoded[index]
        posterior = encode_images(to_pixels(sample.image, 64)[None], stock_pipe.vae)[0]
        torch.testing.assert_close(ours.image.mean, posterior.mean, **HALF)
        is_mode = settings.vae_posterior == "mode"
        torch.testing.assert_close(ours.image.std, posterior.std * (not is_mode), **HALF)
        assert ours.layout.text.lengths == layout.text.lengths
        torch.testing.assert_close(ours.layout.text.embeds.float(), layout.text.embeds, **HALF)
        torch.testing.assert_close(ours.layout.text.pooled.float(), layout.text.pooled, **HALF)
        assert np.array_equal(ours.layout.masks, layout.masks)
        assert (ours.layout.coverage is None) == (layout.coverage is None)
        if layout.coverage is not None:
            assert np.array_equal(ours.layout.coverage, layout.coverage)
        assert (ours.layout.contour is None) == (layout.contour is None)
        if layout.contour is not None:
            assert torch.equal(ours.layout.contour.positions, layout.contour.positions)
            assert ours.layout.contour.grid == tuple(layout.contour.grid)
            torch.testing.assert_close(ours.layout.contour.posterior.mean, layout.contour.posterior.mean, **HALF)
        n_cond = 0 if layout.contour is None else len(layout.contour.positions)
        assert ours.lengths == (sum(layout.text.lengths), 16, n_cond)


def test_a_caption_is_stored_once_and_never_mistaken_for_another(samples, stock_pipe):
    without_caption = [dataclasses.replace(s, layout=dataclasses.replace(s.layout, caption=None)) for s in samples]
    encoded = encode_data_set(in_batches([*samples, *samples, *without_caption], 1), 64, stock_pipe, SETTINGS)
    captions = {c for s in samples for c in (*s.layout.captions, s.layout.caption)}
    assert len(encoded.columns["text.offsets"]) - 1 == len(captions) + len(without_caption)
    assert torch.equal(encoded[0].layout.text.embeds, encoded[4].layout.text.embeds)
    assert [len(encoded[8 + i].layout.text.caption) for i in range(4)] == [0] * 4


def test_the_file_is_used_only_for_exactly_these_samples_and_encoders(samples, stock_pipe, tmp_path, monkeypatch):
    def cached(batches, data=samples, resolution=64, settings=SETTINGS):
        return cached_data_set(data, batches, resolution, stock_pipe, settings, str(tmp_path))

    first = cached(in_batches(samples))
    again = cached(batches=None)  # would fail if it were encoded anew
    assert again.columns.keys() == first.columns.keys()
    assert all(torch.equal(again.columns[name], first.columns[name]) for name in first.columns)
    (file,) = tmp_path.iterdir()

    changes = {
        "samples": lambda: cached(None, data=Subset(samples, [0, 1])),
        "order": lambda: cached(None, data=Subset(samples, [3, 2, 1, 0])),
        "resolution": lambda: cached(None, resolution=128),
        "lengths": lambda: cached(None, settings=dataclasses.replace(SETTINGS, max_sequence_length=40)),
    }
    for change in changes.values():
        with pytest.raises(TypeError, match="NoneType"):
            change()
    fingerprint = fingerprint_of(samples, 64, stock_pipe, SETTINGS)
    monkeypatch.setattr(stock_pipe, "vae", copy.deepcopy(stock_pipe.vae))
    torch.nn.init.ones_(stock_pipe.vae.encoder.conv_in.bias)
    assert fingerprint_of(samples, 64, stock_pipe, SETTINGS) != fingerprint
    monkeypatch.undo()
    isolated = SETTINGS.override({"hard_attn_block_range": (1, 2)})
    assert fingerprint_of(samples, 64, stock_pipe, isolated) == fingerprint_of(samples, 64, stock_pipe, SETTINGS)

    file.write_bytes(file.read_bytes()[:1000])  # a damaged file is encoded again
    assert len(cached(in_batches(samples))) == 4 and os.path.getsize(file) > 1000


def test_pixels_are_stretched_with_pil_and_scaled_to_one():
    image = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
    expected = torch.from_numpy((resized.astype(np.float64) / 255 - 0.5) / 0.5).permute(2, 0, 1).float()
    torch.testing.assert_close(to_pixels(image, 16), expected)
