"""Region metrics: overlap by counting, SAM 2 by its real loading code, leakage, seams."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.leakage import (
    COLOURS,
    caption_leak,
    colour_leak,
    cut_out,
    named_colours,
    taken_for_another,
)
from seg2any.evaluation.metrics.overlap import band_width, boundary, boundary_iou, is_thin, size_class
from seg2any.evaluation.metrics.regions import FoundRegions, boxes, class_agnostic_iou, find_again, region_overlap
from seg2any.evaluation.metrics.seam import seam, seam_score
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.overlap import iou
from seg2any.segment import sam2
from seg2any.segment.sam2 import Sam2Segmenter
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from seg2any.system.pretrained import imagenet_normalised
from tests.golden_root import golden_root
from tests.tiny_judges import tiny_sam2


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_overlap_is_counted_pixel_by_pixel():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.random((2, 9, 7)) < 0.4
        inside = [{(y, x) for y, x in np.ndindex(9, 7) if mask[y, x]} for mask in (a, b)]
        assert iou(a, b) == pytest.approx(len(inside[0] & inside[1]) / len(inside[0] | inside[1]))
    empty = np.zeros((9, 7), bool)
    assert iou(empty, empty) == 1 and iou(empty, a) == 0


def test_boundary_is_the_band_inside_the_outline():
    mask = box(0, 4, 10, 14, (20, 20))  # touches the image's border, which counts as outline
    assert boundary(mask, 1).sum() == 10 * 10 - 8 * 8
    shifted = box(0, 5, 10, 15, (20, 20))
    a, b = boundary(mask, 1), boundary(shifted, 1)
    assert boundary_iou(mask, shifted, 1) == pytest.approx((a & b).sum() / (a | b).sum())
    assert boundary_iou(mask, shifted, 1) < iou(mask, shifted) == pytest.approx(9 / 11)
    assert boundary_iou(mask, mask, 2) == 1
    assert band_width((512, 512)) == round(0.02 * 512 * 2**0.5) and band_width((4, 4)) == 1


@pytest.mark.parametrize(
    ("mask", "size", "thin"),
    [
        (box(0, 0, 31, 32, (512, 512)), "small", False),
        (box(0, 0, 32, 33, (512, 512)), "medium", False),
        (box(0, 0, 96, 96, (512, 512)), "large", False),
        (box(100, 0, 115, 512, (512, 512)), "medium", True),
        (box(100, 0, 117, 512, (512, 512)), "medium", False),
        (box(0, 0, 64, 15, (512, 512)), "small", True),
    ],
)
def test_size_and_thinness_of_a_region(mask: np.ndarray, size: str, thin: bool):
    assert size_class(mask) == size and is_thin(mask) == thin


def test_every_region_has_equal_weight_in_any_image():
    wanted = [box(0, 0, 32, 32), box(40, 40, 42, 60), box(50, 0, 56, 8), np.zeros((64, 64), bool)]
    found = [box(0, 0, 32, 16), box(40, 40, 42, 50), box(50, 0, 56, 8), box(0, 0, 9, 9)]
    images = [
        FoundRegions("a", np.stack(wanted), np.stack(found)),  # the last mask is empty and does not count
        FoundRegions("b", np.stack(wanted[:1]), np.stack(wanted[:1])),
    ]
    results = {result.name: result for result in region_overlap("IoU", images)}
    assert results["IoU"].value == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert results["IoU"].per_sample == pytest.approx({"a": 2 / 3, "b": 1.0})
    assert results["IoU"].extra == {"regions": 4}
    assert results["IoU, large"].value == pytest.approx(0.75)
    assert results["IoU, medium"].value == pytest.approx(0.75) and results["IoU, medium"].extra == {"regions": 2}
    assert "IoU, small" not in results
    assert results["IoU, thin"].value == pytest.approx(0.5) and results["IoU, thin"].extra == {"regions": 1}
    width = band_width((64, 64))
    outlines = [boundary_iou(w, f, width) for w, f in zip(wanted[:3], found[:3], strict=True)]
    assert results["IoU, outlines"].value == pytest.approx((sum(outlines) + 1) / 4)
    with pytest.raises(UserError, match="no region"):
        region_overlap("IoU", [FoundRegions("a", np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool))])


def test_boxes_are_the_published_ones():
    masks = np.stack([box(2, 3, 5, 9, (10, 20)), box(0, 0, 10, 20, (10, 20))])
    assert boxes(masks).tolist() == [[3 / 20, 2 / 10, 8 / 20, 4 / 10], [0, 0, 19 / 20, 9 / 10]]


def recorded_boxes() -> list[str]:
    index = json.loads((golden_root() / "contour" / "index.json").read_text())["cases"]
    return sorted(name for name, case in index.items() if case.get("boxes") and not case["getitem_error"])


@pytest.mark.parametrize("name", recorded_boxes())
def test_boxes_are_the_recorded_ones(name: str):
    folder = golden_root() / "contour"
    case = json.loads((folder / "index.json").read_text())["cases"][name]
    height, width = case["orig_hw"]
    with Image.open(folder / name / "labels_orig.png") as image:
        masks = np.asarray(image.convert("L")).reshape(-1, height, width) > 0
    assert np.allclose(boxes(masks), case["boxes"], atol=1e-6)


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Sam2Segmenter:
    """Save and load a random SAM 2 of 64 x 64 pixels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam")
    tiny_sam2().save_pretrained(folder)
    return Sam2Segmenter(str(folder))


