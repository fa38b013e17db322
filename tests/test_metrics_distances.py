"""Distances between sets of images: closed forms, hand-made cases, tiny networks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from seg2any.evaluation.judges.features import (
    CmmdNetwork,
    Dinov2Network,
    InceptionNetwork,
    clean_resize,
)
from seg2any.evaluation.metrics.bootstrap import interval
from seg2any.evaluation.metrics.distances import Gaussian, cmmd, frechet, frechet_distance
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.sets import Features, extract, resampled
from seg2any.system.clip_images import MEAN, STD, centred_square
from seg2any.system.errors import UserError
from seg2any.system.pretrained import imagenet_normalised
from seg2any.system.weights import file_digest

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")


def means(images: list[np.ndarray]) -> np.ndarray:
    """A network of known features: the mean of each channel."""
    return np.stack([image.reshape(-1, 3).mean(0) for image in images])


def flat(colour: np.ndarray) -> np.ndarray:
    return np.tile(np.asarray(colour, np.uint8), (2, 3, 1))


def random_covariance(rng: np.random.Generator, d: int) -> np.ndarray:
    root = rng.normal(size=(d, d))
    return root @ root.T


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    return Gaussian.with_covariance(torch.from_numpy(mean), torch.from_numpy(covariance))


def covariance_of(fitted: Gaussian) -> np.ndarray:
    return (fitted.root @ fitted.root.T).numpy()


def test_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    variances, means_ = rng.uniform(0.1, 4, (2, 5)), rng.normal(size=(2, 5))
    a, b = (gaussian(m, np.diag(v)) for m, v in zip(means_, variances, strict=True))
    closed = ((means_[0] - means_[1]) ** 2).sum() + ((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(closed)
    # A rotation of both changes nothing.
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    a, b = (gaussian(turn @ m, turn @ np.diag(v) @ turn.T) for m, v in zip(means_, variances, strict=True))
    assert frechet_distance(a, b) == pytest.approx(closed)


def test_distance_of_gaussians_whose_covariances_do_not_commute():
    rng = np.random.default_rng(1)
    for _ in range(5):
        c1, c2 = random_covariance(rng, 2), random_covariance(rng, 2)
        assert not np.allclose(c1 @ c2, c2 @ c1)
        product = c1 @ c2
        trace_of_root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))  # for 2 x 2 matrices
        expected = np.trace(c1) + np.trace(c2) - 2 * trace_of_root
        assert frechet_distance(gaussian(np.zeros(2), c1), gaussian(np.zeros(2), c2)) == pytest.approx(expected)


def test_distance_of_singular_gaussians_is_real_and_symmetric():
    rng = np.random.default_rng(2)
    a, b = (Gaussian.of(rng.normal(size=(4, 20))) for _ in range(2))  # rank 3 of 20
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a)) and frechet_distance(a, b) > 0


@pytest.mark.parametrize("d", [3, 9])  # fewer and more features than rows
def test_gaussians_are_fitted_as_numpy_does_and_counts_repeat_rows(d: int):
    rows = np.random.default_rng(3).normal(size=(6, d))
    fitted = Gaussian.of(rows)
    assert np.allclose(fitted.mean, rows.mean(0))
    assert np.allclose(covariance_of(fitted), np.cov(rows, rowvar=False))
    counts = np.array([2, 0, 1, 3, 0, 1])
    repeated = np.repeat(rows, counts, 0)
    assert np.allclose(covariance_of(Gaussian.of(rows, counts)), np.cov(repeated, rowvar=False))
    assert fitted.root.shape[1] <= d


def test_singular_covariances_have_a_square_root():
    flat_ = np.diag([4.0, 0.0, 1.0])
    assert np.allclose(covariance_of(gaussian(np.zeros(3), flat_)), flat_)


def test_fid_is_the_mean_over_groups_of_distances_from_the_real_images():
    rng = np.random.default_rng(4)
    real = [Item(f"s{i}", flat(colour)) for i, colour in enumerate(rng.integers(0, 200, (12, 3)))]
    brighter = [
        Item(item.key, item.image + np.uint8(shift), group) for item in real for group, shift in ((0, 3), (1, 6))
    ]
    result, halves, empty = frechet("FID", real, brighter, means)
    assert result.extra["groups"] == pytest.approx([3 * 3**2, 3 * 6**2]) and result.value == pytest.approx(67.5)
    assert (result.extra["n"], result.extra["n_real"], result.better) == (12, 12, "lower")
    # Real and generated images of a sample are drawn together, so a constant shift stays one.
    assert result.resamples == pytest.approx([67.5] * 20)
    low, high = interval(result)
    assert low == pytest.approx(67.5) and high == pytest.approx(67.5)
    other, *_ = frechet("FID", real, [Item(item.key, flat(rng.integers(0, 255, 3))) for item in real], means)
    assert interval(other)[0] < other.value < interval(other)[1]
    assert other.extra["keys_sha256"] == result.extra["keys_sha256"]
    # Grey images have a singular Gaussian: the distance is that of the means plus the covariance's trace.
    rows = means([item.image for item in real])
    expected = ((rows.mean(0) - 128) ** 2).sum() + rows.var(0, ddof=1).sum()
    assert (empty.source, empty.value) == ("grey images", pytest.approx(expected)) and empty.extra["n"] == 12
    assert (halves.source, halves.extra["n"], halves.extra["n_real"]) == ("real images, halves", 6, 6)
    with pytest.raises(UserError, match="FID: .*two images"):
        frechet("FID", real, brighter[:1], means)
    with pytest.raises(UserError, match="FID, real images: "):
        frechet("FID", [], brighter, means)


def test_the_ceiling_compares_every_second_real_image_with_the_others():
    """Compare real images whose neighbours are equal, or equally shifted, colours.

    Three images cannot be halved.
    """
    colours = np.random.default_rng(7).integers(0, 200, (6, 3))
    for shift, expected in ((0, 0), (4, 3 * 4**2)):
        paired = [flat(colour + shift * place) for colour in colours for place in (0, 1)]
        real = [Item(f"s{index:02d}", image) for index, image in enumerate(paired)]
        halves = frechet("FID", real, real, means)[1]
        assert halves.value == pytest.approx(expected, abs=1e-6)
    assert [result.source for result in frechet("FID", real[:3], real[:3], means)] == ["generated", "grey images"]


def test_features_keep_keys_and_groups_across_batches():
    items = [Item(f"s{i // 2}", flat(np.full(3, i)), group=i % 2) for i in range(80)]
    found = extract(items, means, "x")
    assert list(found) == [0, 1] and found[1].keys == tuple(f"s{i}" for i in range(40))
    assert found[1].rows[:, 0].tolist() == list(range(1, 80, 2))
    sets = [Features(("a", "b"), np.zeros((2, 1))), Features(("b", "a", "b"), np.zeros((3, 1)))]
    drawn = list(resampled(sets, 50))
    assert len(drawn) == 50
    for first, second in drawn:
        assert first.sum() == 2 and second.tolist() == [first[1], first[0], first[1]]
    apart = [Features(("a", "b"), np.zeros((2, 1))), Features(("c", "d"), np.zeros((2, 1)))]
    assert all(first.sum() == second.sum() == 2 for first, second in resampled(apart, 50))


def test_cmmd_is_the_double_sum_over_kernels():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(5, 6))
    rows = {index: row for index, row in enumerate([*x, *y])}

    def network(images: list[np.ndarray]) -> np.ndarray:
        return np.stack([rows[image[0, 0, 0]] for image in images])

    items = [Item(f"s{i}", flat(np.full(3, i))) for i in range(9)]

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return np.mean([math.exp(-(((p - q) ** 2).sum()) / (2 * 10**2)) for p in a for q in b])

    rows[128] = rng.normal(size=6)
    result, halves, empty = cmmd(items[:4], items[4:], network)
    assert result.value == pytest.approx(1000 * (k(x, x) + k(y, y) - 2 * k(x, y)))
    assert halves.value == pytest.approx(1000 * (k(x[::2], x[::2]) + k(x[1::2], x[1::2]) - 2 * k(x[::2], x[1::2])))
    assert empty.value == pytest.approx(1000 * (k(x, x) + 1 - 2 * k(x, rows[128][None])))
    assert cmmd(items[:4], items[:4], network)[0].value == pytest.approx(0, abs=1e-9)
    assert result.name == "CMMD" and result.better == "lower" and np.isfinite(result.resamples).all()


def pil_bicubic(line: np.ndarray, size: int) -> np.ndarray:
    """Reduce one line [N] as PIL's bicubic filter does.

    By its definition: a cubic with a = -0.5, stretched by the scale.
    """
    scale = len(line) / size

    def weight(x: float) -> float:
        x = abs(x)
        if x < 1:
            return (1.5 * x - 2.5) * x * x + 1
        return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0

    out = []
    for i in range(size):
        weights = np.array([weight((j + 0.5 - (i + 0.5) * scale) / scale) for j in range(len(line))])
        out.append(weights @ line / weights.sum())
    return np.array(out)


def test_resizing_is_bicubic_in_floating_point_per_channel():
    rng = np.random.default_rng(6)
    image = rng.integers(0, 256, (40, 25, 3), np.uint8)
    resized = clean_resize(image, 7)
    for channel in range(3):
        across = np.stack([pil_bicubic(row, 7) for row in image[..., channel].astype(float)])
        expected = np.stack([pil_bicubic(column, 7) for column in across.T], 1)
        assert np.allclose(resized[..., channel], expected, atol=1e-3)
    assert resized.dtype == np.float32 and (resized % 1 != 0).any()
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    assert clean_resize(edge, 15).min() == 0 and clean_resize(edge, 15).max() == 255  # bicubic overshoots; clipped


class TinyInception(torch.nn.Module):
    """Stands in for the TorchScript file: `layers` takes images in [-1, 1)."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + 1000  # must not be called: it resizes in its own way


