"""The report page: one self-contained file with everything that the evaluation found."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import Result, mean
from seg2any.evaluation.report.__main__ import main
from seg2any.evaluation.report.numbers import distinct_names, number
from seg2any.evaluation.report.pictures import Shown, extremes, folder_of, read_pictures, save_pictures, side_by_side
from seg2any.evaluation.report.results import make_run, write_run
from seg2any.layout import Layout
from seg2any.system.errors import UserError

VOID = {"meta", "img", "br", "line", "circle"}
HOSTILE = '"><script>alert(1)</script><img src=http://evil.example/x onerror="x">'


class Page(HTMLParser):
    """HTML parser that checks that every element is closed, and collects its content."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.images, self.text, self.references = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.references += [
            value for name, value in attrs.items() if name in ("src", "href", "srcset", "data", "action")
        ]
        assert not any(name.startswith("on") for name in attrs)
        if tag == "img":
            assert attrs["alt"]
            self.images.append(attrs["src"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def layout(name: str) -> Layout:
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 5:20, 5:20], masks[1, 22:38, 30:55] = True, True
    return Layout(masks, ("a red circle", HOSTILE), "both", name=name)


def evaluation(folder: Path, name: str, shift: float = 0.0, benchmark: str = "shapes") -> Path:
    rng = np.random.default_rng(0)
    scores = {f"scene {n}": float(score) + shift for n, score in enumerate(rng.uniform(0.2, 0.8, 12))}
    results = [mean("IoU", scores), mean("IoU", dict.fromkeys(scores, 0.9), source="rendered (ceiling)")]
    results += [mean("leak", {key: 0.1 for key in scores}, better="lower")]
    extra = {"per_class": [{"class": 0, "name": "wall & <door>", "iou": 0.25, "pixels": 7}]}
    results[0].extra.update(extra)
    path = folder / f"{name}.json"
    write_run(make_run(benchmark, results, {"steps": 20, "rules": {"method": "hard"}}, {"adapter": "0123abcd"}), path)
    shown = []
    for place, key, value in extremes(scores, "higher", 2):
        item = Item(key, rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), layout=layout(key))
        pictures = side_by_side(item, item.layout.masks[:, ::-1], np.zeros((20, 900, 3), np.uint8))
        shown.append((Shown(key, place, "IoU", value, HOSTILE, item.layout.captions, {}), pictures))
    save_pictures(folder_of(path), shown)
    return path


