"""The ablation study, with a painter instead of the model whose images decide the trends."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.adapters.card import AdapterCard
from seg2any.attention.settings import ConditionSettings
from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation import compare
from seg2any.evaluation.ablation.__main__ import main
from seg2any.evaluation.ablation.document import BEGIN, END, by_hand
from seg2any.evaluation.ablation.measure import TOKENS, per_seed, training_of
from seg2any.evaluation.ablation.options import parse_options
from seg2any.evaluation.ablation.rows import ALIKE, REFERENCE, TRAINED, TRAINING_FREE, compared_with, trained_row
from seg2any.evaluation.ablation.scenes import Scenes
from seg2any.evaluation.ablation.trends import AGAINST, HOLDS, MARGIN, NEEDED, OPEN, Claim, check, verdict
from seg2any.evaluation.ablation.words import HEADINGS, outcome
from seg2any.evaluation.generated import image_seed
from seg2any.evaluation.metrics.result import mean
from seg2any.evaluation.report.results import make_run, read_run
from seg2any.evaluation.shapes.judge import judge
from seg2any.generate.session import Session
from seg2any.system.files import RUNNING
from seg2any.training.config import load
from tests.forked import holding
from tests.golden_root import REPOSITORY

pytestmark = pytest.mark.slow

SMALL = ("--kinds", "normal", "--limit", "3", "--seeds", "2", "--batch_size", "4")


class Painter:
    """Paints the true layout.

    Without contour tokens the regions are moved by 6 pixels; where only the global caption is read they are missing.
    """

    def __init__(self):
        self.settings, self.card = ConditionSettings(), SimpleNamespace(step=7)
        self.vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,) * 4), dtype=torch.float32)
        self.made: list[tuple[str, int]] = []
        self.base = SimpleNamespace(geometry=SimpleNamespace(pixels_per_token=16))
        self.fail_at: int | None = None
        self.watch = lambda: None

    def set_progress_bar_config(self, **_: object):
        pass

    def __call__(self, layouts, num_images_per_prompt, seeds, settings, **_: object):
        images = []
        for layout, seed in zip([x for x in layouts for _ in range(num_images_per_prompt)], seeds, strict=True):
            if len(self.made) == self.fail_at:
                raise KeyboardInterrupt
            self.made.append((layout.name, seed))
            self.watch()
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
    """Cache the judge's verdicts, because the same images are painted again and again."""
    key = layout.name, image.tobytes()
    if key not in _known:
        _known[key] = judge(image, layout)
    return _known[key]


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    one = Painter()
    recipe = {"model": {"id": "painter"}, "adapter": {"path": "x", "sha256": "0" * 64}, "weight_dtype": "float32"}
    monkeypatch.setattr("seg2any.evaluation.ablation.measure.open_session", lambda *_: (Session(one), dict(recipe)))
    monkeypatch.setattr("seg2any.evaluation.shapes.sources.round_trip", lambda images, pipeline: iter(images))
    for module in ("seg2any.evaluation.ablation.measure", "seg2any.evaluation.shapes.sources"):
        monkeypatch.setattr(f"{module}.judge", judge_once)
    card = AdapterCard(condition=ConditionSettings(max_sequence_length=33))
    monkeypatch.setattr("seg2any.evaluation.ablation.measure.read_adapter_card", lambda folder: card)
    monkeypatch.setattr("seg2any.evaluation.ablation.run._seconds_per_image", lambda ablation, kind: 30.0)
    return one


def run(tmp_path: Path, *flags: str) -> int:
    return main([*SMALL, "--output", str(tmp_path / "out"), "--device", "cpu", *flags])


