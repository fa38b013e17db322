"""The ablation with a painter in the model's place: what it paints decides which trends have to be found."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eval import compare
from eval.ablation import __main__ as command
from eval.ablation.document import BEGIN, END, by_hand
from eval.ablation.measure import TOKENS, per_seed
from eval.ablation.options import parse_options
from eval.ablation.rows import ALIKE, REFERENCE, TRAINED, TRAINING_FREE, compared_with, trained_row
from eval.ablation.scenes import Scenes
from eval.ablation.trends import AGAINST, HOLDS, MARGIN, OPEN, TRENDS, Claim, check, verdict
from eval.generated import image_seed
from eval.metrics.result import mean
from eval.results import make_run, read_run
from eval.shapes_judge import judge
from seg2any.config import load
from seg2any.data.shapes import ShapesDataset
from seg2any.models.card import AdapterCard
from seg2any.settings import ConditionSettings
from tests.golden_root import REPOSITORY

SMALL = ("--kinds", "normal", "--limit", "3", "--seeds", "2", "--batch_size", "4")


class Painter:
    """Paints the truth; without contour tokens 6 pixels off, and nothing where only the global caption is read."""

    def __init__(self):
        self.settings, self.card = ConditionSettings(), SimpleNamespace(step=7)
        self.vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,) * 4), dtype=torch.float32)
        self.made: list[tuple[str, int]] = []
        self.fail_at: int | None = None

    def set_progress_bar_config(self, **_: object):
        pass

    def __call__(self, layouts, num_images_per_prompt, seeds, settings, **_: object):
        images = []
        for layout, seed in zip([x for x in layouts for _ in range(num_images_per_prompt)], seeds, strict=True):
            if len(self.made) == self.fail_at:
                raise KeyboardInterrupt
            self.made.append((layout.name, seed))
            split, kind, index = layout.name.split("_")
            image = ShapesDataset(split, 1000, kind)[int(index)].image
            if settings.is_plain:
                image = np.full_like(image, 128)
            elif not settings.is_use_cond_token:
                image = np.roll(image, 6, 1)
            images.append(image / 255)
        return SimpleNamespace(images=np.stack(images))


_known: dict[tuple, object] = {}


def judge_once(image: np.ndarray, layout):
    """The judge; the same images are painted again and again."""
    key = layout.name, image.tobytes()
    if key not in _known:
        _known[key] = judge(image, layout)
    return _known[key]


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    one = Painter()
    recipe = {"model": {"id": "painter"}, "adapter": {"path": "x", "sha256": "0" * 64}, "weight_dtype": "float32"}
    monkeypatch.setattr("eval.ablation.measure.open_pipeline", lambda *_: (one, dict(recipe)))
    monkeypatch.setattr("eval.shapes_sources.round_trip", lambda images, pipeline: iter(images))
    for module in ("eval.ablation.measure", "eval.shapes_sources"):
        monkeypatch.setattr(f"{module}.judge", judge_once)
    card = AdapterCard(max_sequence_length=33)
    monkeypatch.setattr("eval.ablation.measure.read_adapter_card", lambda folder: card)
    monkeypatch.setattr(command, "_seconds_per_image", lambda ablation, kind: 30.0)
    return one


def run(tmp_path: Path, *flags: str) -> int:
    return command.main([*SMALL, "--output", str(tmp_path / "out"), "--device", "cpu", *flags])


def test_trends_are_found_where_they_were_painted(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture):
    flags = ("--rows", "hard-unfiltered", "hard-no-contour", "base", "none", "none-bare")
    assert run(tmp_path, *flags) == 0
    assert "6 rows of 6 images; 36 images to make, about 18 minutes" in capsys.readouterr().out
    out = tmp_path / "out"
    trends: dict[str, dict] = {}
    for entry in json.loads((out / "ablation.json").read_text())["trends"]:
        trends.setdefault(entry["trend"].split(" (")[0], entry)  # the second of a name needs training
    partly = trends["a semantic mask gives every region its attribute"]["verdict"]
    assert partly == "holds, 2 of 4 claims measured"  # no badges
    contour = trends["the contour gives the shape"]
    assert contour["verdict"].startswith("holds,") and all(claim["low"] > 0 for claim in contour["claims"])
    assert trends["the filter means equal quality with fewer tokens"]["verdict"].startswith("holds,")
    assert trends["isolation means less leakage in crowded scenes"]["verdict"] == "not measured"

    text = (out / "ablation.md").read_text()
    for row in TRAINING_FREE:
        assert (f"| **{row.name}**:" in text) == (row.name in (REFERENCE.name, *flags))
    assert all(source in text for source in ("rendered (ceiling)", "VAE round trip", "grey image (floor)"))
    assert f"Not trained yet: {', '.join(TRAINED)}." in text
    with Image.open(out / "ablation.png") as picture:
        assert picture.width > picture.height and len(picture.convert("RGB").getcolors(1 << 20)) > 20

    assert read_run(out / "normal" / "hard-unfiltered.json").row(TOKENS).value == 256
    assert read_run(out / "normal" / "none.json").row(TOKENS).value == 0
    kept = read_run(out / "normal" / "hard.json")
    assert 0 < kept.row(TOKENS).value < 256 and kept.settings["training_steps"] == 7
    assert compare.main([str(out / "normal" / f"{name}.json") for name in ("hard", "base")]) == 0


def test_finished_rows_are_kept_and_others_go_on(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture):
    painter.fail_at = 10  # in the second row
    assert run(tmp_path, "--rows", "base") == 130
    assert "start again" in capsys.readouterr().err
    assert (tmp_path / "out" / "normal" / "hard.json").exists()
    assert not (tmp_path / "out" / "normal" / "base.json").exists() and not (tmp_path / "out" / "ablation.md").exists()
    painter.fail_at, painter.made = None, []
    assert run(tmp_path, "--rows", "base") == 0
    assert len(painter.made) == 6  # base only
    first = (tmp_path / "out" / "ablation.md").read_text()
    painter.made = []
    assert run(tmp_path, "--rows", "base") == 0
    assert painter.made == [] and (tmp_path / "out" / "ablation.md").read_text() == first
    assert "all are there already" in capsys.readouterr().out
    assert run(tmp_path, "--rows", "base", "--num_inference_steps", "7") == 2
    assert "num_inference_steps; use --overwrite" in capsys.readouterr().err
    assert run(tmp_path, "--rows", "base", "--num_inference_steps", "7", "--overwrite") == 0
    assert len(painter.made) == 12


def test_what_people_wrote_is_kept(tmp_path: Path, painter: Painter):
    assert run(tmp_path, "--rows", "hard", "--docs", str(tmp_path / "docs")) == 0
    path = tmp_path / "docs" / "ablation.md"
    assert by_hand(path.read_text()) == ""
    path.write_text(path.read_text().replace(BEGIN, f"{BEGIN}\nWhat this means.\n"))
    assert run(tmp_path, "--rows", "hard", "--docs", str(tmp_path / "docs")) == 0
    assert by_hand(path.read_text()) == "What this means." and path.read_text().count(END) == 1
    assert by_hand("no marks") == by_hand(None) == ""


def test_noise_belongs_to_scene_and_number_and_every_image_is_made_once(tmp_path: Path, painter: Painter):
    assert run(tmp_path, "--rows", "hard") == 0
    keys = [f"test_normal_{index:05d}" for index in range(3)]
    assert sorted(painter.made) == sorted((key, image_seed(42, key, number)) for key in keys for number in range(2))
    scenes = Scenes.draw("thin", 5, 3, 1)
    batches = scenes.batches(7)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    counts = [len(sample.layout.captions) for batch in batches for sample in batch]
    assert counts == sorted(counts) and len({s.layout.name for batch in batches for s in batch}) == 5


def test_values_are_means_over_all_images_and_seeds_are_told_one_by_one():
    data = ShapesDataset("test", 3)
    verdicts = {
        data.key(n): [judge(data[n].image, data[n].layout), judge(data[0].image, data[n].layout)] for n in (1, 2)
    }
    found = {result.name: result for result in per_seed(verdicts)}["IoU"]
    alone = [[region.iou for of_scene in verdicts.values() for region in of_scene[k].regions] for k in range(2)]
    assert found.value == pytest.approx(np.mean([*alone[0], *alone[1]])) and len(found.per_sample) == 2
    assert found.extra["seeds"] == pytest.approx([np.mean(of_seed) for of_seed in alone])


def a_run(*values: float):
    return make_run("x", [mean("n", {str(index): value for index, value in enumerate(values)})], {}, {})


@pytest.mark.parametrize(
    ("gap", "expected", "found"),
    [
        ((0.2, 0.3, 0.25), "higher", HOLDS),
        ((0.2, 0.3, 0.25), "lower", AGAINST),
        ((-0.2, -0.3, -0.25), "lower", HOLDS),
        ((-0.2, 0.3, 0.0), "higher", OPEN),
        ((MARGIN / 2, -MARGIN / 2, 0.0), "equal", HOLDS),
        ((0.2, 0.3, 0.25), "equal", AGAINST),
        ((0.2, -0.2, 0.01), "equal", OPEN),
    ],
)
def test_rules_of_claims(gap: tuple[float, ...], expected: str, found: str):
    runs = {("k", "a"): a_run(*(0.5 + value for value in gap)), ("k", "b"): a_run(*[0.5] * len(gap))}
    checked = check(Claim("k", "n", "a", "b", expected), runs)
    assert checked.verdict == found and checked.difference.value == pytest.approx(np.mean(gap))
    assert check(Claim("k", "n", "a", "c", expected), runs) is None


def test_verdicts_on_trends():
    def of(*said: str) -> str:
        return verdict([SimpleNamespace(verdict=one) for one in said])

    assert (of(HOLDS, HOLDS), of()) == ("holds", "not measured")
    assert of(HOLDS, OPEN) == "holds in part, else undecided" and of(OPEN) == "undecided"
    assert of(AGAINST, AGAINST) == "does not hold, the opposite was measured"
    assert of(HOLDS, AGAINST) == "holds in part, in part the opposite" and of(OPEN, AGAINST).startswith("does not hold")


def test_trained_rows_are_compared_with_what_was_trained_alike():
    row = trained_row("trained-base", Path("x"))
    assert compared_with(row, {ALIKE}) == ALIKE and compared_with(row, {}) == REFERENCE.name
    assert compared_with(trained_row(ALIKE, Path("x")), {ALIKE}) == compared_with(TRAINING_FREE[3], {ALIKE}) == "hard"
    runs = {("k", "hard"): a_run(0.5, 0.5), ("k", "t"): a_run(0.6, 0.6)}
    assert check(Claim("k", "n", "t", ALIKE, "higher"), runs).claim.b == "hard"
    assert check(Claim("k", "n", "t", ALIKE, "higher"), runs | {("k", ALIKE): a_run(0.7, 0.7)}).verdict == AGAINST


def test_rows_are_the_grid_and_name_settings_that_exist():
    rows = {row.name: row for row in TRAINING_FREE} | {name: trained_row(name, Path("x")) for name in TRAINED}
    settings = [ConditionSettings().override(row.changes) for row in TRAINING_FREE]
    grid = {(s.rules.method, s.is_use_cond_token, s.is_filter_cond_token) for s in settings}
    assert {
        (m, c, f) for m in ("hard", "base", "place") for c, f in ((True, True), (True, False), (False, True))
    } <= grid
    assert len({(repr(one), row.is_bare) for one, row in zip(settings, TRAINING_FREE, strict=True)}) == len(
        TRAINING_FREE
    )
    assert {row for trend in TRENDS for claim in trend.claims for row in (claim.a, claim.b)} <= rows.keys()


@pytest.mark.parametrize("name", TRAINED)
def test_configs_of_trained_rows_say_what_is_different(name: str):
    path, _ = TRAINED[name]
    shapes = str(REPOSITORY / "config/seg2any_shapes.yaml")
    plain, other = load([shapes]), load([shapes, str(REPOSITORY / path)])
    assert other.project.output_dir not in (plain.project.output_dir, "") and other.trainer == plain.trainer
    changed = {key for key in vars(plain.model) if getattr(plain.model, key) != getattr(other.model, key)}
    assert (
        changed
        == {
            "trained-hard": set(),
            "trained-base": {"attention_mask_method"},
            "trained-no-contour": {"is_use_cond_token"},
            "trained-isolated": {"cond_attention"},
        }[name]
    )


def test_the_base_model_alone_has_no_adapters(tmp_path: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch):
    opened = []

    def open_pipeline(model, adapter, *_):
        opened.append(adapter)
        return painter, {
            "model": {"id": "painter"},
            "adapter": adapter and {"path": str(adapter), "sha256": "0" * 64},
        } | {"weight_dtype": "float32"}

    monkeypatch.setattr("eval.ablation.measure.open_pipeline", open_pipeline)
    assert run(tmp_path, "--rows", "none-bare", "--lora", "lora") == 0
    assert opened == [Path("lora"), None]
    made = read_run(tmp_path / "out" / "normal" / "none-bare.json").settings
    assert made["adapter"] is None and made["settings"]["max_sequence_length"] == 33


def test_bad_flags_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    for flags, told in (
        (["--rows", "hrad"], "--rows hrad: no such row; choose of hard"),
        (["--variant", "base=x"], "--variant base=x: give a name of its own"),
        (["--limit", "1"], "--limit"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_options(flags)
        assert told in capsys.readouterr().err
    assert run(tmp_path, "--variant", f"trained-base={tmp_path / 'nowhere'}") == 2
    assert "nowhere: no such folder; train it first" in capsys.readouterr().err
    assert run(tmp_path, "--lora", str(tmp_path / "nowhere")) == 2
    assert "--lora" in capsys.readouterr().err
