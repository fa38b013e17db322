"""Closed-set mIoU against IoU of pixel sets, and through tiny random models."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former import modeling_mask2former

from seg2any.evaluation.judges.deeplab import DeepLabJudge, DeepLabV3
from seg2any.evaluation.judges.label_map import rescaled
from seg2any.evaluation.judges.mask2former import Mask2FormerJudge, class_scores
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.semantic import IGNORED, semantic_iou
from seg2any.system.errors import UserError
from seg2any.system.pretrained import imagenet_normalised, state_dict
from tests.tiny_judges import tiny_mask2former

NAMES = [f"class {index}" for index in range(6)]


class Recalls:
    """A label judge with known answers, stored in the image's first channel."""

    def __init__(self, classes: int = 6):
        self.classes = classes

    def labels(self, image: np.ndarray) -> np.ndarray:
        return image[..., 0]


def items(rng: np.random.Generator, samples: int = 3, groups: int = 2) -> list[Item]:
    """Return items with ignored pixels and predicted classes 0..4 at random.

    No label has class 5.
    """
    found = []
    for sample in range(samples):
        labels = rng.choice([0, 1, 2, 3, IGNORED], (7, 9)).astype(np.uint8)
        for group in range(groups):
            seen = np.where(rng.random((7, 9)) < 0.5, labels, rng.integers(0, 5, (7, 9))) % 5
            found.append(Item(f"s{sample}", np.repeat(seen[..., None], 3, 2).astype(np.uint8), group, labels=labels))
    return found


def test_miou_equals_brute_force_pooled_over_groups():
    measured = items(np.random.default_rng(0))
    result = semantic_iou(iter(measured), Recalls(), NAMES)
    wanted, seen = (
        {
            (number, y, x): array[number][y, x]
            for number, item in enumerate(measured)
            for y, x in np.ndindex(7, 9)
            if item.labels[y, x] != IGNORED
        }
        for array in ([item.labels for item in measured], [item.image[..., 0] for item in measured])
    )
    expected = {}
    for index in range(6):
        a, b = ({place for place, value in pixels.items() if value == index} for pixels in (wanted, seen))
        if a | b:
            expected[index] = len(a & b) / len(a | b)
    assert sorted(expected) == [0, 1, 2, 3, 4]  # class 4, predicted but never labelled, counts as 0
    assert result.value == pytest.approx(np.mean(list(expected.values())))
    assert {row["class"]: row["iou"] for row in result.extra["per_class"]} == pytest.approx(expected)
    assert result.extra["pixel_accuracy"] == pytest.approx(np.mean([wanted[p] == seen[p] for p in wanted]))
    recalls = [np.mean([seen[p] == c for p in wanted if wanted[p] == c]) for c in range(4)]
    assert result.extra["mean_accuracy"] == pytest.approx(np.mean(recalls))
    assert set(result.per_sample) == {"s0", "s1", "s2"}


def test_pooled_miou_differs_from_the_mean_over_images():
    def image(values: list[int]) -> np.ndarray:
        return np.repeat(np.uint8([values])[..., None], 3, 2)

    labels = np.uint8([[0, 0, 0, 1]])
    measured = [Item("a", image([0, 0, 0, 1]), 0, labels=labels), Item("a", image([1, 1, 1, 1]), 1, labels=labels)]
    result = semantic_iou(measured, Recalls(2), ["x", "y"])
    assert result.value == pytest.approx((3 / 6 + 2 / 5) / 2)


def test_labels_that_do_not_fit_are_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    for labels, message in (
        (None, "labels are none"),
        (np.zeros((5, 4), np.uint8), "labels are 4x5, the image is 5x4"),
        (np.full((4, 5), 6, np.uint8), "a class outside 0..5"),
    ):
        with pytest.raises(UserError, match=f"'k'.*{message}"):
            semantic_iou([Item("k", image, labels=labels)], Recalls(), NAMES)
    with pytest.raises(UserError, match="knows 6 classes, the data set 2"):
        semantic_iou([], Recalls(), NAMES[:2])
    with pytest.raises(UserError, match="mIoU: "):
        semantic_iou([], Recalls(), NAMES)