def test_trends_are_found_where_they_were_painted(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture):
    flags = ("--rows", "hard-unfiltered", "hard-no-contour", "base", "none", "none-bare")
    assert run(tmp_path, *flags) == 0
    assert "6 rows; 36 images to make, about 18 minutes for one process" in capsys.readouterr().out
    out = tmp_path / "out"
    trends: dict[str, dict] = {}
    for entry in json.loads((out / "ablation.json").read_text())["trends"]:
        trends.setdefault(entry["trend"].split(" (")[0], entry)  # the second trend of a name needs training
    partly = trends["a semantic mask gives every region its attribute"]
    assert partly["verdict"] == "holds" and partly["unmeasured"] == 2  # no badges in these scenes
    contour = trends["the contour gives the shape"]
    assert contour["verdict"] == "holds" and all(claim["low"] > 0 for claim in contour["claims"])
    assert trends["the filter means equal quality with fewer tokens"]["verdict"] == "holds"
    assert trends["isolation means less leakage in crowded scenes"]["verdict"] == "not measured"

    text = (out / "ablation.md").read_text()
    for row in TRAINING_FREE:
        assert (f"| **{row.name}**:" in text) == (row.name in (REFERENCE.name, *flags))
    assert all(source in text for source in ("rendered (ceiling)", "VAE round trip", "grey image (floor)"))
    assert f"Not measured, because it takes training: {', '.join(TRAINED)}." in text
    holding = text[text.index(f"### {HEADINGS['holds']}") : text.index(f"### {HEADINGS['not measured']}")]
    assert "*hard* less *hard-no-contour*; 2 of 4 claims measured:" in holding and "higher as said" in holding
    assert "equal within ±0.030 as said" in holding and "2 images of each" in text and "7 steps" in text
    with Image.open(out / "ablation.png") as picture:
        assert picture.width > picture.height and len(picture.convert("RGB").getcolors(1 << 20)) > 20

    assert read_run(out / "normal" / "hard-unfiltered.json").row(TOKENS).value == 256
    assert read_run(out / "normal" / "none.json").row(TOKENS).value == 0
    kept = read_run(out / "normal" / "hard.json")
    assert 0 < kept.row(TOKENS).value < 256 and kept.settings["training"]["steps"] == 7
    assert compare.main([str(out / "normal" / f"{name}.json") for name in ("hard", "base")]) == 0


def test_a_second_run_makes_only_unfinished_rows(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture):
    painter.fail_at = 10  # in the second row, base: no claim uses "place"
    assert run(tmp_path, "--rows", "place", "base") == 130
    assert "start again" in capsys.readouterr().err
    assert (tmp_path / "out" / "normal" / "hard.json").exists()
    assert (tmp_path / "out" / "normal" / "pictures" / "base").exists()
    assert not (tmp_path / "out" / "normal" / "pictures" / "place").exists()
    assert not (tmp_path / "out" / "normal" / "base.json").exists() and not (tmp_path / "out" / "ablation.md").exists()
    painter.fail_at, painter.made = None, []
    assert run(tmp_path, "--rows", "base") == 0
    assert len(painter.made) == 6  # only base was missing
    first = (tmp_path / "out" / "ablation.md").read_text()
    painter.made = []
    assert run(tmp_path, "--rows", "base") == 0
    assert painter.made == [] and (tmp_path / "out" / "ablation.md").read_text() == first
    assert "all images are there already" in capsys.readouterr().out
    assert run(tmp_path, "--rows", "base", "--num_inference_steps", "7") == 2
    assert "num_inference_steps; use --overwrite" in capsys.readouterr().err
    assert run(tmp_path, "--rows", "base", "--num_inference_steps", "7", "--overwrite") == 0
    assert len(painter.made) == 12


def test_processes_share_the_rows(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture):
    """Let another process hold one row.

    This process skips the row and leaves the document to the process that finishes last.
    """
    out = tmp_path / "out"
    with holding(out / "normal" / "pictures" / "base" / RUNNING):
        assert run(tmp_path, "--rows", "base", "none") == 0
        assert "base, normal; the last to finish" in capsys.readouterr().out
        assert not (out / "normal" / "base.json").exists() and not (out / "ablation.md").exists()
        assert run(tmp_path, "--rows", "base", "none", "--document_only") == 0
        assert "not finished: base, normal" in capsys.readouterr().out
        text = (out / "ablation.md").read_text()
        assert "| **none**:" in text and "| **base**:" not in text
    painter.made = []
    assert run(tmp_path, "--rows", "base", "none") == 0
    assert len(painter.made) == 6 and "| **base**:" in (out / "ablation.md").read_text()


