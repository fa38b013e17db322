"""Aspect buckets: sizes of equal area, and the common crop and scale of image and masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from seg2any.data.aspect import bucket_sizes, fit, target_size, window
from seg2any.data.dataset import Sample
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.system.errors import UserError

PHOTOS = [(64, 64), (480, 640), (1500, 2250), (2250, 1500), (100, 1000), (333, 71), (1, 1), (7, 3), (1365, 2048)]


def drawn_sample(size: tuple[int, int], seed: int = 0) -> Sample:
    """Draw a sample of blocky masks whose image shows the first mask in its red channel."""
    rng = np.random.default_rng(seed)
    masks = resize_masks(rng.random((2, 7, 9)) < 0.5, size)
    image = np.repeat(masks[0][..., None] * np.uint8(255), 3, axis=2)
    return Sample(image, Layout(masks, ("a", "b"), "both", seed=3, name="x"))


@pytest.mark.parametrize(("resolution", "multiple"), [(1024, 32), (512, 16), (512, 32), (256, 16), (64, 16), (16, 16)])
def test_buckets_are_of_equal_area_and_whole_tokens(resolution: int, multiple: int):
    sizes = bucket_sizes(resolution, multiple)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert height * width <= resolution**2 and 0.5 <= height / width <= 2
        assert (width, height) in sizes
        assert (height + multiple) * width > resolution**2 and height * (width + multiple) > resolution**2
    assert min(height * width for height, width in sizes) >= 0.75 * resolution**2
    assert sizes == tuple(sorted(sizes))


def test_published_size_is_the_square():
    assert {target_size(size, 512, "stretch", 16) for size in PHOTOS} == {(512, 512)}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (1024, 1024)),
        ((3, 3), (1024, 1024)),
        ((1500, 2250), (832, 1248)),  # 2:3
        ((2250, 1500), (1248, 832)),
        ((100, 1000), (736, 1408)),  # longer than any bucket
        ((1000, 100), (1408, 736)),
    ],
)
def test_the_bucket_of_the_nearest_proportions(size: tuple[int, int], expected: tuple[int, int]):
    assert target_size(size, 1024, "bucket", 32) == expected


@pytest.mark.parametrize("size", PHOTOS)
def test_the_window_is_central_and_as_large_as_can_be(size: tuple[int, int]):
    assert window(size, (512, 512), "stretch") == (slice(0, size[0]), slice(0, size[1]))
    for target in bucket_sizes(512, 32):
        rows, columns = window(size, target, "bucket")
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 1 <= height <= size[0] and 1 <= width <= size[1] and (height == size[0] or width == size[1])
        assert rows.start == (size[0] - height) // 2 and columns.start == (size[1] - width) // 2
        scale = min(size[0] / target[0], size[1] / target[1])
        assert abs(height - scale * target[0]) < 1 and abs(width - scale * target[1]) < 1


@pytest.mark.parametrize("aspect", ["stretch", "bucket"])
@pytest.mark.parametrize("size", [(97, 131), (200, 60), (30, 31)])
def test_image_and_masks_are_cut_and_scaled_alike(aspect: str, size: tuple[int, int]):
    sample = drawn_sample(size)
    target = target_size(size, 96, aspect, 16)
    fitted = fit(sample, target, aspect)
    assert fitted.image.shape == (*target, 3) and fitted.image.dtype == np.uint8 and fitted.layout.size == target
    assert (fitted.layout.captions, fitted.layout.caption) == (("a", "b"), "both")
    assert (fitted.layout.seed, fitted.layout.name) == (3, "x")
    rows, columns = window(size, target, aspect)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    for y, x in np.random.default_rng(1).integers(0, target, (200, 2)):  # the definition, pixel by pixel
        source = rows.start + int((y + 0.5) * height / target[0]), columns.start + int((x + 0.5) * width / target[1])
        np.testing.assert_array_equal(fitted.layout.masks[:, y, x], sample.layout.masks[(slice(None), *source)])
    agree = (fitted.image[..., 0] > 127) == fitted.layout.masks[0]
    assert agree.mean() > 0.93  # image and masks differ along edges only: bilinear against nearest
    shifted = (fitted.image[..., 0] > 127) == np.roll(fitted.layout.masks[0], 5, axis=1)
    assert shifted.mean() < agree.mean()


def test_samples_of_the_right_size_are_not_changed():
    sample = drawn_sample((96, 64))
    for aspect in ("stretch", "bucket"):
        fitted = fit(sample, (96, 64), aspect)
        np.testing.assert_array_equal(fitted.image, sample.image)
        np.testing.assert_array_equal(fitted.layout.masks, sample.layout.masks)


def test_stretching_is_pillow_bilinear():
    sample = Sample(
        np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8), drawn_sample((50, 70)).layout
    )
    expected = np.asarray(Image.fromarray(sample.image).resize((32, 48), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fit(sample, (48, 32), "stretch").image, expected)


def test_a_region_outside_the_window_is_kept_empty():
    masks = np.zeros((2, 20, 100), bool)
    masks[0, :, :5], masks[1, :, 40:60] = True, True
    fitted = fit(Sample(np.zeros((20, 100, 3), np.uint8), Layout(masks, ("edge", "middle"))), (16, 32), "bucket")
    assert fitted.layout.masks.any((1, 2)).tolist() == [False, True] and fitted.layout.captions == ("edge", "middle")


def test_wrong_settings_are_refused():
    for call in (lambda: target_size((9, 9), 64, "crop", 16), lambda: window((9, 9), (16, 16), "crop")):
        with pytest.raises(UserError, match="data.aspect: 'crop' is not possible; choose one of stretch, bucket"):
            call()
    with pytest.raises(UserError, match="less than one token of 32 pixels"):
        target_size((9, 9), 16, "bucket", 32)
