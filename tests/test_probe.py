"""Reading attention out of a model: exact weights, an unchanged network, bounded memory, refusals."""

from __future__ import annotations

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from benchmarks.scenes import SampleTokens
from seg2any.attention.attend import AttentionPlan, attention_weights
from seg2any.attention.settings import PLAIN
from seg2any.attention.tokens import layout_tokens
from seg2any.bases.text import encode_texts
from seg2any.segment import attention_maps, probe
from seg2any.segment.attention import AttentionSegmenter, Choices
from seg2any.segment.attention_maps import AttentionMaps, image_to_text
from seg2any.segment.phrases import chunks_of, columns_in
from seg2any.segment.probe import ProbeSettings, comparable, read_attention, working_size
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from tests.fake_cuda import FakeCuda
from tests.fake_trace import Trace
from tests.tiny_flux import CONFIG, GRID, base_of, condition, inputs, run, sample, tiny

N_BLOCKS = CONFIG["num_layers"] + CONFIG["num_single_layers"]
BACKENDS = ("auto", "sdpa", "matmul", "dense")


def plain_condition(batch: int = 2, backend: str = "auto"):
    """Return a condition of a global caption of equal length in every sample."""
    samples = [sample(0, n_entities=0, n_cond=None)] * batch
    return condition(samples, PLAIN.override({"attention_backend": backend}))


def tensors(batch: int = 2, n: int = 23, heads: int = 3, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(batch, n, heads, width, generator=generator) for _ in range(2))


@pytest.mark.parametrize("room", [1, 50, 10**6])
def test_weights_are_those_of_the_formula_in_slices_of_any_size(room: int, monkeypatch):
    query, key = tensors()
    before = query.clone(), key.clone()
    monkeypatch.setattr(attention_maps, "SLICE", room)
    found = image_to_text(query, key, 5, 14)  # 4 further tokens, which are keys too
    assert_close(found, attention_weights(query, key, None).mean(1)[:, 5:19, :5], rtol=1e-5, atol=1e-7)
    assert torch.equal(query, before[0]) and torch.equal(key, before[1])


def test_planted_queries_and_keys_give_the_planted_map():
    """Let each image token look for one of three text tokens."""
    wanted = torch.tensor([0, 1, 2, 2, 1, 0])
    directions = torch.eye(8)[:3] * 8
    key = torch.cat([directions, torch.zeros(6, 8)])[None, :, None].expand(1, 9, 2, 8)
    query = torch.cat([torch.zeros(3, 8), 8 * torch.eye(8)[wanted]])[None, :, None].expand(1, 9, 2, 8)
    weights = image_to_text(query, key, 3, 6)
    assert torch.equal(weights[0].argmax(1), wanted) and (weights[0].max(1).values > 0.99).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_computes_the_same_bits_with_a_probe(backend: str, dtype: torch.dtype):
    model, given = tiny().to(dtype), plain_condition(2, backend).to("cpu", dtype)
    told = {"hidden_states": inputs(2)["hidden_states"].to(dtype), "timestep": torch.full((2,), 0.25, dtype=dtype)}
    maps = AttentionMaps(range(N_BLOCKS))
    with torch.no_grad():
        expected = run(model, given, **told)
        assert torch.equal(run(model, given, **told, tap=maps), expected)
        assert torch.equal(run(model, given, **told), expected)
    weights = maps.weights()
    assert weights.shape == (N_BLOCKS, 2, GRID[0] * GRID[1], given.tokens.n_text)
    assert (weights > 0).all() and (weights.sum(-1) < 1).all()
    assert_close(weights[:, 0], weights[:, 1], rtol=1e-4, atol=1e-6)  # equal samples