def test_a_row_whose_process_was_stopped_is_taken_over(tmp_path: Path, painter: Painter):
    """Release a row while this process measures the others.

    It is free in the second round.
    """
    with ExitStack() as other:
        other.enter_context(holding(tmp_path / "out" / "normal" / "pictures" / "hard" / RUNNING))
        painter.watch = other.close
        assert run(tmp_path, "--rows", "base") == 0
    assert len(painter.made) == 12 and (tmp_path / "out" / "ablation.md").exists()


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path, painter: Painter, capsys):
    (tmp_path / "out").touch()
    assert run(tmp_path, "--rows", "base") == 2 and painter.made == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "--output" in line and "is a file" in line


def test_only_finished_rows_are_documented(tmp_path: Path, painter: Painter, capsys: pytest.CaptureFixture):
    assert run(tmp_path, "--document_only") == 2
    assert "no row is finished" in capsys.readouterr().err and painter.made == []
    with pytest.raises(SystemExit, match="2"):
        parse_options(["--document_only", "--overwrite"])


def test_steps_seed_and_machine_of_the_training_are_read_beside_the_adapters(tmp_path: Path):
    adapter = tmp_path / "checkpoint-9"
    adapter.mkdir()
    card = AdapterCard(step=9)
    assert training_of(adapter, card) == {"steps": 9, "seed": None, "machine": None}
    (adapter / "config.yaml").write_text("seed: 5\n")
    (tmp_path / "log.jsonl").write_text('{"step": 0, "run": {"machine": {"name": "CPU"}}}\n{"step": 9}\n')
    assert training_of(adapter, card) == {"steps": 9, "seed": 5, "machine": "CPU"}
    (adapter / "config.yaml").write_text("sede: 5\n")
    (tmp_path / "log.jsonl").write_text("cut off")
    assert training_of(adapter, AdapterCard()) == {"steps": None, "seed": None, "machine": None}


def test_text_written_by_hand_survives_a_new_document(tmp_path: Path, painter: Painter):
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


def test_values_are_means_over_all_images_and_each_seed_is_listed():
    data = ShapesDataset("test", 3)
    verdicts = {
        data.key(n): [judge(data[n].image, data[n].layout), judge(data[0].image, data[n].layout)] for n in (1, 2)
    }
    found = {result.name: result for result in per_seed(verdicts)}["IoU"]
    alone = [[region.iou for of_scene in verdicts.values() for region in of_scene[k].regions] for k in range(2)]
    assert found.value == pytest.approx(np.mean([*alone[0], *alone[1]])) and len(found.per_sample) == 2
    assert found.extra["seeds"] == pytest.approx([np.mean(of_seed) for of_seed in alone])


def a_run(*values: float, steps: int | None = None):
    settings = {"training": None if steps is None else {"steps": steps}}
    return make_run("x", [mean("n", {str(index): value for index, value in enumerate(values)})], settings, {})


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

    assert (of(HOLDS, HOLDS), of(), of(OPEN)) == ("holds", "not measured", "undecided")
    assert of(HOLDS, OPEN) == of(HOLDS, AGAINST) == "holds in part"
    assert of(AGAINST, AGAINST) == of(OPEN, AGAINST) == "does not hold"
    assert {of(), of(OPEN), of(AGAINST), of(HOLDS), of(HOLDS, OPEN)} == HEADINGS.keys()


@pytest.mark.parametrize(
    ("gaps", "expected", "said"),
    [
        ((0.2, 0.3), "higher", "higher as said"),
        ((-0.2, -0.3), "lower", "lower as said"),
        ((-0.2, -0.3), "higher", "lower, the opposite of what is said"),
        ((-0.2, 0.3), "higher", "no difference shown"),
        ((0.0, 0.0), "lower", "no difference shown"),
        ((0.01, 0.02), "equal", "equal within ±3.0 as said"),
        ((0.0, 0.0), "equal", "equal within ±3.0 as said"),
        ((-0.2, -0.3), "equal", "lower by more than 3.0, so not equal"),
        ((0.02, 0.2), "equal", "higher, perhaps by less than 3.0"),
        ((-0.2, 0.2), "equal", "shown neither equal nor different"),
        ((0.2,), "higher", "too few scenes for an interval"),
    ],
)
def test_the_outcome_of_a_trend_follows_its_interval(gaps: tuple[float, ...], expected: str, said: str):
    runs = {("k", "a"): a_run(*(0.5 + gap for gap in gaps)), ("k", "b"): a_run(*[0.5] * len(gaps))}
    assert outcome(check(Claim("k", "n", "a", "b", expected), runs)) == said