def report(tmp_path: Path, *paths: Path) -> tuple[Page, str]:
    out = tmp_path / "page.html"
    assert main([*map(str, paths), "-o", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_holds_numbers_samples_and_circumstances(tmp_path: Path):
    page, text = report(tmp_path, evaluation(tmp_path, "one"))
    words = " ".join(page.text)
    rng = np.random.default_rng(0).uniform(0.2, 0.8, 12)
    assert f"{rng.mean():.4f}" in words and "rendered (ceiling)" in words and "0.9000" in words
    assert f"scene {rng.argmin()}" in words and f"scene {rng.argmax()}" in words
    assert words.index(f"scene {rng.argmin()}") < words.index(f"scene {rng.argmax()}")
    for told in (
        "Worst by IoU",
        "Best by IoU",
        "wall & <door>",
        "rules.method",
        "0123abcd",
        "torch",
        "commit",
    ):
        assert told in words, told
    assert "lower is better" in words and "higher is better" in words


def test_every_picture_is_in_the_page_and_nothing_is_loaded(tmp_path: Path):
    page, text = report(tmp_path, evaluation(tmp_path, "one"))
    assert len(page.images) == 4 * 5  # two worst, two best: masks, contour, image, judge, real image
    sizes = []
    for address in page.images:
        assert address.startswith("data:image/webp;base64,")
        with Image.open(BytesIO(base64.b64decode(address.split(",", 1)[1]))) as image:
            image.load()
            sizes.append(image.size)
    assert set(sizes) == {(60, 40), (384, 9)}
    assert all(address.startswith("data:") for address in page.references)
    style = re.search("<style>(.*)</style>", text, re.S).group(1)
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert "script" not in page.tags and "http" not in style
    assert 'content="width=device-width, initial-scale=1"' in text and text.startswith("<!doctype html>")


def test_captions_with_markup_stay_text(tmp_path: Path):
    page, text = report(tmp_path, evaluation(tmp_path, "one"))
    assert "<script" not in text and HOSTILE in " ".join(page.text)


def test_several_runs_are_compared_in_pairs(tmp_path: Path):
    (tmp_path / "x").mkdir(), (tmp_path / "y").mkdir()
    a, b = evaluation(tmp_path / "x", "run"), evaluation(tmp_path / "y", "run", shift=0.05)
    page, text = report(tmp_path, a, b)
    words = " ".join(page.text)
    assert "Differences" in words and "B is better" in words and "-0.0500" in words
    assert "A is x, B is y" in words  # only the names are equal
    assert len(page.images) == 2 * 4 * 5


def test_pictures_of_an_earlier_evaluation_do_not_stay(tmp_path: Path):
    path = evaluation(tmp_path, "one")
    files = {file.name for file in folder_of(path).iterdir()}
    kept = read_pictures(folder_of(path))[:1]
    save_pictures(folder_of(path), [(kept[0], {"image": Image.new("RGB", (4, 4))})])
    (picture,) = read_pictures(folder_of(path))[0].pictures.values()
    assert {file.name for file in folder_of(path).iterdir()} == {"index.json", picture} and picture not in files
    page, _ = report(tmp_path, path)
    assert len(page.images) == 1


def test_ceilings_that_differ_between_runs_are_shown_separately(tmp_path: Path):
    for name, ceiling in (("one", 0.9), ("two", 0.8)):
        results = [mean("IoU", {"a": 0.5, "b": 0.6})]
        results += [mean("IoU", {"a": ceiling}, source="rendered"), mean("IoU", {"a": 0.1}, source="grey")]
        write_run(make_run("shapes", results, {}, {}), tmp_path / f"{name}.json")
    _, text = report(tmp_path, tmp_path / "one.json", tmp_path / "two.json")
    lines = re.findall(r'<g class="(\w+)"><title>([^:]*):[^<]*</title>.*?<circle [^>]* fill="(\w+)"', text)
    assert lines == [
        *[("a", "one", "currentColor"), ("b", "two", "currentColor")],
        *[("a", "rendered", "none"), ("b", "rendered", "none"), ("other", "grey", "none")],
    ]


def test_a_run_without_pictures_has_a_page_too(tmp_path: Path):
    path = tmp_path / "fid.json"
    write_run(make_run("ade20k", [mean("x", {"a": 1.0})], {}, {}), path)
    page, _ = report(tmp_path, path)
    assert "No pictures lie beside this file." in " ".join(page.text) and not page.images


def test_the_page_is_valid_with_nan_values(tmp_path: Path):
    per_class = [{"class": 0, "iou": math.nan}, {"class": 1, "iou": 0.5}]
    nothing = Result("mIoU", math.nan, {"a": math.nan}, {"per_class": per_class}, resamples=(math.nan, 1.0))
    for name, results in (("odd", [nothing]), ("empty", [])):
        write_run(make_run("x", results, {}, {}), tmp_path / f"{name}.json")
        page, text = report(tmp_path, tmp_path / f"{name}.json")
        told = " ".join(page.text)
        assert "nan" not in told and "None" not in told and "NaN" not in text


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = evaluation(tmp_path, "one")
    assert main([str(tmp_path / "nowhere.json"), "-o", str(tmp_path / "p.html")]) == 2
    assert "nowhere.json: cannot be read" in capsys.readouterr().err
    other = evaluation(tmp_path, "two", benchmark="ade20k")
    assert main([str(path), str(other), "-o", str(tmp_path / "p.html")]) == 2
    assert "different benchmarks" in capsys.readouterr().err
    next(folder_of(path).glob("*.webp")).write_bytes(b"no picture")
    assert main([str(path), "-o", str(tmp_path / "p.html")]) == 2
    assert ".webp: cannot be read as an image" in capsys.readouterr().err
    (folder_of(path) / "index.json").write_text('[{"key": 1}]')
    with pytest.raises(UserError, match="index.json: cannot be read"):
        read_pictures(folder_of(path))
    assert not (tmp_path / "p.html").exists()


def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path):
    path = evaluation(tmp_path, "one")
    index = folder_of(path) / "index.json"
    masks = read_pictures(folder_of(path))[0].pictures["masks"]
    index.write_text(index.read_text().replace(masks, "../../secret.webp"))
    with pytest.raises(UserError, match="is no name of a picture beside it"):
        read_pictures(folder_of(path))


def test_extremes_are_the_worst_and_the_best_and_no_sample_twice():
    scores = {"a": 0.5, "b": 0.1, "c": 0.9, "d": 0.7, "e": float("nan")}
    assert extremes(scores, "higher", 1) == [("worst", "b", 0.1), ("best", "c", 0.9)]
    assert extremes(scores, "lower", 1) == [("worst", "c", 0.9), ("best", "b", 0.1)]
    assert [key for _, key, _ in extremes(scores, "higher", 9)] == ["b", "a", "c", "d"]
    assert extremes({"a": 1.0}, "higher", 3) == [("worst", "a", 1.0)] and extremes({}, "higher", 3) == []


def test_runs_are_named_by_the_parts_of_their_paths_that_differ():
    assert distinct_names([Path("r/hard.json"), Path("r/base.json")]) == ["hard", "base"]
    assert distinct_names([Path("r/hard/all.json"), Path("r/base/all.json")]) == ["hard", "base"]
    assert distinct_names([Path("r/a/x/all.json"), Path("r/b/y/all.json")]) == ["a/x", "b/y"]
    assert distinct_names([Path("r/all.json"), Path("r/b/all.json")]) == ["all", "b/all"]
    assert distinct_names([Path("r/all.json")] * 2)  # one file given twice: any names are allowed


def test_small_numbers_keep_their_sign_and_size():
    assert [number(value) for value in (0.0, -0.0000321, 0.12345, 12.3456, math.nan, None)] == [
        *("0.0000", "-3.2e-05", "0.1235", "12.35", "–", "–")
    ]


def test_a_page_of_a_foreign_file_holds_no_script(tmp_path: Path):
    """Put markup into every text of a run and of the index of its pictures, and wrong types into the rest."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    path = evaluation(tmp_path, "one")
    _, text = report(tmp_path, path)
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    whole = json.loads(path.read_text())
    for key, value in (("better", HOSTILE), ("n", HOSTILE), ("name", 5), ("source", [HOSTILE]), ("extra", "x")):
        path.write_text(json.dumps(whole | {"rows": [whole["rows"][0] | {key: value}]}))
        assert main([str(path), "-o", str(tmp_path / "page.html")]) == 2, key
    for key, value in (("benchmark", 5), ("commit", None), ("machine", []), ("settings", HOSTILE)):
        path.write_text(json.dumps(whole | {key: value}))
        assert main([str(path), "-o", str(tmp_path / "page.html")]) == 2, key
    nested = json.loads('{"a": ' * 900 + "1" + "}" * 900)
    path.write_text(json.dumps(whole | {"settings": nested}))
    assert main([str(path), "-o", str(tmp_path / "page.html")]) == 2
    path.write_text(json.dumps(whole | {"benchmark": HOSTILE, "commit": HOSTILE, "hashes": {HOSTILE: HOSTILE}}))
    report(tmp_path, path)


def test_pictures_of_a_foreign_index_are_plain_files_beside_it(tmp_path: Path):
    path = evaluation(tmp_path, "one")
    index = folder_of(path) / "index.json"
    whole = json.loads(index.read_text())
    real = whole[0]["pictures"]["image"]
    name = 'a.png" onerror="alert(1)" x="'
    (index.parent / name).write_bytes((index.parent / real).read_bytes())
    for change in ({"pictures": {"image": name}}, {"pictures": {"image": "../one.json"}}, {"pictures": {"image": 5}}):
        index.write_text(json.dumps([whole[0] | change]))
        assert main([str(path), "-o", str(tmp_path / "page.html")]) == 2, change
    for change in ({"key": 5}, {"caption": [HOSTILE]}, {"value": HOSTILE}, {"captions": [None]}):
        index.write_text(json.dumps([whole[0] | change]))
        assert main([str(path), "-o", str(tmp_path / "page.html")]) == 2, change
