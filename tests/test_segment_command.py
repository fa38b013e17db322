"""`segment`: photos in, layouts, overlays and a report out; resuming; bad input in one line each."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seg2any.annotate import plan, prompts
from seg2any.annotate.captions import Describe
from seg2any.annotate.layouts import captioned
from seg2any.commands import segment, segment_attention, segment_methods
from seg2any.commands.segment_methods import NOTHING, Method
from seg2any.commands.segment_sweep import heat_map
from seg2any.data.catalog import open_data_set
from seg2any.layout import Layout
from seg2any.segment.sweep import Swept, region_iou
from seg2any.system.patience import Patience
from tests.infer_command import files
from tests.stub_judge import stub_judge

RNG = np.random.default_rng(0)
PHRASES = ("a red star", "a ring")


def photo(path: Path, size: tuple[int, int] = (40, 56), **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(path, **more)
    return path


@pytest.fixture
def opened(pipe, monkeypatch) -> list:
    """Stand in for loading a model; the list tells how often that was asked for."""
    calls = []
    session = SimpleNamespace(pipeline=pipe)
    monkeypatch.setattr(segment_attention, "open_session", lambda *_: calls.append(1) or session)
    monkeypatch.setattr(segment_attention, "flow_identity", lambda *_: {"model": {"id": "tiny"}})
    return calls


@pytest.fixture
def call(tmp_path: Path, capsys):
    """Return a function that runs a command line: words -> (status, output, lines of errors)."""

    def run(*words: object) -> tuple[int, str, list[str]]:
        fixed = ["--blocks", 0, 3, "--side", 64, "--text_tokens", 24, "--device", "cpu"]
        given = [*words, *fixed, "--output_path", tmp_path / "out"]
        status = segment.main([str(word) for word in given], "segment.py")
        told = capsys.readouterr()
        return status, told.out, [line for line in told.err.splitlines() if line.startswith(("segment.py", "warning"))]

    return run


def test_a_folder_becomes_layouts_that_can_be_read_and_is_done_once(call, opened, tmp_path: Path):
    for name in ("a.png", "b.jpg"):
        photo(tmp_path / "in" / name)
    status, output, errors = call(tmp_path / "in", "--categories", *PHRASES)
    out = tmp_path / "out"
    assert status == 0 and "2 images to segment" in output
    assert files(out) == ["a.json", "a.png", "b.json", "b.png", "overlays", "report.md"]
    layouts = [Layout.read(path) for path in Layout.find(out)]
    assert [layout.name for layout in layouts] == ["a", "b"]
    for layout in layouts:
        assert layout.size == (40, 56) and (layout.masks.sum(0) == 1).all() and {*layout.captions} <= {*PHRASES}
        assert layout.source == "attention of blocks 0 3" and ((layout.scores > 0) & (layout.scores < 1)).all()
    assert "| a | a red star |" in (out / "report.md").read_text() and len(opened) == 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    status, output, errors = call(tmp_path / "in", "--categories", *PHRASES)
    assert status == 0 and len(opened) == 1 and not errors
    (out / "a.json").unlink()  # interrupted or removed
    status, output, errors = call(tmp_path / "in", "--categories", *PHRASES)
    assert "1 images to segment" in output and len(opened) == 2 and (out / "a.json").exists()
    assert before[out / "b.png"] == (out / "b.png").stat().st_mtime_ns
    status, output, errors = call(tmp_path / "in", "--categories", "a ring", "a heart")
    assert len(opened) == 2 and len(errors) == 2 and "made with another segment.categories" in errors[0]


def test_captions_make_a_folder_of_photos_a_set_that_trains(call, opened, tmp_path: Path):
    for name in ("a.png", "b.png", "c.png"):
        photo(tmp_path / "in" / name)
    texts = {name: {"1": f"{name} 1", "2": f"{name} 2"} for name in "ab"}
    lines = [{"image": f"{name}.png", "caption": name, "regions": regions} for name, regions in texts.items()]
    file, names = tmp_path / "texts.jsonl", ("--categories", *PHRASES, "--captions")
    file.write_text("\n".join(map(json.dumps, lines)))
    status, output, errors = call(tmp_path / "in", *names, "file", "--caption_file", file)
    assert status == 2 and len(errors) == 1 and "it has no captions of c.png; add them" in errors[0]
    (command,) = [line.split() for line in output.splitlines() if line.startswith("train: ")]
    assert command[1:4] == ["seg2any", "train", "config/seg2any_folder.yaml"]
    data = open_data_set("folder", dict(word.removeprefix("--data.train.params.").split("=") for word in command[4:]))
    found = [(data[n].layout.caption, data[n].layout.captions) for n in range(len(data))]
    assert found == [("a", ("a 1", "a 2")), ("b", ("b 1", "b 2"))]
    status, _, errors = call(tmp_path / "in" / "a.png", *names, "phrases")
    assert status == 0 and "made with another captions" in errors[0]
    status, _, errors = call(tmp_path / "in" / "a.png", *names, "phrases", "--overwrite")
    kept = Layout.read(tmp_path / "out" / "a.json")
    assert status == 0 and kept.captions == PHRASES and kept.caption == "a red star and a ring"


def test_a_model_names_what_was_found_and_one_that_fails_leaves_no_file(call, opened, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(plan, "Describe", partial(Describe, patience=Patience(1, 0.01, 0.01)))
    photo(tmp_path / "in" / "a.png")
    with stub_judge() as server:
        server.said |= {prompts.PROMPTS["image"]: "a street at noon", prompts.PROMPTS["region"]: "a red car"}
        asked = [tmp_path / "in", "--captions", "endpoint", "--endpoint", server.url, "--caption_model", "stub"]
        status, _, _ = call(*asked)
        found = Layout.read(tmp_path / "out" / "a.json")
        assert status == 0 and found.caption == "a street at noon" and {*found.captions} == {"a red car"}
        assert server.requests == 1 + len(found.captions) and found.source == "attention of blocks 0 3"
    (tmp_path / "out" / "a.json").unlink()
    with stub_judge(*["no json"] * 99) as server:
        asked[asked.index("--endpoint") + 1] = server.url
        status, _, errors = call(*asked, "--overwrite")
    assert status == 2 and "a.png: got no captions: " in errors[-1] and not (tmp_path / "out" / "a.json").exists()


def test_regions_without_a_pixel_get_no_caption():
    masks = np.zeros((3, 20, 30), bool)
    masks[0, :5], masks[2, 10:] = True, True
    found = Layout(masks, ("a", "b", "c"), scores=np.array([0.9, 0.0, 0.7], np.float32), source="s", overlap="share")

    def write(draft) -> None:
        for region, mask in zip(draft.regions, draft.masks(), strict=True):
            region.caption = f"{region.caption}, {mask.sum()} pixels"

    made = captioned(found, Path("a.png"), np.zeros((40, 60, 3), np.uint8), write)
    assert (
        made.captions == ("a, 600 pixels", "c, 1200 pixels") and made.scores.tolist() == found.scores[[0, 2]].tolist()
    )
    assert made.masks.sum((1, 2)).tolist() == [600, 1200] and made.size == (40, 60)


@pytest.mark.parametrize(("form", "name"), [("npz", "a.npz"), ("coco", "a.json")])
def test_other_formats_keep_what_they_hold(form: str, name: str, call, opened, tmp_path: Path):
    status, _, _ = call(photo(tmp_path / "in" / "a.png"), "--phrases", *PHRASES, "--format", form)
    layout = Layout.read(tmp_path / "out" / name)
    assert status == 0 and layout.captions == PHRASES and (layout.scores is None) == (form == "coco")


def test_photos_that_cannot_be_used_are_named_and_others_go_on(call, opened, tmp_path: Path):
    folder = tmp_path / "in"
    photo(folder / "good.png")
    photo(folder / "one.png", (1, 1))
    (folder / "bad.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (64, 48), (90, 90, 90)).save(folder / "flat.png")
    Image.fromarray(RNG.integers(0, 256, (40, 40), np.uint8)).save(folder / "grey.png")
    Image.fromarray(RNG.integers(0, 256, (40, 40, 4), np.uint8)).save(folder / "alpha.png")
    Image.fromarray(RNG.integers(0, 65536, (40, 40), np.uint16)).save(folder / "deep.png")
    photo(folder / "wide.png", (20, 20_000))
    status, _, errors = call(folder, "--phrases", *PHRASES)
    assert status == 2 and [line for line in errors if line.startswith("segment.py")] == errors[-3:]
    assert [Path(line.split(": ")[1]).name for line in errors[-3:]] == ["bad.jpg", "empty.png", "one.png"]
    assert any(
        "flat.png: no region was found, the photo has one colour; the layout is empty" in line for line in errors
    )
    made = ["alpha", "deep", "flat", "good", "grey", "wide"]
    assert [name for name in files(tmp_path / "out") if name.endswith(".json")] == [f"{name}.json" for name in made]
    flat = Layout.read(tmp_path / "out" / "flat.json")
    assert flat.masks.shape == (0, 48, 64) and flat.captions == () and flat.source == "attention of blocks 0 3"
    assert not list((tmp_path / "out").rglob("*.tmp*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--phrases", "a", "--categories", "b"], "--phrases and --categories: each asks"),
        (
            ["--points", "0.5,0.5"],
            "--points: --method attention reads texts only; give --phrases, --categories or no n",
        ),
        (["--describe"], "--describe: --method attention reads texts only"),
        (["--ask", "which is red?"], "--ask: --method attention reads texts only"),
        (["--background", "a wall"], "--background: there are no other phrases"),
        (["--phrases", "a ring", "a ring"], "--phrases 'a ring': is given twice"),
        (["--phrases", " "], "prompt: phrases entry 1 is empty"),
        (["--categories", "names.txt"], "names.txt: holds no name; write one a line"),
        (["--phrases", "a star " * 500], "has .* tokens, and 23 are read; shorten it"),
        (["--captions", "phrases"], "--captions phrases: nothing names the regions; give --phrases"),
        (["--endpoint", "http://x"], "--endpoint: is read with --captions endpoint only; give that, too"),
        (["--phrases", "x", "--format", "npz", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_wrong_flags_are_one_line(words, message: str, call, opened, tmp_path: Path, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("\n")
    first = [] if words[-1] == "nowhere" else [photo(tmp_path / "in" / "a.png")]
    words = [words[-1], *words[:-1]] if not first else words
    status, _, errors = call(*first, *words)
    assert status == 2 and len(errors) == 1 and re.search(message, errors[0]), errors
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.fixture
def painter(monkeypatch) -> ModuleType:
    """A second method in the table, which takes points and finds everything."""
    module = ModuleType("painter")
    module.SCORE = "The score is 1."
    module.add_flags = lambda parser: parser.add_argument("--sigma", type=float, default=0.01, help="a width")
    module.check = lambda given, way: None
    module.identity = lambda given, machine: {"segment": {"sigma": given.sigma}}

    def segment_all(image, prompt):
        module.prompt = prompt
        masks = np.ones((prompt.count or 1, *image.shape[:2]), dtype=bool)
        return Layout(masks, prompt.captions() or ("all",), scores=np.ones(len(masks)), source="paint", overlap="share")

    module.open_segmenter = lambda given, machine: SimpleNamespace(segment=segment_all)
    monkeypatch.setitem(sys.modules, "painter", module)
    row = Method("painter", "paints", ("points", NOTHING), "does not read")
    monkeypatch.setattr(segment_methods, "METHODS", {**segment_methods.METHODS, "paint": row})
    monkeypatch.setattr(segment, "METHODS", segment_methods.METHODS)
    return module


@pytest.mark.parametrize(("form", "suffix"), [("json", ".json"), ("npz", ".npz"), ("coco", ".json")])
def test_an_empty_layout_is_read_again_and_says_why_in_the_words_of_its_method(form, suffix, painter, tmp_path, capsys):
    none = Layout(np.zeros((0, 40, 56), bool), (), caption="a wall", scores=np.zeros(0), notes=("the paint is dry",))
    painter.open_segmenter = lambda given, machine: SimpleNamespace(segment=lambda image, prompt: none)
    picture, out = str(photo(tmp_path / "in" / "a.png")), tmp_path / "out"
    words = [picture, "--method", "paint", "--output_path", str(out), "--format", form, "--device", "cpu"]
    assert segment.main(words, "segment.py") == 0
    assert "a.png: no region was found, the paint is dry; the layout is empty" in capsys.readouterr().err
    layout = Layout.read(out / f"a{suffix}")
    assert layout.masks.shape == (0, 40, 56) and layout.captions == () and layout.caption == "a wall"
    assert segment.main(words, "segment.py") == 0 and "to segment" not in capsys.readouterr().out


def test_another_method_brings_its_flags_and_its_segmenter(painter, tmp_path: Path, capsys):
    picture, out = str(photo(tmp_path / "in" / "a.png")), str(tmp_path / "out")
    words = [picture, "--method", "paint", "--output_path", out, "--format", "npz", "--device", "cpu"]
    assert segment.main([*words, "--points", "0.5,0.25", "0,0+1,1", "--sigma", "2"], "segment.py") == 0
    assert painter.prompt.points.tolist() == [[[0.5, 0.25, 1], [0, 0, -1]], [[0, 0, 1], [1, 1, 1]]]
    assert Layout.read(tmp_path / "out" / "a.npz").captions == ("region 1", "region 2")
    assert "The score is 1." in (tmp_path / "out" / "report.md").read_text()
    capsys.readouterr()
    assert segment.main([*words, "--points", "0.5,0.25", "--sigma", "3"], "segment.py") == 0
    assert "made with another segment.points, segment.sigma" in capsys.readouterr().err
    assert segment.main([*words, "--phrases", "a"], "segment.py") == 2
    assert "--phrases: --method paint does not read; give --points or no names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "paint", "--blocks", "0"], "--blocks: --method paint does not take it, attention"),
        (["--sigma=2"], "--sigma: --method attention does not take it, paint does"),
        (["--method=paint", "--sigme", "2"], "--sigme: there is no such flag; did you mean --sigma?"),
        (["--method", "pain"], "--method: 'pain' does not exist; did you mean paint? Choose one of attention, "),
    ],
)
def test_flags_of_other_methods_are_refused_in_one_line(words, message: str, painter, capsys):
    with pytest.raises(SystemExit) as ended:
        segment.main(["in", *words], "segment.py")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"segment.py: {message}")


def test_help_shows_the_flags_of_the_chosen_method_only(painter, capsys):
    for words, shown, hidden in (
        (["--help"], "--blocks", "--sigma"),
        (["--method=paint", "-h"], "--sigma", "--blocks"),
    ):
        with pytest.raises(SystemExit):
            segment.main(words, "segment.py")
        told = capsys.readouterr().out
        assert shown in told and hidden not in told and "--method paint      paints" in told


@pytest.mark.parametrize("point", ["1.5,0.5", "0.5", "x,y", "0.5,0.5+2,0"])
def test_a_point_outside_is_one_line(point: str, call, tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        call(photo(tmp_path / "in" / "a.png"), "--points", point)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segment.py: --points: ") and "give" in line


def test_two_hundred_phrases_are_read_in_chunks(call, opened, tmp_path: Path):
    names = [f"a ring {'star ' * (number % 7)}heart {number}" for number in range(200)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    status, _, errors = call(
        photo(tmp_path / "in" / "a.png"), "--categories", tmp_path / "names.txt", "--format", "npz"
    )
    layout = Layout.read(tmp_path / "out" / "a.npz")
    assert status == 0 and len(layout.captions) == 200 and (layout.masks.sum(0) == 1).all()


def test_places_that_would_be_overwritten_are_refused(call, opened, tmp_path: Path):
    photo(tmp_path / "in" / "a.png"), photo(tmp_path / "in" / "a.jpg"), photo(tmp_path / "out" / "b.png")
    status, _, (line,) = call(tmp_path / "in", "--phrases", *PHRASES)
    assert status == 2 and "would both write a; rename one" in line
    status, _, (line,) = call(tmp_path / "out" / "b.png", "--phrases", *PHRASES)
    assert status == 2 and "is where the images are" in line and not opened


def test_scores_and_source_survive_the_published_format(tmp_path: Path):
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 3:] = True, True
    Layout(masks, ("a", "b"), scores=[0.25, 1], source="a method").write(tmp_path / "x.json")
    back = Layout.read(tmp_path / "x.json")
    assert back.source == "a method" and back.scores.tolist() == [0.25, 1]
    document = json.loads((tmp_path / "x.json").read_text())
    del document["segments_info"][0]["score"], document["source"]
    (tmp_path / "x.json").write_text(json.dumps(document))
    assert Layout.read(tmp_path / "x.json").scores is None and Layout.read(tmp_path / "x.json").source == ""


def test_the_sweep_scores_planted_maps_and_draws_every_cell():
    import torch

    truth = torch.zeros(3, 8, 8, dtype=torch.bool)
    truth[0, :, :4], truth[1, :, 4:] = True, True  # the third has no pixel and does not count
    right = torch.nn.functional.adaptive_avg_pool2d(truth[None].float(), (4, 4))[0]
    assert region_iou(right, truth).tolist() == [1, 1]
    assert region_iou(right[[1, 0, 2]], truth).tolist() == [0, 0]
    found = Swept((0.2, 0.4), (0, 1, 2), np.array([[0.1, 0.2, 0.3], [0.4, 0.9, 0.6]]), 0.95, 7)
    assert "best: block 1 at noise level 0.4, mIoU 0.900; ceiling of the token grid 0.950; 7 regions" in found.table()
    picture = np.asarray(heat_map(found))
    cells = [picture[64 * row + 8, 64 * column + 8].astype(int).sum() for row in (1, 2) for column in (1, 2, 3)]
    assert int(np.argmax(cells)) == 4 and len({*cells}) == 6


def test_masks_of_scenes_are_measured_by_region():
    """Let a segmenter find the first name right, everything else as background."""
    from seg2any.evaluation.shapes.masks import measured

    masks = np.zeros((3, 32, 32), bool)
    masks[0, :16, :16], masks[1, 16:, 16:], masks[2, 16:, :16] = True, True, True

    def segment(image, prompt):
        names = prompt.categories or prompt.phrases
        if names is None:
            return Layout(np.stack([masks[1] | masks[2], masks[0]]), ("region 1", "region 2"))
        found = np.zeros((len(names), 32, 32), bool)
        found[0] = masks[0]
        return Layout(found, names)

    segmenter = SimpleNamespace(segment=segment, base=SimpleNamespace(geometry=SimpleNamespace(pixels_per_token=16)))
    found = measured(segmenter, np.zeros((32, 32, 3), np.uint8), Layout(masks, ("a", "b", "a")))
    assert found["a name for every pixel"].tolist() == [0.5, 0, 1 / 3]
    assert found["phrases"].tolist() == [0.5, 0]
    assert found["without names"].tolist() == [0.5, 0.5, 0]
    assert found["the grid of tokens (ceiling)"].min() > 0.7