def test_trained_rows_are_compared_with_rows_trained_alike():
    row = trained_row("trained-base", Path("x"))
    assert compared_with(row) == ALIKE and compared_with(trained_row(ALIKE, Path("x"))) is None
    assert compared_with(TRAINING_FREE[3]) == "hard" and compared_with(REFERENCE) is None
    claim = Claim("k", "n", "t", ALIKE, "higher")
    runs = {("k", "hard"): a_run(0.5, 0.5), ("k", "t"): a_run(0.6, 0.6, steps=700)}
    assert check(claim, runs) is None  # never compared with the adapters under test
    assert check(claim, runs | {("k", ALIKE): a_run(0.7, 0.7, steps=700)}).verdict == AGAINST
    assert check(claim, runs | {("k", ALIKE): a_run(0.7, 0.7, steps=800)}) is None
    alone = Claim("k", "n", "t", "bare", "higher")
    assert check(alone, runs | {("k", "bare"): a_run(0.1, 0.1)}).verdict == HOLDS


def test_rows_are_the_grid_and_name_settings_that_exist():
    rows = {row.name: row for row in TRAINING_FREE} | {name: trained_row(name, Path("x")) for name in TRAINED}
    settings = [ConditionSettings().override(row.changes) for row in TRAINING_FREE]
    grid = {(s.attention_mask_method, s.is_use_cond_token, s.is_filter_cond_token) for s in settings}
    assert {
        (m, c, f) for m in ("hard", "base", "place") for c, f in ((True, True), (True, False), (False, True))
    } <= grid
    assert len({(repr(one), row.is_bare) for one, row in zip(settings, TRAINING_FREE, strict=True)}) == len(
        TRAINING_FREE
    )
    assert rows.keys() >= NEEDED >= {REFERENCE.name, *TRAINED}


@pytest.mark.parametrize("name", TRAINED)
def test_configs_of_trained_rows_differ_only_in_what_they_are_named_after(name: str):
    path, _ = TRAINED[name]
    shapes = str(REPOSITORY / "config/seg2any_shapes.yaml")
    plain, other = load([shapes]), load([shapes, str(REPOSITORY / path)])
    assert other.project.output_dir not in (plain.project.output_dir, "") and other.trainer == plain.trainer
    before, after = plain.to_dict()["model"], other.to_dict()["model"]
    changed = {key for key in before if before[key] != after[key]}
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

    def open_session(model, adapter, *_):
        opened.append(adapter)
        return Session(painter), {
            "model": {"id": "painter"},
            "adapter": adapter and {"path": str(adapter), "sha256": "0" * 64},
        } | {"weight_dtype": "float32"}

    monkeypatch.setattr("seg2any.evaluation.ablation.measure.open_session", open_session)
    assert run(tmp_path, "--rows", "none-bare", "--lora", "lora") == 0
    assert opened == [Path("lora"), None]
    made = read_run(tmp_path / "out" / "normal" / "none-bare.json").settings
    assert made["adapter"] is None and made["settings"]["max_sequence_length"] == 33


def test_bad_flags_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    for flags, told in (
        (["--rows", "hrad"], "--rows hrad: "),
        (["--variant", "base=x"], "--variant base=x: "),
        (["--limit", "1"], "--limit"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_options(flags)
        assert told in capsys.readouterr().err
    assert run(tmp_path, "--variant", f"trained-base={tmp_path / 'nowhere'}") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert run(tmp_path, "--lora", str(tmp_path / "nowhere")) == 2
    assert "--lora" in capsys.readouterr().err