def scene(key: str, seed: int) -> Item:
    rng = np.random.default_rng(seed)
    masks = np.stack([box(4, 6, 40, 30, (50, 80)), box(20, 40, 45, 70, (50, 80)), box(0, 0, 5, 5, (50, 80))])
    image = rng.integers(0, 256, (50, 80, 3), np.uint8)
    return Item(key, image, layout=Layout(masks, ("a", "b", "c")))


def test_regions_decoded_together_are_those_decoded_alone(sam: Sam2Segmenter, monkeypatch: pytest.MonkeyPatch):
    item = scene("a", 0)
    assert (sam.side, sam.prompt_size) == (64, (16, 16))
    layout = find_again(item.image, item.layout, sam)
    together = layout.masks
    squared = np.asarray(Image.fromarray(item.image).resize((64, 64), Image.Resampling.BICUBIC))
    for mask, found, score in zip(item.layout.masks, together, layout.scores, strict=True):
        prompt = cv2.resize(mask.astype(np.float32), (16, 16), interpolation=cv2.INTER_NEAREST_EXACT)
        y, x = np.nonzero(mask)
        corners = [x.min() / 80 * 64, y.min() / 50 * 64, x.max() / 80 * 64, y.max() / 50 * 64]
        with torch.no_grad():
            output = sam.model(
                pixel_values=imagenet_normalised(squared),
                input_boxes=torch.tensor([[corners]]).float(),
                input_masks=torch.from_numpy(prompt)[None, None],
                multimask_output=False,
            )
        logits = torch.nn.functional.interpolate(output.pred_masks[0], (64, 64), mode="bilinear")
        assert ((logits[0, 0] > 0).numpy() == found).mean() > 0.999
        assert score == pytest.approx(float(output.iou_scores.reshape(()).clamp(0, 1)), abs=1e-5)
    assert 0 < together.mean() < 1 and (together[0] != together[1]).any()

    monkeypatch.setattr(sam2, "REGIONS", 2)
    assert (find_again(item.image, item.layout, sam).masks == together).mean() > 0.999
    nothing = sam.segment(item.image, Prompt(boxes=np.zeros((0, 4))))
    assert nothing.masks.shape == (0, 64, 64) and nothing.scores.shape == (0,) and nothing.captions == ()