def test_gradient_checkpointing_keeps_each_block_once_and_gradients_as_they_are():
    model, given = tiny(), plain_condition()
    model.enable_gradient_checkpointing()
    model.train()
    found = []
    for tap in (None, AttentionMaps(range(N_BLOCKS))):
        model.zero_grad()
        output = run(model, given, tap=tap)
        before = None if tap is None else tap.weights().clone()
        output.square().sum().backward()
        found.append((output.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(found[0][0], found[1][0]) and len(found[0][1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert torch.equal(tap.weights(), before) and not before.requires_grad


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_bits_with_a_probe():
    """Compile as `Seg2AnyPipeline.compile` does; a compiler that computes eagerly stands in for CUDA's."""
    model, given = tiny(), plain_condition()
    maps, eager = (AttentionMaps(range(N_BLOCKS)) for _ in range(2))
    with torch.no_grad():
        run(model, given, tap=eager)
        model.compile_repeated_blocks(dynamic=True, backend="eager")
        expected = run(model, given)
        assert torch.equal(run(model, given, tap=maps), expected)
    assert_close(maps.weights(), eager.weights(), rtol=1e-4, atol=1e-6)


def test_nothing_of_a_probe_is_left_also_after_an_exception():
    model, given, seen = tiny(), plain_condition(), []

    class Failing(AttentionMaps):
        def __call__(self, block, *others):
            super().__call__(block, *others)
            if block == 2:
                raise RuntimeError("in the middle")

    for kind, error in ((AttentionMaps, None), (Failing, RuntimeError)):
        maps = kind([0, 1])
        seen.append(weakref.ref(maps))
        with torch.no_grad():
            if error is None:
                run(model, given, tap=maps)
            else:
                with pytest.raises(error):
                    run(model, given, tap=maps)
        held = maps.weights()
        del maps
        with torch.no_grad():
            run(model, given)
        assert held.shape[0] == 2
    gc.collect()
    assert [one() for one in seen] == [None, None]


def test_memory_at_the_size_of_flux_is_under_200_mb_whatever_the_heads():
    """Count two blocks at 1024 px in bfloat16: 512 text and 4096 image tokens."""
    tokens = layout_tokens([SampleTokens((512,), np.zeros((0, 64, 64), bool), None)])
    pattern, peaks = AttentionPlan(tokens, PLAIN).pattern(0), []
    for heads in (1, 3):
        with FakeCuda():
            shape = (1, 512 + 4096, heads, 128)
            query, key = (torch.empty(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
            maps = AttentionMaps([12, 17])
            with Trace() as trace:
                for block in maps.blocks:
                    maps(block, query, key, pattern)
                assert maps.weights().shape == (2, 1, 4096, 512)
        peaks.append(trace.peak)
    assert 2 * 4096 * 512 * 4 < peaks[0] == peaks[1] < 200e6


def test_regional_masks_are_refused_with_the_reason():
    base, settings = base_of(tiny()), ProbeSettings((0,), 64)
    x = inputs(1)["hidden_states"]
    with pytest.raises(UserError, match="attention_mask_method hard: its masks keep regions apart.*method none"):
        read_attention(base, x, 0.5, condition([sample(0)]), settings)
    with pytest.raises(UserError, match="block 1: a mask keeps regions apart"), torch.no_grad():
        run(base.network, condition([sample(0)]), tap=AttentionMaps([1]))


def test_a_block_that_does_not_exist_is_refused():
    base, x = base_of(tiny()), inputs(1)["hidden_states"]
    with pytest.raises(UserError, match="block 9: the network did not run it"), torch.no_grad():
        read_attention(base, x, 0.5, plain_condition(1), ProbeSettings((9,), 64))


def test_weights_of_several_prompts_are_comparable():
    """Compare with one softmax over all tokens: the quotient of any two weights is the same."""
    scores = torch.randn(6, 10 + 7, generator=torch.Generator().manual_seed(0))
    whole = scores.softmax(-1)[:, 10:]
    image, first, second = scores[:, :10], scores[:, 10:13], scores[:, 13:]
    parts = [torch.cat([image, own], 1).softmax(-1)[None, :, 10:] for own in (first, second)]
    joined = torch.cat(comparable(parts), -1)[0]
    assert_close(joined / joined[:, :1], whole / whole[:, :1], rtol=1e-4, atol=1e-5)
    assert comparable(parts[:1])[0] is parts[0]


@pytest.mark.parametrize(
    ("size", "side"), [((480, 640), 1024), ((100, 20000), 1024), ((16, 16), 256), ((3000, 30), 64)]
)
def test_the_working_size_keeps_aspect_and_area_in_whole_tokens(size: tuple[int, int], side: int):
    height, width = working_size(size, side, 16)
    assert height % 16 == width % 16 == 0 and min(height, width) >= 16 and max(height, width) <= 2048
    assert height * width <= 1.5 * side**2 + 2048 * 16
    if max(size) / min(size) < 2:
        assert abs(height / width - size[0] / size[1]) < 0.05


def test_phrases_are_read_in_chunks_and_found_by_offsets(stock_pipe):
    tokenizer = stock_pipe.tokenizer_2
    phrases = ["a red star", "a ring", "a blue circle", "a green square"]
    (whole,) = chunks_of(phrases, tokenizer, 512)
    assert whole.prompt == "a blue circle a green square a red star a ring"
    ids = tokenizer(whole.prompt).input_ids
    for number, columns in zip(whole.phrases, whole.columns, strict=True):
        own = tokenizer(phrases[number]).input_ids[:-1]
        assert [ids[column] for column in columns] == own and len(own) > 1
    parts = chunks_of(phrases, tokenizer, 9)
    assert len(parts) > 1 and sorted(itertools.chain(*(part.phrases for part in parts))) == [0, 1, 2, 3]
    assert all(len(tokenizer(part.prompt).input_ids) <= 9 for part in parts)
    assert columns_in("a ring and a ring", ["a ring", "a ring"], tokenizer)[0] != ()
    assert columns_in("a ring", ["a star"], tokenizer) is None


@pytest.mark.parametrize(
    ("phrases", "message"),
    [(["a star " * 400], "has .* tokens, and 511 are read; shorten it"), (["a star", "a star"], "is given twice")],
)
def test_phrases_that_cannot_be_read_are_refused(stock_pipe, phrases: list[str], message: str):
    with pytest.raises(UserError, match=message) as error:
        chunks_of(phrases, stock_pipe.tokenizer_2, 512)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.fixture(scope="module")
def segmenter(pipe) -> AttentionSegmenter:
    settings = ProbeSettings((0, 3), 64, text_tokens=24)
    return AttentionSegmenter(pipe.base, pipe.scheduler, settings)


PHOTO = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
PHRASES = ("a red star", "a ring", "a blue circle")


@torch.no_grad()
@pytest.mark.parametrize("field", ["phrases", "categories"])
def test_regions_do_not_depend_on_the_order_of_phrases(segmenter, field: str):
    layout = segmenter.segment(PHOTO, Prompt(**{field: PHRASES}))
    turned = segmenter.segment(PHOTO, Prompt(**{field: PHRASES[::-1]}))
    assert layout.captions == PHRASES and layout.masks.shape == (3, 40, 56) and "blocks 0 3" in layout.source
    assert np.array_equal(layout.masks, turned.masks[::-1]) and np.array_equal(layout.scores, turned.scores[::-1])
    if field == "categories":
        assert (layout.masks.sum(0) == 1).all()


def test_a_background_takes_its_pixels_from_every_region(segmenter):
    with_background = AttentionSegmenter(segmenter.base, segmenter.scheduler, segmenter.settings, Choices("a wall"))
    maps = with_background.maps(PHOTO, [*PHRASES, "a wall"])
    layout = with_background.segment(PHOTO, Prompt(categories=PHRASES))
    best = torch.nn.functional.interpolate(maps[None], (40, 56), mode="bilinear")[0].argmax(0).numpy()
    assert np.array_equal(layout.background, best == 3)
    masks = with_background.segment(PHOTO, Prompt(phrases=PHRASES)).masks
    assert not (masks & ~(best != 3)).any()


def test_without_phrases_regions_cover_the_image_once(segmenter):
    layout = segmenter.segment(PHOTO, Prompt())
    assert (layout.masks.sum(0) == 1).all() and layout.captions[0] == "region 1" and layout.masks.any((1, 2)).all()


@pytest.mark.parametrize("fields", [{"phrases": PHRASES}, {"categories": PHRASES}, {}])
def test_a_flat_photo_has_no_region(segmenter, fields: dict):
    layout = segmenter.segment(np.full((20, 30, 3), 77, np.uint8), Prompt(**fields))
    assert layout.size == (20, 30) and not layout.masks.any() and not layout.scores.any()


def test_points_and_boxes_are_refused(segmenter):
    with pytest.raises(UserError, match="attention: the prompt holds boxes; give phrases or categories or an empty"):
        segmenter.segment(PHOTO, Prompt(boxes=np.array([[0.1, 0.2, 0.5, 0.9]])))


def test_several_seeds_are_averaged(segmenter):
    base = segmenter.base
    x0, grid = probe.encode_image(base, PHOTO, 64)
    plain = PLAIN.override({"max_sequence_length": 24})
    (text,) = encode_texts([base.caption_keys("a ring", (), plain)], base)
    one, two, both = (
        probe.probe(base, x0, grid, text, 0.4, ProbeSettings((0, 3), 64, seeds=seeds, text_tokens=24))
        for seeds in ((1,), (2,), (1, 2))
    )
    assert not torch.equal(one, two)
    assert_close(both, (one + two) / 2)


def test_the_noise_level_is_the_published_step_of_the_schedule(segmenter):
    assert abs(probe.published_level(segmenter.base, segmenter.scheduler, 4096) - 0.5581628) < 1e-6