@pytest.mark.filterwarnings("error")
def test_samples_without_a_labelled_pixel_count_neither_way():
    labels = np.uint8([[0, 1], [1, IGNORED]])
    right = Item("a", np.repeat(np.where(labels == IGNORED, 0, labels)[..., None], 3, 2), labels=labels)
    empty = Item("b", np.zeros((2, 2, 3), np.uint8), labels=np.full((2, 2), IGNORED, np.uint8))
    result = semantic_iou([right, empty], Recalls(), NAMES)
    assert result.value == 1 and result.extra["pixel_accuracy"] == 1 and np.isnan(result.per_sample["b"])
    with pytest.raises(UserError, match="mIoU: "):
        semantic_iou([empty], Recalls(), NAMES)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (512, 512)), ((480, 640), (512, 683)), ((640, 480), (683, 512)), ((100, 800), (256, 2048))],
)
def test_images_are_brought_to_512_within_2048(size: tuple[int, int], expected: tuple[int, int]):
    assert rescaled(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)


def test_images_are_normalised_as_the_judges_were_trained():
    pixels = imagenet_normalised(np.tile(np.uint8([124, 0, 255]), (2, 3, 1)))
    assert pixels.shape == (1, 3, 2, 3)
    expected = [(124 - 123.675) / 58.395, -116.28 / 57.12, (255 - 103.53) / 57.375]
    assert pixels[0, :, 1, 2].tolist() == pytest.approx(expected, abs=1e-6)


def test_mask_logits_are_resized_before_the_sigmoid():
    rng = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(1, 4, 3, generator=rng), 5 * torch.randn(1, 4, 2, 2, generator=rng)
    scores = class_scores(classes, masks, (4, 4))
    probabilities = torch.tensor([[torch.exp(row[k]) / torch.exp(row).sum() for k in range(2)] for row in classes[0]])
    # In the middle of 4 x 4, bilinear weights of a 2 x 2 map are 9/16, 3/16, 3/16, 1/16.
    weights = torch.tensor([[9.0, 3.0], [3.0, 1.0]]) / 16
    logits = [(weights * masks[0, q]).sum() for q in range(4)]
    expected = [sum(probabilities[q, k] / (1 + torch.exp(-logits[q])) for q in range(4)) for k in range(2)]
    assert scores[0, :, 1, 1].tolist() == pytest.approx([float(value) for value in expected], rel=1e-5)


@pytest.fixture(scope="module")
def stock_mask2former() -> Iterator[Mask2FormerForUniversalSegmentation]:
    """Build transformers' own class, tiny and random.

    Only its loss, unused here, would need SciPy.
    """
    config = tiny_mask2former(num_labels=6)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_mask2former, "requires_backends", lambda *needed: None)
        yield Mask2FormerForUniversalSegmentation(config).eval()


def test_mask2former_is_the_stock_model_with_its_own_post_processing(tmp_path: Path, stock_mask2former):
    stock_mask2former.save_pretrained(tmp_path / "judge")
    judge = Mask2FormerJudge(str(tmp_path / "judge"))
    assert judge.classes == 6 and not judge.model.training
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (512, 512, 3), np.uint8)
    seen = judge.labels(image)
    with torch.no_grad():
        output = stock_mask2former(pixel_values=imagenet_normalised(image))
    expected = class_scores(output.class_queries_logits, output.masks_queries_logits, (512, 512))[0].argmax(0)
    assert (seen == expected.numpy()).all() and seen.shape == (512, 512)
    # A small wide image: resized to 512 x 760, padded below and right to multiples of 32, and cropped again.
    wide = rng.integers(0, 256, (64, 95, 3), np.uint8)
    pixels = imagenet_normalised(cv2.resize(wide, (760, 512), interpolation=cv2.INTER_LINEAR))
    padded = torch.zeros(1, 3, 512, 768)
    padded[..., :760] = pixels
    with torch.no_grad():
        output = stock_mask2former(pixel_values=padded)
    scores = class_scores(output.class_queries_logits, output.masks_queries_logits, (512, 768))[..., :760]
    back = torch.nn.functional.interpolate(scores, (64, 95), mode="bilinear", align_corners=False)
    assert (judge.labels(wide) == back[0].argmax(0).numpy()).all()


def test_a_judge_without_all_of_its_weights_is_refused(tmp_path: Path, stock_mask2former):
    stock_mask2former.model.save_pretrained(tmp_path / "judge")  # the class head is missing
    with pytest.raises(UserError, match="lacks 2 weights, first class_predictor.bias"):
        Mask2FormerJudge(str(tmp_path / "judge"))