def hostile_masks(size: tuple[int, int]) -> np.ndarray:
    """Draw masks that are hard for prompts.

    Single pixels, also in every corner; a line along each border; the whole image; a pixel that the prompt leaves out.
    """
    height, width = size
    corners = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1), (height // 2, width // 3)]
    pixels = [box(y, x, y + 1, x + 1, size) for y, x in corners]
    lines = [box(0, 0, 1, width, size), box(0, width - 1, height, width, size), box(height - 1, 0, height, width, size)]
    return np.stack([*pixels, *lines, np.ones(size, bool)])


@pytest.mark.parametrize("size", [(50, 80), (300, 7), (1, 1), (64, 64)])
def test_boxes_hold_the_first_and_the_last_pixel_at_any_border(size: tuple[int, int]):
    masks = hostile_masks(size)
    for mask, found in zip(masks, boxes(masks), strict=True):
        y, x = np.nonzero(mask)
        expected = [x.min() / size[1], y.min() / size[0], x.max() / size[1], y.max() / size[0]]
        assert found == pytest.approx(expected) and (found >= 0).all() and (found < 1).all()


def test_regions_of_any_shape_are_decoded_and_empty_ones_do_not_count(sam: Sam2Segmenter):
    masks = hostile_masks((300, 7))  # far from square: 64 px hide most of its single pixels
    rng = np.random.default_rng(4)
    image = rng.integers(0, 256, (300, 7, 3), np.uint8)
    together = find_again(image, Layout(masks, ("x",) * len(masks)), sam).masks
    alone = np.concatenate([find_again(image, Layout(mask[None], ("x",)), sam).masks for mask in masks])
    assert together.shape == (len(masks), 64, 64) and (together == alone).mean() > 0.999
    seen = int(resize_masks(masks, (64, 64)).any((1, 2)).sum())
    assert 0 < seen < len(masks)
    several = np.concatenate([masks, masks[:1] & False])
    item = Item("a", image, layout=Layout(several, ("x",) * len(several), overlap="share"))
    whole = class_agnostic_iou(lambda: [item], lambda: [item], sam)[0]
    assert whole.extra == {"regions": seen}
    hidden = Item("b", image, layout=Layout(masks[:1] & False, ("x",)))
    with pytest.raises(UserError, match="no region"):
        class_agnostic_iou(lambda: [hidden], lambda: [hidden], sam)


def test_the_mask_prompt_is_the_mask_itself_in_0_and_1(sam: Sam2Segmenter):
    item, prompts = scene("a", 0), []
    hook = sam.model.prompt_encoder.mask_embed.register_forward_hook(
        lambda _, inputs, output: prompts.append(inputs[0])
    )
    try:
        find_again(item.image, item.layout, sam)
    finally:
        hook.remove()
    (prompt,) = prompts
    for mask, given in zip(item.layout.masks, prompt[:, 0].numpy(), strict=True):
        assert (given == cv2.resize(mask.astype(np.float32), (16, 16), interpolation=cv2.INTER_NEAREST_EXACT)).all()


def test_every_image_is_encoded_once_and_has_ceiling_and_floors(sam: Sam2Segmenter, monkeypatch: pytest.MonkeyPatch):
    encoded = []
    encode = sam.model.get_image_embeddings
    monkeypatch.setattr(
        sam.model, "get_image_embeddings", lambda pixels: (encoded.append(pixels.clone()), encode(pixels))[1]
    )
    generated, real = [scene("a", 0), scene("b", 1)], [scene("a", 2), scene("b", 3)]
    results = class_agnostic_iou(lambda: iter(generated), lambda: iter(real), sam)
    assert len(encoded) == 4 * 2
    whole = {result.source: result for result in results if result.name == "class-agnostic mIoU"}
    assert list(whole) == ["generated", "real images", "grey images", "shuffled images"]
    assert whole["generated"].extra == {"regions": 6} and set(whole["generated"].per_sample) == {"a", "b"}
    masks = generated[0].layout.masks
    wanted, found = resize_masks(masks, (64, 64)), find_again(generated[0].image, generated[0].layout, sam).masks
    expected = np.mean([iou(w, f) for w, f in zip(wanted, found, strict=True)])
    assert whole["generated"].per_sample["a"] == pytest.approx(expected)
    assert torch.equal(encoded[6], encoded[0]) and torch.equal(encoded[7], encoded[1])  # shuffled: the same images
    assert torch.equal(encoded[4], encoded[5]) and encoded[4].std(dim=(2, 3)).max() < 1e-6  # grey
    alone = class_agnostic_iou(lambda: generated[:1], lambda: real[:1], sam)  # nothing to shuffle
    assert {result.source for result in alone} == {"generated", "real images", "grey images"}
    with pytest.raises(UserError, match="'x' comes without a layout"):
        class_agnostic_iou(lambda: [Item("x", generated[0].image)], lambda: real, sam)


def two_halves(left: str | tuple, right: str | tuple) -> np.ndarray:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :20], image[:, 20:] = (COLOURS.get(colour, colour) for colour in (left, right))
    return image


HALVES = np.stack([box(0, 0, 40, 20, (40, 40)), box(0, 20, 40, 40, (40, 40))])


def test_colour_leaks_are_counted():
    layout = Layout(HALVES, ("a red car", "a Blue or gray door"))
    right, swapped = two_halves("red", "blue"), two_halves("grey", "red")
    mixed = two_halves("red", "blue")
    mixed[:10, :20] = COLOURS["blue"]  # a quarter of the car
    neither = two_halves("green", "green")
    for image, leak, fit in ((right, 0, 1), (swapped, 1, 0), (mixed, 0.125, 0.875), (neither, 0, 0)):
        found = {result.name: result for result in colour_leak([Item("a", image, layout=layout)])}
        assert found["colour leak"].value == pytest.approx(leak, abs=0.03), image[0, 0]
        assert found["colour fit"].value == pytest.approx(fit, abs=0.03)
        assert found["colour leak"].better == "lower" and found["colour leak"].extra == {"regions": 2}


