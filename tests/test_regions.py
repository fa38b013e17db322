"""Token counts from annotations compared with drawn, resized and outlined masks."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks import plain_counts
from benchmarks.bucket_map import draw_blob
from seg2any.data import regions as regions_module
from seg2any.data.aspect import window
from seg2any.data.dataset import LabelMap, MaskStack, RunLengths
from seg2any.data.intervals import outline as outline_of_intervals
from seg2any.data.intervals import resized_intervals
from seg2any.data.regions import (
    EMPTY_REGION,
    REGION_WITHOUT_TOKEN,
    VANISHED_REGION,
    RegionCounts,
    condition_length,
    count_regions,
    text_lengths,
)
from seg2any.layout.contour import condition_image, kept_tokens, outline, resize_masks
from tests.golden_root import REPOSITORY


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REPOSITORY / "examples" / "shapes" / "model", subfolder="tokenizer_2")


def runs_of(mask: np.ndarray) -> np.ndarray:
    """Convert bool [H, W] to run lengths, column by column, outside first."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *changes, flat.size])
    return np.concatenate([[0], runs]) if flat[0] else runs


def by_definition(regions, size, cond_size, patch, aspect="stretch") -> RegionCounts:
    stored = regions.masks()
    rows, columns = window(regions.size, size, aspect)
    masks = resize_masks(stored[:, rows, columns], size)
    kept = kept_tokens(condition_image(masks, cond_size), patch)
    on_tokens = resize_masks(masks, (size[0] // patch, size[1] // patch))
    flags = 0
    for own, drawn, token in zip(stored, masks, on_tokens, strict=True):
        if not own.any():
            flags |= EMPTY_REGION
        elif not drawn.any():
            flags |= VANISHED_REGION
        elif not token.any():
            flags |= REGION_WITHOUT_TOKEN
    return RegionCounts(int(kept.sum()), flags)


def draw(rng: np.random.Generator, kind: int, height: int, width: int) -> np.ndarray:
    """Draw a random mask.

    It is noise, empty, one pixel, full, rectangles to the border, discs, rings, or single lines.
    """
    mask = np.zeros((height, width), bool)
    y, x = np.ogrid[:height, :width]
    row, column = rng.integers(height), rng.integers(width)
    distance = (y - row) ** 2 + (x - column) ** 2
    if kind == 0:
        return rng.random((height, width)) < rng.random()
    if kind == 2:
        mask[row, column] = True
    if kind == 3:
        return ~mask
    if kind == 4:
        mask[row : row + rng.integers(height + 1), column : column + rng.integers(width + 1)] = True
    if kind == 5:
        return distance < rng.integers(1, height + width) ** 2 / 4
    if kind == 6:
        return (distance < height * width / 4) & (distance > height * width / 16 * rng.random())
    if kind == 7:
        mask[row], mask[:, column] = True, True
    return mask


def random_sizes(rng: np.random.Generator) -> tuple:
    """Draw stored size, image size, condition size, patch and aspect.

    Scales grow and shrink, and sizes are even and odd.
    """
    height, width = (int(side) for side in rng.integers(1, 70, 2))
    patch, scale = int(rng.choice([1, 2, 4, 5, 16])), int(rng.choice([1, 1, 2, 2, 3, 4]))
    cond_size = tuple(int(side) for side in rng.integers(patch, 60, 2))
    odd = int(rng.random() < 0.1)
    size = (cond_size[0] * scale + odd, cond_size[1] * scale)
    return (height, width), size, cond_size, patch, str(rng.choice(["stretch", "bucket"]))


@pytest.mark.parametrize("seed", range(4))
def test_counts_of_overlapping_regions_follow_the_definition(seed: int):
    rng = np.random.default_rng(seed)
    seen = 0
    for _ in range(400):
        stored, *rest = random_sizes(rng)
        masks = [draw(rng, int(rng.integers(8)), *stored) for _ in range(rng.integers(0, 11))]
        stack = np.stack(masks) if masks else np.zeros((0, *stored), bool)
        expected = by_definition(MaskStack(stack), *rest)
        assert count_regions(MaskStack(stack), *rest) == expected, (stored, rest, "stack")
        assert count_regions(RunLengths(stored, tuple(map(runs_of, masks))), *rest) == expected, (stored, rest, "runs")
        seen |= expected.flags
    assert seen == EMPTY_REGION | VANISHED_REGION | REGION_WITHOUT_TOKEN


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_counts_of_label_maps_follow_the_definition(dtype):
    rng = np.random.default_rng(1)
    for _ in range(500):
        stored, *rest = random_sizes(rng)
        coarse = rng.integers(0, 8, (1 + stored[0] // rng.integers(1, 9), 1 + stored[1] // rng.integers(1, 9)))
        labels = resize_masks(coarse[None], stored)[0].astype(dtype) * (1 if dtype == np.uint8 else 300)
        values = rng.permutation(8)[: rng.integers(0, 8)] * (1 if dtype == np.uint8 else 300)
        regions = LabelMap(labels, tuple(int(value) for value in values))
        assert count_regions(regions, *rest) == by_definition(regions, *rest), (stored, rest, values)
        background = int(labels[0, 0])
        others = tuple(value for value in np.unique(labels).tolist() if value != background)
        regions = LabelMap(labels, others, background)
        assert count_regions(regions, *rest) == by_definition(regions, *rest), (stored, rest, background)


def test_counts_of_a_photograph_of_usual_size():
    rng = np.random.default_rng(2)
    masks = np.stack([draw_blob(rng, (1500, 2250), share) for share in (0.2, 0.05, 0.01, 0.3)])
    regions = RunLengths((1500, 2250), tuple(map(runs_of, masks)))
    expected = plain_counts.condition_tokens(masks.astype(np.uint8), 1024, 512)
    assert condition_length(regions, (1024, 1024), (512, 512)) == expected > 50
    assert condition_length(regions, (512, 512), (512, 512)) == plain_counts.condition_tokens(masks, 512, 512)


def test_the_outline_of_intervals_is_the_outline_of_the_masks_pixel_by_pixel():
    rng = np.random.default_rng(3)
    for _ in range(200):
        stored, size, *_ = random_sizes(rng)
        masks = np.stack([draw(rng, int(rng.integers(8)), *stored) for _ in range(3)])
        rows, columns = (np.sort(rng.integers(0, side, goal)) for side, goal in zip(stored, size, strict=True))
        intervals = resized_intervals(RunLengths(stored, tuple(map(runs_of, masks))), (rows, columns))
        drawn = np.zeros(size, np.uint8)
        for column, start, stop in zip(*outline_of_intervals(intervals), strict=True):
            drawn[start:stop, column] = 255
        np.testing.assert_array_equal(drawn, outline(masks[:, rows[:, None], columns]))


def test_run_lengths_and_label_maps_are_not_drawn(monkeypatch: pytest.MonkeyPatch):
    def refuse(self):
        raise AssertionError("drawn")

    for kind in (RunLengths, LabelMap):
        monkeypatch.setattr(kind, "masks", refuse)
    monkeypatch.setattr(regions_module, "condition_image", refuse)
    square = RunLengths((8, 8), (np.array([18, 4, 4, 4, 4, 4, 26]),))
    for scale in (1, 2):
        assert condition_length(square, (8 * scale, 8 * scale), (8, 8), 4) == 4
        assert condition_length(LabelMap(np.zeros((8, 8), np.uint8), (0,)), (8 * scale, 8 * scale), (8, 8), 4) == 4


def test_text_is_counted_as_one_caption_at_a_time_in_one_call(tokenizer):
    captions = [["a red ring", "a ring " * 400, ""], [], ["a red ring"], ["ünïcode – 猫", " two  spaces\n"]]
    expected = [[len(tokenizer(text, verbose=False).input_ids) for text in sample] for sample in captions]
    calls = []

    def counting(*arguments, **options):
        calls.append(arguments)
        return tokenizer(*arguments, **options)

    assert text_lengths(captions, counting) == expected
    assert len(calls) == 1 and sorted(calls[0][0]) == sorted({text for sample in captions for text in sample})
    assert text_lengths([[], []], counting) == [[], []]


def test_padding_that_an_earlier_call_left_switched_on_is_not_counted(tokenizer):
    expected = text_lengths([["a ring", "a red ring with dots"]], tokenizer)
    tokenizer(["a", "a b c d e f g h"], padding="longest", truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.padding is not None
    assert text_lengths([["a ring", "a red ring with dots"]], tokenizer) == expected
    tokenizer(["a"], padding="max_length", max_length=99)
    assert text_lengths([["a ring", "a red ring with dots"]], tokenizer) == expected