def test_missing_judges_say_what_to_fetch(tmp_path: Path):
    with pytest.raises(UserError, match="hf download facebook/mask2former-swin-large-ade-semantic") as error:
        Mask2FormerJudge(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value) and str(tmp_path / "nothing") in str(error.value)
    with pytest.raises(UserError, match="deeplab.pth.*download https://download.openmmlab.com/"):
        DeepLabJudge(tmp_path / "deeplab.pth")


@pytest.fixture(scope="module")
def tiny_deeplab() -> DeepLabV3:
    torch.manual_seed(0)
    model = DeepLabV3(6, (1, 2, 1, 1), width=8, channels=12).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 0.1)
    return model


def test_published_files_load_inside_any_wrapper(tmp_path: Path, tiny_deeplab: DeepLabV3):
    extra = {"auxiliary_head.conv_seg.weight": torch.zeros(2)}
    content = {"meta": {"CLASSES": ("a", "b"), "epoch": 3}, "state_dict": {**tiny_deeplab.state_dict(), **extra}}
    torch.save(content, tmp_path / "judge.pth")
    judge = DeepLabJudge(tmp_path / "judge.pth")
    assert judge.classes == 6
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8).repeat(256, 0).repeat(256, 1)
    with torch.no_grad():
        expected = tiny_deeplab(imagenet_normalised(image))[0].argmax(0).numpy()
    assert (judge.labels(image) == expected).all() and len(np.unique(expected)) > 1
    # A small wide image: resized to 512 x 768; the scores, not the classes, are resized back.
    wide = image[:256, :384][::4, ::4]
    with torch.no_grad():
        scores = tiny_deeplab(imagenet_normalised(cv2.resize(wide, (768, 512), interpolation=cv2.INTER_LINEAR)))
    back = torch.nn.functional.interpolate(scores, wide.shape[:2], mode="bilinear", align_corners=False)
    assert judge.labels(wide).shape == (64, 96) and (judge.labels(wide) == back[0].argmax(0).numpy()).all()


class Malicious:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return io.StringIO, ()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, weights: torch.save({"state_dict": weights, "meta": Malicious()}, path), "not loaded for safety"),
        (lambda path, weights: torch.save([1, 2], path), "holds no state_dict"),
        (lambda path, weights: path.write_bytes(b"<html>404"), "is damaged"),
        (lambda path, weights: path.write_bytes(b""), "is damaged"),
        (
            lambda path, weights: torch.save({"model.weight": torch.zeros(1)}, path),
            "lack 'decode_head.conv_seg.weight'",
        ),
        (
            lambda path, weights: torch.save({k: v for k, v in weights.items() if "layer3.0.bn1" not in k}, path),
            "another architecture.*layer3.0.bn1",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, tiny_deeplab: DeepLabV3, write: Callable, message: str):
    path = tmp_path / "judge.pth"
    write(path, tiny_deeplab.state_dict())
    with pytest.raises(UserError, match=message) as error:
        DeepLabJudge(path)
    assert "\n" not in str(error.value)


def test_safetensors_files_load(tmp_path: Path, tiny_deeplab: DeepLabV3):
    from safetensors.torch import save_file

    save_file(tiny_deeplab.state_dict(), tmp_path / "judge.safetensors")
    assert state_dict(tmp_path / "judge.safetensors", "judge", "url").keys() == tiny_deeplab.state_dict().keys()


def test_a_file_is_what_the_digest_in_its_name_says(tiny_deeplab, tmp_path: Path):
    torch.save(tiny_deeplab.state_dict(), tmp_path / "judge.pth")
    digest = hashlib.sha256((tmp_path / "judge.pth").read_bytes()).hexdigest()
    for name in ("judge_20210709-20210709.pth", f"judge-{digest[:24]}.pth", f"judge-{digest}.pth"):
        (tmp_path / name).symlink_to("judge.pth")
        assert state_dict(tmp_path / name, "judge", "url").keys() == tiny_deeplab.state_dict().keys()
    (tmp_path / "judge-0123abcd.pth").symlink_to("judge.pth")
    with pytest.raises(UserError, match="0123abcd.pth has another sha256 than the end of its name says; download"):
        state_dict(tmp_path / "judge-0123abcd.pth", "judge", "url")
