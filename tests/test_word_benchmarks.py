"""Benchmarks of words: readers on synthetic copies of the published sets, with segmenters that know the truth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.metrics.panoptic import Segments
from seg2any.evaluation.report.results import read_run
from seg2any.evaluation.words import __main__ as command
from seg2any.evaluation.words import measure, sets
from seg2any.evaluation.words.keywords import KeywordSegmenter
from seg2any.evaluation.words.published import PUBLISHED, beside
from seg2any.evaluation.words.scenes import CATEGORIES, read_scenes
from seg2any.layout import Layout
from seg2any.layout.rle import encode_rle
from seg2any.segment.segmenter import Description
from seg2any.system.errors import UserError

SIDE = 48
PHOTOS = 3


class Oracle:
    """Answers from the masks that it is given by text; descriptions in order of the photos."""

    def __init__(self, photos):
        self.by_text = {phrase.text: phrase.mask for photo in photos for phrase in photo.phrases}
        self.told = iter([(photo.told, photo.caption) for photo in photos])
        self.segments = iter([photo.segments for photo in photos])

    def segment(self, image, prompt):
        text = prompt.question or prompt.phrases[0]
        return Layout(self.by_text[text][None], (text,), overlap="share")

    def describe(self, image):
        told, caption = next(self.told)
        texts, masks = zip(*told, strict=True)
        layout = Layout(np.stack(masks), texts, caption=caption or None, overlap="share")
        return Description(layout, f"<p>{caption} </p> And <SEG>.<|end|>")

    def panoptic(self, image, categories):
        return next(self.segments)


class Blind:
    """Answers nothing."""

    def segment(self, image, prompt):
        return Layout(np.zeros((0, *image.shape[:2]), bool), (), overlap="share")

    def describe(self, image):
        return Description(self.segment(image, None), "")

    def panoptic(self, image, categories):
        return Segments(np.zeros(image.shape[:2], np.int64), {})


@pytest.fixture(scope="module")
def scenes():
    data = ShapesDataset("val", PHOTOS, entities=(2, 3), size=64)
    return [data.scene(index) for index in range(PHOTOS)]


@pytest.fixture
def folder(tmp_path, scenes):
    for number, scene in enumerate(scenes):
        Image.fromarray(scene.render()[0]).save(tmp_path / f"{number}.png")
        Image.fromarray(scene.render()[0]).save(tmp_path / f"{number}.jpg")
    return tmp_path


def write(path, document):
    path.write_text(json.dumps(document))
    return path


def images(scenes):
    return [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(len(scenes))]


def truth(scenes):
    return [(n, k, mask) for n, scene in enumerate(scenes) for k, mask in enumerate(scene.masks())]


def test_referring_sets_have_an_image_entry_for_each_phrase(folder, scenes):
    entries = [
        {"id": 10 * n + k, "file_name": f"{n}.png", "height": 64, "width": 64, "caption": f"thing {n} {k}"}
        for n, k, _ in truth(scenes)
    ]
    notes = [{"image_id": 10 * n + k, "segmentation": encode_rle(mask)} for n, k, mask in truth(scenes)]
    photos = list(sets.read_refcoco(folder, write(folder / "refs.json", {"images": entries, "annotations": notes})))
    assert [photo.phrases[0].text for photo in photos] == [f"thing {n} {k}" for n, k, _ in truth(scenes)]
    assert all(np.array_equal(p.phrases[0].mask, mask) for p, (*_, mask) in zip(photos, truth(scenes), strict=True))
    assert np.array_equal(photos[0].read(), scenes[0].render()[0])
    for segmenter, value in ((Oracle(photos), 1.0), (Blind(), 0.0)):
        assert [one.value for one in measure.measure_phrases(photos, segmenter)] == [value, value]


def test_reasoning_sets_ignore_what_they_say_and_ask_questions(folder, scenes):
    square, half = [[4, 4], [20, 4], [20, 20], [4, 20]], [[4, 4], [12, 4], [12, 20], [4, 20]]
    for n in range(PHOTOS):
        shapes = [{"label": "target", "points": square}, {"label": "ignore", "points": half}]
        write(folder / f"{n}.json", {"text": [f"what is {n}?", "short"], "is_sentence": n == 0, "shapes": shapes})
    photos = list(sets.read_reasoning(folder))
    assert [len(photo.phrases) for photo in photos] == [2] * PHOTOS
    first = photos[0].phrases[0]
    assert first.question and not photos[1].phrases[0].question
    assert first.mask.sum() == 256 and first.ignored.sum() == 128

    class Half:
        def segment(self, image, prompt):
            found = np.zeros((1, 64, 64), bool)
            found[0, 4:20, 12:20] = True
            return Layout(found, ("half",), overlap="share")

    assert [one.value for one in measure.measure_phrases(photos, Half())] == [1.0, 1.0]


def test_grounded_sets_pair_masks_with_labels_in_order(folder, scenes):
    notes = [{"image_id": n, "segmentation": encode_rle(mask)} for n, _, mask in truth(scenes)]
    masks = write(folder / "masks.json", {"images": images(scenes), "annotations": notes})
    told = [{"image_id": n, "caption": scene.caption, "labels": list(scene.captions)} for n, scene in enumerate(scenes)]
    captions = write(folder / "captions.json", {"annotations": told})
    photos = list(sets.read_grounded(folder, masks, captions))
    assert [text for text, _ in photos[0].told] == list(scenes[0].captions)
    assert [photo.caption for photo in photos] == [scene.caption for scene in scenes]
    found = {one.name: one.value for one in measure.measure_grounded(photos, Oracle(photos))}
    masks_found = {"mask mIoU": pytest.approx(1), "phrase recall": 1.0, "AP50": pytest.approx(1)}
    assert found == {**masks_found, "CIDEr": pytest.approx(10), measure.CUT: 0.0}  # no caption ends with a full stop
    ended = [replace(photo, caption=f"{photo.caption}.") for photo in photos]
    found = {one.name: one.value for one in measure.measure_grounded(ended, Oracle(ended))}
    assert found["CIDEr"] == found[measure.CUT] == pytest.approx(10)
    assert {one.value for one in measure.measure_grounded(photos, Blind())} == {0.0}
    untold = [replace(photo, caption="") for photo in photos[1:]]
    assert {one.name for one in measure.measure_grounded(photos[:1] + untold, Blind())} == set(masks_found)
    told[0]["caption"] = 3
    with pytest.raises(UserError, match="image 0 has caption 3; get the file again"):
        list(sets.read_grounded(folder, masks, write(folder / "captions.json", {"annotations": told})))
    told[0]["caption"] = ""
    told[0]["labels"].append("too many")
    with pytest.raises(UserError, match="image 0 has [0-9] labels and [0-9] masks; get both files again"):
        list(sets.read_grounded(folder, masks, write(folder / "captions.json", {"annotations": told})))


def test_panoptic_sets_number_segments_by_colours(folder, scenes):
    names = sorted({figure.shape for scene in scenes for figure in scene.figures})
    entries, listed = [], [{"id": 7 + n, "name": name, "isthing": n % 2} for n, name in enumerate(names)]
    for n, scene in enumerate(scenes):
        labels, parts = np.zeros((64, 64, 3), np.uint8), []
        for k, (mask, figure) in enumerate(zip(scene.masks(), scene.figures, strict=True)):
            labels[mask] = (k + 1, 2, 1)
            parts.append({"id": k + 1 + 512 + 65536, "category_id": 7 + names.index(figure.shape), "iscrowd": 0})
        Image.fromarray(labels).save(folder / f"labels_{n}.png")
        entries.append({"image_id": n, "file_name": f"labels_{n}.png", "segments_info": parts})
    document = {"images": images(scenes), "annotations": entries, "categories": listed}
    path = write(folder / "panoptic.json", document)
    photos, categories = list(sets.read_panoptic(folder, path, folder)), sets.read_categories(path)
    assert list(categories.names) == names and categories.stuff == frozenset(names[::2])
    assert photos[0].segments.classes == {
        65536 + 512 + k + 1: figure.shape for k, figure in enumerate(scenes[0].figures)
    }
    assert {one.value for one in measure.measure_panoptic(photos, Oracle(photos), categories)} == {1.0}
    assert {one.value for one in measure.measure_panoptic(photos, Blind(), categories)} == {0.0}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "refs.json: the file holds no object"),
        ("{", "refs.json: the file is no JSON"),
        ('{"images": [], "annotations": 3}', "refs.json: has no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\]: has no 'height'"),
        ('{"images": [{"id": 1, "height": "x"}], "annotations": []}', r"images\[0\]: height is 'x'"),
    ],
)
def test_damaged_annotations_are_one_line(document, message, tmp_path):
    (tmp_path / "refs.json").write_text(document)
    with pytest.raises(UserError, match=message) as caught:
        list(sets.read_refcoco(tmp_path, tmp_path / "refs.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("category", "parts", "message"),
    [
        ({"id": 1}, [], "categories: has no 'name'"),
        ({"id": 1, "name": "a"}, 3, r"annotations\[0\]: has no list 'segments_info'"),
        ({"id": 1, "name": "a"}, [{"id": 1}], r"annotations\[0\]: has no 'category_id'"),
        ({"id": 1, "name": "a"}, [{"id": 1, "category_id": 2}], "a category_id is not among categories"),
    ],
)
def test_damaged_segments_are_one_line(category, parts, message, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    entry = {"file_name": "x.png", "image_id": 1, "segments_info": parts}
    path = write(tmp_path / "p.json", {"categories": [category], "images": [], "annotations": [entry]})
    with pytest.raises(UserError, match=message):
        list(sets.read_panoptic(tmp_path, path, tmp_path))


def test_scenes_ask_each_kind_and_keywords_find_colours_only():
    photos = list(read_scenes(4))
    kinds = {phrase.kind for photo in photos for phrase in photo.phrases}
    assert {"attributes", "relation", "plural", "questions, known"} <= kinds
    found = {one.name: one.value for one in measure.measure_phrases(photos, KeywordSegmenter())}
    assert 0.1 < found["cIoU"] < 0.8 and found["cIoU, attributes"] > found["cIoU, relation"]
    for photo in photos:  # a phrase may mean other figures in another scene
        assert measure.measure_phrases([photo], Oracle([photo]))[0].value == 1.0
    pq, miou = measure.measure_panoptic(photos, Oracle(photos), CATEGORIES)
    assert pq.value == miou.value == 1.0 and set(pq.extra) >= {"sq", "rq", "per_class"}


def test_published_numbers_are_marked():
    assert all("as published" in line for name in PUBLISHED for line in beside(name)) and beside("shapes") == []
    assert measure.CUT in PUBLISHED["grounded"]
    assert [line for line in beside("grounded") if "not measured" in line] == [
        "METEOR 0.154 as published (X-SAM), not measured here"
    ]


@pytest.fixture(scope="module")
def recorded_model(tmp_path_factory):
    """Write the recorded tiny model, which really answers, as a folder."""
    from tests.parity_xsam.recorded import ROOT, tokenizer, whole_model

    if not (ROOT / "model_tiny_stage3.safetensors").is_file():
        pytest.skip("no recorded model")
    place = tmp_path_factory.mktemp("model") / "xsam"
    whole_model().save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def test_every_benchmark_runs_from_its_files_to_numbers(folder, scenes, recorded_model, capsys):
    notes = [{"image_id": n, "segmentation": encode_rle(mask)} for n, _, mask in truth(scenes)]
    named = [{**one, "caption": scene.figures[0].caption} for one, scene in zip(images(scenes), scenes, strict=True)]
    refs = write(folder / "refs.json", {"images": named, "annotations": notes})
    told = [{"image_id": n, "caption": scene.caption, "labels": list(scene.captions)} for n, scene in enumerate(scenes)]
    captions = write(folder / "captions.json", {"annotations": told})
    Image.fromarray(np.full((64, 64, 3), 1, np.uint8)).save(folder / "labels.png")
    part = {"id": 65793, "category_id": 1, "iscrowd": 0}
    listed = [{"id": 1, "name": "wall-other", "isthing": 0}]
    entry = {"image_id": 0, "file_name": "labels.png", "segments_info": [part]}
    panoptic = {"images": images(scenes), "annotations": [entry], "categories": listed}
    files = ("--images", folder, "--annotations", refs)
    calls = {
        "refcoco": files,
        "grounded": (*files, "--captions", captions),
        "ade_panoptic": ("--images", folder, "--annotations", write(folder / "p.json", panoptic), "--labels", folder),
        "shapes": (),
    }
    for name, flags in calls.items():
        words = [name, "--model", recorded_model, "--output", folder / "out", "--limit", 1, "--device", "cpu", *flags]
        assert command.main([str(word) for word in words]) == 0, name
        found = read_run(folder / "out" / f"{name}.json")
        printed = capsys.readouterr().out
        assert found.benchmark == name and all(0 <= row.value <= 1 for row in found.rows)
        assert ("as published" in printed) == (name in PUBLISHED) and found.rows[0].name in printed
    assert {row.source for row in found.rows} == {"generated", "keywords and colours"}


def test_missing_files_are_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["grounded", "--model", "m", "--images", "."])
    assert "grounded needs --annotations and --captions; see --help" in capsys.readouterr().err
