"""Judges that are asked in words: their numbers, controls, what is kept, and stub judges whose faults are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.commands import evaluate_measure
from seg2any.data.catalog import open_data_set
from seg2any.evaluation.generated import write_run
from seg2any.evaluation.judges.eomt import EomtJudge, windows
from seg2any.evaluation.judges.kept import KeptConcepts, KeptMasks, KeptSegmenter
from seg2any.evaluation.judges.mask2former import class_scores
from seg2any.evaluation.judges.segmenters import NamedSegmenter, SegmenterLabels
from seg2any.evaluation.metrics.agreement import agreements, tau
from seg2any.evaluation.metrics.bootstrap import interval
from seg2any.evaluation.metrics.concept import NAME as CONCEPT
from seg2any.evaluation.metrics.concept import PRESENCE, SURPLUS, concept_iou
from seg2any.evaluation.metrics.item import REAL, Item
from seg2any.evaluation.metrics.language import GAIN, NAME, language_iou, seen_regions
from seg2any.evaluation.metrics.order import ORDER, OVERLAP, order_of_regions
from seg2any.evaluation.metrics.phrases import MISLEADING, SWAPPED, misleading
from seg2any.evaluation.metrics.result import GENERATED, Result, mean
from seg2any.evaluation.metrics.semantic import confusion, semantic_iou
from seg2any.evaluation.report.results import read_run
from seg2any.evaluation.runners.options import parse_options
from seg2any.evaluation.runners.run import run
from seg2any.layout import Layout
from seg2any.segment.sam3 import Instances, Sam3Segmenter
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from tests.synthetic_data import make_ade20k
from tests.tiny_judges import save_sam3, tiny_dinov3, tiny_eomt

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}


class SeesColours:
    """A perfect judge of scenes of flat colours; `ignores` makes it find red whatever it is asked."""

    def __init__(self, ignores: bool = False):
        self.ignores, self.asked = ignores, []

    def mask(self, image: np.ndarray, phrase: str) -> np.ndarray:
        word = "red" if self.ignores else next((colour for colour in COLOURS if colour in phrase), None)
        return (image == COLOURS[word]).all(-1) if word else np.zeros(image.shape[:2], bool)

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        names = prompt.phrases or prompt.categories
        self.asked.append(names)
        return Layout(np.stack([self.mask(image, name) for name in names]), names, overlap="share")

    def instances(self, image: np.ndarray, phrases: Sequence[str]) -> list[Instances]:
        """Find one instance per half of the image."""
        self.asked.append(tuple(phrases))
        found = []
        for phrase in phrases:
            mask, left = self.mask(image, phrase), np.zeros(image.shape[:2], bool)
            left[:, : image.shape[1] // 2] = True
            parts = [part for part in (mask & left, mask & ~left) if part.any()]
            masks = np.stack(parts) if parts else np.zeros((0, *mask.shape), bool)
            found.append(Instances(masks, np.ones(len(masks), np.float32), float(mask.any())))
        return found


def kept(folder: Path, judge: SeesColours | None = None) -> KeptSegmenter:
    return KeptSegmenter(judge or SeesColours(), KeptMasks(folder / "found.jsonl", "stub"))


def scene(key: str, shift: int = 0) -> Item:
    """Wanted: red on columns 0-9, blue on 10-19; shown `shift` pixels further right."""
    masks = np.zeros((2, 10, 40), bool)
    masks[0, :, :10], masks[1, :, 10:20] = True, True
    image = np.zeros((10, 40, 3), np.uint8)
    for mask, colour in zip(masks, ("red", "blue"), strict=True):
        image[np.roll(mask, shift, 1)] = COLOURS[colour]
    return Item(key, image, layout=Layout(masks, ("a red thing", "a blue thing"), name=key, overlap="share"))


def by_source(results: list[Result], name: str) -> dict[str, float]:
    return {result.source: result.value for result in results if result.name == name}


def test_language_guided_miou_by_hand(tmp_path: Path):
    generated, real = [scene("a", 5), scene("b")], [scene("a"), scene("b")]
    results = language_iou(lambda: generated, lambda: real, kept(tmp_path))
    found = by_source(results, NAME)
    own = (2 * (5 / 15) + 2 * 1) / 4  # shifted by half a width in one of two images
    assert found[GENERATED] == pytest.approx(own) and found[REAL] == 1
    assert found[SWAPPED] == pytest.approx((0 + 5 / 15 + 0 + 0) / 4)  # the red figure of "a" reaches into blue's mask
    assert found[MISLEADING] == 0
    assert by_source(results, GAIN) == {GENERATED: pytest.approx(own - 5 / 15 / 4)}
    assert by_source(results, f"{NAME}, outlines") and next(r for r in results if r.source == SWAPPED).better == "lower"


def test_a_judge_that_ignores_the_words_gains_nothing_by_them(tmp_path: Path):
    items = [scene("a"), scene("b")]
    results = language_iou(lambda: items, lambda: [], kept(tmp_path, SeesColours(ignores=True)))
    found = by_source(results, NAME)
    assert set(found) == {GENERATED, SWAPPED, MISLEADING}
    assert found[GENERATED] == found[SWAPPED] == found[MISLEADING] == 0.5 and by_source(results, GAIN)[GENERATED] == 0


def test_regions_of_one_caption_count_as_one_and_hidden_ones_not_at_all(tmp_path: Path):
    item = scene("a")
    masks = np.concatenate([item.layout.masks[:1], item.layout.masks[:1], item.layout.masks])
    masks[1] = np.roll(masks[1], 30, 1)
    masks[0, :, :5] = False
    layout = Layout(masks[[0, 1, 3, 2]], ("red", "red", "blue", "red"), name="a", overlap="hide")
    judge = SeesColours()
    results = language_iou(lambda: [Item("a", item.image, layout=layout)], lambda: [], kept(tmp_path, judge))
    assert judge.asked[0] == ("red", "blue")
    assert by_source(results, NAME)[GENERATED] == pytest.approx((100 / 200 + 1) / 2)
    seen = seen_regions(Item("a", item.image, layout=layout), kept(tmp_path, judge))
    assert seen.shape == (4, 10, 40) and seen[0].any() and (seen[1] == seen[0]).all()


def test_what_was_found_is_kept_for_the_same_judge_image_and_words(tmp_path: Path):
    judge, image = SeesColours(), scene("a").image
    first = kept(tmp_path, judge).find(image, ["red", "blue"])
    path = tmp_path / "found.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "torn')
    again = kept(tmp_path, judge)
    assert (again.find(image, ["red", "blue"]) == first).all() and len(judge.asked) == 1
    for other in (image[:, ::-1].copy(), image):
        again.find(other, ["blue", "red"])
    assert len(judge.asked) == 3
    KeptSegmenter(judge, KeptMasks(path, "another judge")).find(image, ["red", "blue"])
    assert len(judge.asked) == 4
    for rubbish in ('{"id": 3}', '{"id": "x", "size": [2, 2], "runs": [[9]], "scores": null}', "[1]}"):
        path.write_text(rubbish + "\n")
        with pytest.raises(UserError, match="remove it"):
            KeptMasks(path, "stub")


def test_misleading_phrases_are_not_in_the_image():
    phrases = ["a red dog", "the blue cat", "a tree"]
    found = misleading(phrases, ["a tree", "a car", "a red dog"])
    assert set(found) == set(phrases) and found["a tree"] == "a car"
    assert not {"red", "blue"} & {word for text in found.values() for word in text.split()}
    assert found["a red dog"].startswith("a ") and found["a red dog"].endswith(" dog")
    assert misleading(["a tree"], ["a tree"]) == {} and misleading([], []) == {}


def test_concept_miou_pairs_instances_with_regions(tmp_path: Path):
    item = scene("a")
    red = np.concatenate([item.layout.masks[:1], np.roll(item.layout.masks[:1], 30, 2)])
    image = item.image.copy()
    image[red.any(0)] = COLOURS["red"]
    masks = np.concatenate([red[1:], red[:1], np.roll(red[:1], 20, 2)])  # the last region shows nothing
    layout = Layout(masks, ("a red box on a mat", "a red box", "a green box"), name="a", overlap="share")
    judge = SeesColours()
    concepts = KeptConcepts(judge.instances, KeptMasks(tmp_path / "found.jsonl", "stub"))
    results = concept_iou(lambda: [Item("a", image, layout=layout)], lambda: [], concepts)
    assert judge.asked[0] == ("red box", "green box")
    assert by_source(results, CONCEPT) == {
        GENERATED: pytest.approx(2 / 3), SWAPPED: pytest.approx(0), MISLEADING: pytest.approx(0)
    }  # fmt: skip
    assert by_source(results, PRESENCE) == {GENERATED: 0.5, MISLEADING: 0.0}
    assert by_source(results, SURPLUS)[GENERATED] == 0
    count = len(judge.asked)
    again = concept_iou(lambda: [Item("a", image, layout=layout)], lambda: [], concepts)
    assert by_source(again, CONCEPT) == by_source(results, CONCEPT) and len(judge.asked) == count


@pytest.mark.parametrize(("shown", "right", "overlap"), [("blue", 1.0, 1.0), ("red", 0.0, 0.0), ("green", 0.5, 0.0)])
def test_order_is_who_is_seen_where_two_overlap(tmp_path: Path, shown: str, right: float, overlap: float):
    masks = np.zeros((2, 10, 40), bool)
    masks[0, :, :20], masks[1, :, 10:30] = True, True
    image = np.zeros((10, 40, 3), np.uint8)
    image[masks[0]], image[masks[1]] = COLOURS["red"], COLOURS["blue"]
    image[masks.all(0)] = COLOURS[shown]
    item = Item("a", image, layout=Layout(masks, ("red", "blue"), name="a"))
    results = order_of_regions(lambda: [item], lambda: [], kept(tmp_path))
    assert {result.name: result.value for result in results} == {ORDER: right, OVERLAP: overlap}
    with pytest.raises(UserError, match="no two regions hide each other"):
        order_of_regions(lambda: [scene("a")], lambda: [], kept(tmp_path))


# SAM 3


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Sam3Segmenter:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam3")
    save_sam3(folder)
    return Sam3Segmenter(str(folder), sure=0.27)


def test_instances_of_sam3_are_those_of_the_network_itself(sam3: Sam3Segmenter):
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    one, other = sam3.instances(image, ["a red circle", "a blue square"])
    words = sam3.tokenizer("a red circle", return_tensors="pt")
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        output = sam3.model(pixel_values=pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
    presence = torch.sigmoid(output.presence_logits).item()
    scores = (torch.sigmoid(output.pred_logits[0]) * presence).numpy()
    assert one.presence == pytest.approx(presence, abs=1e-5)
    assert one.scores == pytest.approx(np.sort(scores[scores >= sam3.sure])[::-1], abs=1e-5)
    assert 0 < len(one.masks) < 6 and one.masks.shape[1:] == (56, 56) and not np.allclose(one.scores, other.scores[:1])
    best = torch.nn.functional.interpolate(
        output.pred_masks[:, [scores.argmax()]], (56, 56), mode="bilinear", align_corners=False
    )
    assert (one.masks[0] != (best[0, 0] > 0).numpy()).mean() < 0.01
    layout = sam3.segment(image, Prompt(phrases=("a red circle", "a blue square")))
    assert (layout.masks[0] == one.masks.any(0)).all() and layout.scores[0] == one.scores[0]
    with pytest.raises(UserError, match="SAM 3: the prompt holds nothing"):
        sam3.segment(image, Prompt())


def test_sam3_encodes_an_image_once_and_is_never_out_of_words(sam3: Sam3Segmenter, monkeypatch: pytest.MonkeyPatch):
    calls = []
    encode = sam3.model.get_vision_features
    monkeypatch.setattr(sam3.model, "get_vision_features", lambda **given: calls.append(1) or encode(**given))
    image = np.zeros((20, 30, 3), np.uint8)
    found = sam3.instances(image, ["red " * 40, "blue", "green"])
    assert len(calls) == 1 and len(found) == 3 and sam3.instances(image, []) == []


# Closed sets


def test_squares_cover_the_image():
    assert windows((32, 32), 32) == [(0, 0)] and windows((32, 40), 32) == [(0, 0), (0, 8)]
    for size in ((32, 100), (97, 32)):
        covered = np.zeros(size, bool)
        for top, left in windows(size, 32):
            assert top + 32 <= size[0] and left + 32 <= size[1]
            covered[top : top + 32, left : left + 32] = True
        assert covered.all()


def test_eomt_sees_the_best_class_of_its_queries(tmp_path: Path):
    torch.manual_seed(0)
    tiny_eomt(7).save_pretrained(tmp_path)
    judge = EomtJudge(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    with torch.no_grad():
        output = judge.model(pixel_values=((torch.from_numpy(image).permute(2, 0, 1) - mean) / std)[None])
    expected = class_scores(output.class_queries_logits, output.masks_queries_logits, (32, 32))[0].argmax(0).numpy()
    assert judge.classes == 7 and (judge.labels(image) == expected).all()
    wide = judge.labels(np.concatenate([image, image], 1))
    assert wide.shape == (32, 64) and (wide[:, :32] == expected).all()


def test_classes_of_a_segmenter_and_pixels_without_one():
    item = scene("a")
    judge = SegmenterLabels(SeesColours(), ("blue", "green", "red", "red"))
    labels = judge.labels(item.image)
    assert judge.classes == 4 and (labels[:, :10] == 2).all() and (labels[:, 10:20] == 0).all()
    assert (labels[:, 20:] == 4).all()
    wanted = np.zeros((10, 40), np.int64)
    matrix = confusion(wanted, labels, 4)
    assert matrix.shape == (4, 5) and matrix[0].tolist() == [100, 0, 100, 0, 200]
    result = semantic_iou([Item("a", item.image, labels=wanted)], judge, ("blue", "green", "red", "red"), name="x")
    assert result.value == pytest.approx((100 / 400 + 0) / 2) and result.name == "x"
    with pytest.raises(ValueError, match="outside"):
        confusion(wanted, np.full((10, 40), 5), 4)


# Agreement


def test_rank_agreement_counts_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.permutation(9).astype(float), rng.permutation(9).astype(float)
    pairs = list(itertools.combinations(range(9), 2))
    expected = sum(np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs) / len(pairs)
    assert tau(a, b) == pytest.approx(expected)
    judges = {
        "one": mean("one", {str(n): float(n) for n in range(9)}),
        "worse": mean("worse", {str(n): -float(n) for n in range(1, 9)}, better="lower"),
        "few": mean("few", {"1": 1.0, "2": 2.0}),
        "flat": mean("flat", dict.fromkeys(map(str, range(9)), 1.0)),
    }
    (found,) = agreements(judges)
    assert found.name == "rank agreement, one and worse" and found.value == pytest.approx(1) and found.extra["n"] == 8
    low, high = interval(found)
    assert low <= high <= 1


# The command


@pytest.mark.parametrize(
    ("words", "way", "message"),
    [
        (["atention"], "phrases", "atention' is no method of segment; did you mean attention"),
        (["attention", "threshold"], "phrases", "'threshold' is no FLAG=VALUE"),
        (["sam"], "phrases", "finds regions by itself"),
        ([], "phrases", "is no method of segment; choose one of attention"),
    ],
)
def test_bad_segmenters_are_one_line(words: list[str], way: str, message: str):
    if words == ["sam"] and "sam" not in evaluate_measure.METHODS:
        pytest.skip("no such method")
    with pytest.raises(UserError, match=message):
        evaluate_measure.open_segmenter(words, way, torch.device("cpu"))


def test_a_method_of_segment_is_opened_with_its_own_flags(tmp_path: Path, sam3: Sam3Segmenter):
    words = ["sam3", f"sam3_model={sam3.name}", "sure_instance=0.25"]
    opened = evaluate_measure.open_segmenter(words, "categories", torch.device("cpu"))
    assert opened.segmenter.sure == 0.25 and '"method": "sam3"' in opened.name and len(opened.name) > 100


def test_a_closed_set_is_measured_by_its_other_judges(tmp_path: Path):
    data, out = make_ade20k(tmp_path, 4, "validation"), tmp_path / "out"
    opened = open_data_set("ade20k", data.params)
    (out / "group_0").mkdir(parents=True)
    for number, truth in enumerate(data.truths):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(out / "group_0" / f"{truth.key}.png")
    told = {"type": "ade20k", "params": data.params, "fingerprint": opened.fingerprint()}
    about = {"samples": 4, "groups": 1, "format": "png", "size": [32, 32], "seed": 0, "recipe": {}}
    write_run(out, {"data": told, **about}, overwrite=False)
    torch.manual_seed(0)
    tiny_eomt(150).save_pretrained(tmp_path / "eomt")
    tiny_dinov3().save_pretrained(tmp_path / "dinov3")
    metrics = ["miou_eomt", "miou_segmenter", "fdd_dinov3"]
    flags = [word for name in ("eomt", "dinov3") for word in (f"--{name}", str(tmp_path / name))]
    options = parse_options([str(out), "--device", "cpu", "--metrics", *metrics, *flags])
    ways = []
    run(options, lambda words, way, device: ways.append(way) or NamedSegmenter("stub", SeesColours()))
    found = read_run(out / "evaluation.json")
    names = ["mIoU by EoMT", "mIoU by the segmenter"]
    assert ways == ["categories"] and found.row("FDD by DINOv3").n == 4
    assert all(found.row(name, source).n == 4 for name in names for source in ("generated", "grey images"))
    assert found.row("mIoU by the segmenter").value == 0  # it sees no class anywhere
    assert not any(row.name.startswith("rank agreement") for row in found.rows)  # such a judge orders nothing