def test_only_regions_with_a_colour_beside_another_colour_count():
    assert named_colours("A Red-and-white hat in violet light, reddish") == {"red", "white", "purple"}
    silent = Item("a", two_halves("red", "blue"), layout=Layout(HALVES, ("a red car", "a door")))
    same = Item("b", two_halves("red", "blue"), layout=Layout(HALVES, ("a red car", "a red door")))
    with pytest.raises(UserError, match="colour leak: "):
        colour_leak([silent, same])
    hidden = Layout(np.stack([HALVES[0], np.ones((40, 40), bool)]), ("a red car", "a blue door"))
    leak, _ = colour_leak([Item("c", two_halves("blue", "blue"), layout=hidden)])
    assert leak.value == 0 and leak.extra == {"regions": 1}  # pixels covered by another region do not count


class NamesColours:
    """Stands in for CLIP: an image fits the caption that names the colour of its centre."""

    def of_images(self, images: list[np.ndarray]) -> np.ndarray:
        tones = np.array(list(COLOURS.values()))
        middles = np.stack([image[image.shape[0] // 2, image.shape[1] // 2] for image in images]).astype(int)
        return (np.abs(middles[:, None] - tones).sum(-1) == 0).astype(float)

    def of_captions(self, captions: list[str]) -> np.ndarray:
        return np.array([[float(colour in caption) for colour in COLOURS] for caption in captions])


def test_regions_that_fit_another_caption_better_are_caption_leaks():
    fit = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.5, 0.5]])
    assert taken_for_another(fit, ["a", "b", "c"]).tolist() == [False, True, True]
    assert taken_for_another(fit, ["a", "a", "c"]).tolist() == [False, False, True]  # the same words are no leak
    layout = Layout(HALVES, ("a red car", "a blue door"))
    images = {
        "right": two_halves("red", "blue"),
        "half": two_halves("red", "red"),
        "swapped": two_halves("blue", "red"),
    }
    result = caption_leak([Item(key, image, layout=layout) for key, image in images.items()], NamesColours())
    assert result.per_sample == {"right": 0, "half": 0.5, "swapped": 1} and result.value == 0.5


def test_cut_out_shows_the_region_alone():
    image = np.random.default_rng(0).integers(0, 100, (40, 40, 3), np.uint8)
    cut = cut_out(image, box(10, 0, 30, 10, (40, 40)))
    assert cut.shape == (24, 11, 3)  # 2 pixels above and below, 1 on the right; the left is the image's border
    assert (cut[2:22, :10] == image[10:30, :10]).all() and (cut[:2] == 128).all() and (cut[:, 10:] == 128).all()


def test_seams_stand_out_only_in_collages():
    rng = np.random.default_rng(0)
    mask = HALVES[:1]
    noise = rng.integers(0, 256, (40, 40, 3), np.uint8)
    assert seam(noise, mask) == pytest.approx(0, abs=0.1)
    assert seam(np.full((40, 40, 3), 99, np.uint8), mask) == 0
    assert seam(two_halves("red", "blue"), mask) == 1
    ramp = np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    assert seam(ramp, np.stack([box(0, 0, 20, 40, (40, 40))])) < -0.9  # no step across, steps along
    sharp, soft = two_halves((90, 90, 90), (160, 160, 160)), None
    soft = cv2.GaussianBlur(sharp, (0, 0), 2)
    noisy = [np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8) for image in (sharp, soft)]
    assert seam(noisy[0], mask) > seam(noisy[1], mask) + 0.1
    moved = np.roll(noisy[0], 4, axis=1)  # the edge is near the outline, not on it
    assert seam(moved, mask) < seam(noisy[0], mask) - 0.3


def test_seam_by_hand():
    lab = np.zeros((2, 4, 3), np.float32)
    lab[..., 0] = [[0, 50, 70, 99], [0, 55, 75, 99]]  # steps of 20 across the outline, of 5 along it
    image = np.round(255 * cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)).astype(np.uint8)
    mask = np.tile([True, True, False, False], (1, 2, 1))
    assert seam(image, mask) == pytest.approx((20 - 5) / (20 + 5), abs=0.02)


def test_seam_score_is_a_mean_over_images_with_outlines():
    layout = Layout(HALVES, ("a", "b"))
    nothing = Layout(np.ones((1, 40, 40), bool), ("a",))
    items = [
        Item("a", two_halves("red", "blue"), 0, layout),
        Item("a", np.full((40, 40, 3), 99, np.uint8), 1, layout),
        Item("b", two_halves("red", "blue"), 0, nothing),
    ]
    result = seam_score(items)
    assert result.per_sample == {"a": 0.5} and result.value == 0.5 and result.better == "lower"
    assert seam(items[0].image, nothing.masks) is None