def test_inception_is_called_as_clean_fid_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    tiny = TinyInception()
    torch.jit.script(tiny).save(str(tmp_path / "inception.pt"))
    monkeypatch.setenv("INCEPTION_SHA256", file_digest(tmp_path / "inception.pt"))
    network = InceptionNetwork(tmp_path / "inception.pt")
    colours = np.uint8([[0, 128, 255], [10, 20, 30]])
    conv = tiny.layers[0]
    expected = (torch.from_numpy(colours).float() - 128) / 128 @ conv.weight[:, :, 0, 0].T + conv.bias
    assert np.allclose(network([flat(colour) for colour in colours]), expected.detach().numpy(), atol=1e-5)


def test_torchscript_of_an_unknown_digest_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.jit.script(TinyInception()).save(str(tmp_path / "inception.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *arguments, **options: pytest.fail("foreign code was loaded"))
    for digest in ("", "0" * 64):
        monkeypatch.setenv("INCEPTION_SHA256", digest)
        with pytest.raises(UserError, match="has the sha256 [0-9a-f]{64}, and TorchScript is code"):
            InceptionNetwork(tmp_path / "inception.pt")


def test_other_inception_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="inception.pt.*download https://nvlabs-fi-cdn.nvidia.com/"):
        InceptionNetwork(tmp_path / "inception.pt")
    (tmp_path / "inception.pt").write_bytes(b"<html>404")
    with pytest.raises(UserError, match="inception.pt.*TorchScript"):
        InceptionNetwork(tmp_path / "inception.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "inception.pt"))
    with pytest.raises(UserError, match="inception.pt.*TorchScript"):
        InceptionNetwork(tmp_path / "inception.pt")


def test_dinov2_gives_its_normalised_class_token(tmp_path: Path):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    network = Dinov2Network(str(tmp_path / "dino"))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (224, 224, 3), np.uint8)
    found = network([image, rng.integers(0, 256, (30, 50, 3), np.uint8)])
    assert found.shape == (2, 8) and found.dtype == np.float32
    with torch.no_grad():
        tokens = model(pixel_values=imagenet_normalised(image)).last_hidden_state
    assert np.allclose(found[0], tokens[0, 0].numpy(), atol=1e-5)
    with pytest.raises(UserError, match="hf download facebook/dinov2-large"):
        Dinov2Network(str(tmp_path))


def test_cmmd_network_crops_the_centre_and_gives_unit_vectors(tmp_path: Path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=4,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path / "clip")
    network = CmmdNetwork(str(tmp_path / "clip"))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    wide = np.zeros((32, 48, 3), np.uint8)
    wide[:, 8:40] = image
    assert (centred_square(wide, 32) == image).all()
    found = network([image, wide])
    pixels = (torch.from_numpy(image) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        embedding = model(pixel_values=pixels.permute(2, 0, 1)[None]).image_embeds[0].numpy()
    assert np.allclose(found[0], embedding / np.linalg.norm(embedding), atol=1e-5) and np.allclose(found[0], found[1])
