"""Compare contours with their definition, pixel by pixel, and with the libraries of the published code."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.layout.contour import condition_image, kept_tokens, outline, resize_masks


def random_masks(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw bool [n, H, W]: noise, blobs with holes, lines, a full and an empty mask, up to the border."""
    height, width = rng.integers(1, 40, size=2)
    masks = []
    for _ in range(n):
        kind = rng.integers(5)
        noise = rng.random((height, width)).astype(np.float32)
        if kind == 0:
            masks.append(noise < rng.random())
        elif kind == 1:
            blurred = cv2.GaussianBlur(noise, (0, 0), 2)
            masks.append(blurred > np.median(blurred))
        elif kind == 2:
            line = np.zeros((height, width), dtype=np.uint8)
            cv2.line(line, tuple(rng.integers(-5, 45, 2).tolist()), tuple(rng.integers(-5, 45, 2).tolist()), 1, 2)
            masks.append(line > 0)
        else:
            masks.append(np.full((height, width), kind == 3))
    return np.stack(masks) if n else np.zeros((0, height, width), dtype=bool)


def outline_by_definition(masks: np.ndarray) -> np.ndarray:
    n, height, width = masks.shape
    contour = np.zeros((height, width), dtype=np.uint8)
    for mask in masks:
        for y in range(height):
            for x in range(width):
                neighbours = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [0 <= v < height and 0 <= u < width and mask[v, u] for v, u in neighbours]
                if mask[y, x] and not all(inside):
                    contour[y, x] = 255
    return contour


@pytest.mark.parametrize("seed", range(40))
def test_outline_is_its_definition_and_what_findcontours_draws(seed: int):
    rng = np.random.default_rng(seed)
    masks = random_masks(rng, int(rng.integers(0, 6)))
    expected = outline_by_definition(masks)
    np.testing.assert_array_equal(outline(masks), expected)
    drawn = np.zeros(masks.shape[1:], dtype=np.uint8)
    for mask in masks:
        found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(drawn, found, -1, 255, thickness=1)
    np.testing.assert_array_equal(outline(masks), drawn)


def test_outline_by_hand():
    picture = ["......", ".####.", ".####.", ".####.", "......"]
    mask = np.array([[pixel == "#" for pixel in row] for row in picture])
    expected = ["......", ".####.", ".#..#.", ".####.", "......"]
    assert ["".join("#" if pixel else "." for pixel in row) for row in outline(mask[None])] == expected


@pytest.mark.parametrize("seed", range(60))
def test_resize_is_nearest_exact(seed: int):
    rng = np.random.default_rng(seed)
    height, width, h, w = (int(side) for side in rng.integers(1, 700 if seed % 3 == 0 else 60, size=4))
    masks = rng.random((2, height, width)) < 0.5
    resized = resize_masks(masks, (h, w))
    by_torch = torch.nn.functional.interpolate(torch.from_numpy(masks)[None].float(), size=(h, w), mode="nearest-exact")
    np.testing.assert_array_equal(resized, by_torch[0].numpy() > 0)


def test_resize_to_the_same_size_changes_nothing():
    masks = random_masks(np.random.default_rng(3), 4)
    np.testing.assert_array_equal(resize_masks(masks, masks.shape[1:]), masks)


def test_condition_image():
    masks = np.zeros((2, 64, 96), dtype=bool)
    masks[0, 5:40, 7:50], masks[1, 30:64, 40:96] = True, True
    np.testing.assert_array_equal(condition_image(masks, (64, 96)), outline(masks))
    half = condition_image(masks, (32, 48))
    assert half.shape == (32, 48) and half.dtype == np.uint8
    by_pil = Image.fromarray(outline(masks)).resize((48, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(half, np.array(by_pil))
    covered = outline(masks).reshape(32, 2, 48, 2).any(axis=(1, 3))
    assert (half > 0)[covered].all()  # no line is lost


@pytest.mark.parametrize("patch", [1, 4, 16])
def test_kept_tokens_are_the_patches_with_any_pixel(patch: int):
    rng = np.random.default_rng(patch)
    for _ in range(20):
        h, w = (int(side) for side in rng.integers(1, 6, size=2))
        image = np.where(rng.random((h * patch, w * patch)) < 1.5 / patch**2, rng.integers(1, 256), 0).astype(np.uint8)
        expected = [
            [bool(image[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].any()) for x in range(w)]
            for y in range(h)
        ]
        assert kept_tokens(image, patch).tolist() == expected


def test_pixels_whose_signed_sum_is_zero_keep_their_token():
    image = np.zeros((16, 32), dtype=np.uint8)
    image[2, 3:5] = [1, 254]
    assert kept_tokens(image, 16).tolist() == [[True, False]]
