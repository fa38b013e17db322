"""The shapes benchmark around its judge: resuming, separate runs, intervals, tables."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.attention.settings import ConditionSettings
from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.generated import image_seed
from seg2any.evaluation.metrics.result import mean
from seg2any.evaluation.report.results import bar_lines, make_run, read_run
from seg2any.evaluation.runners.finish import finish
from seg2any.evaluation.shapes.__main__ import main
from seg2any.evaluation.shapes.bench import Bench, Stopwatch
from seg2any.evaluation.shapes.judge import judge
from seg2any.evaluation.shapes.options import SCENES, Options, parse_options
from seg2any.evaluation.shapes.results import bars, results, table
from seg2any.evaluation.shapes.sources import round_trip
from seg2any.generate.model import known_model
from seg2any.generate.session import Session
from seg2any.system.errors import UserError
from seg2any.system.provenance import commit
from tests.golden_root import REPOSITORY

pytestmark = pytest.mark.slow

NAMES = [f"test_normal_{index:05d}" for index in range(3)]
SEEDS = [image_seed(42, name, 0) for name in NAMES]


class Draughtsman:
    """Stands in for the pipeline and records its calls.

    It paints every layout in a grey of its seed.
    """

    settings, base = ConditionSettings(), None
    vae = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"))

    def __init__(self):
        self.calls = []

    def set_progress_bar_config(self, **_: object):
        pass

    def __call__(self, layouts, num_inference_steps, seeds, **_: object):
        self.calls.append(([layout.name for layout in layouts], num_inference_steps, seeds))
        pairs = zip(layouts, seeds, strict=True)
        return SimpleNamespace(images=[Image.new("RGB", layout.size[::-1], grey(seed)) for layout, seed in pairs])


def grey(seed: int) -> tuple[int, int, int]:
    return (seed % 200,) * 3


def bench(tmp_path: Path, *flags: str) -> Bench:
    (tmp_path / "model").mkdir(exist_ok=True)
    paths = ["--model", str(tmp_path / "model"), "--lora", "none", "--output", str(tmp_path / "out"), "--limit", "3"]
    options = parse_options([*paths, *flags])
    recipe = {"settings": ConditionSettings().to_json(), "guidance_scale": 3.5, "model": known_model(options.model)}
    return Bench(options, Session(Draughtsman()), recipe | {"adapter": None, "weight_dtype": "float32"}, Stopwatch())


def generate(measured: Bench) -> list[int]:
    """Generate every image and return its grey."""
    return [image[0, 0, 0] for image in measured.generate(ShapesDataset("test", SCENES["normal"]), "normal")]


def test_images_come_in_order_and_batches_and_are_not_made_twice(tmp_path: Path):
    first = bench(tmp_path, "--batch_size", "2", "--num_inference_steps", "7")
    assert generate(first) == [grey(seed)[0] for seed in SEEDS]
    assert first.session.pipeline.calls == [(NAMES[:2], 7, SEEDS[:2]), (NAMES[2:], 7, SEEDS[2:])]
    files = sorted((tmp_path / "out" / "normal" / "group_0").iterdir())
    assert [file.stem for file in files] == NAMES

    files[1].write_bytes(files[1].read_bytes()[:-20])  # an interrupted copy
    again = bench(tmp_path, "--batch_size", "2", "--num_inference_steps", "7")
    assert generate(again) == [grey(seed)[0] for seed in SEEDS]
    assert again.session.pipeline.calls == [(NAMES[:2], 7, SEEDS[:2])]  # in the same batch as the first time

    more = bench(tmp_path, "--limit", "4", "--batch_size", "1", "--num_inference_steps", "7")
    assert len(generate(more)) == 4 and len(more.session.pipeline.calls) == 1

    anew = bench(tmp_path, "--num_inference_steps", "7", "--overwrite")
    generate(anew)
    assert anew.session.pipeline.calls == [(NAMES, 7, SEEDS)]


def test_other_sizes_are_measured_besides_the_square_ones(tmp_path: Path):
    flags = ["--sizes", "64x128", "256x256", "64x128", "--limit", "2"]
    measured = bench(tmp_path, *flags)
    assert measured.options.parts == [("normal", (256, 256)), ("crowded", (256, 256)), ("normal", (64, 128))]
    scenes = ShapesDataset("test", SCENES["normal"], "normal", size=(64, 128))
    assert [image.shape for image in measured.generate(scenes, "normal")] == [(64, 128, 3)] * 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"normal_64x128"}


@pytest.mark.parametrize("size", ["256", "192x", "x", "192x320x64", "190x320", "32x64", "+64x64", "ax64", ""])
def test_what_is_no_size_is_refused(size: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        parse_options(["--sizes", size])
    assert "is not a size; write HEIGHTxWIDTH" in capsys.readouterr().err


def test_images_of_another_run_are_not_mixed_in(tmp_path: Path):
    generate(bench(tmp_path))
    with pytest.raises(UserError, match="num_inference_steps.*--overwrite"):
        generate(bench(tmp_path, "--num_inference_steps", "3"))
    with pytest.raises(UserError, match="another seed"):
        generate(bench(tmp_path, "--seed", "3"))
    (tmp_path / "model" / "vae").mkdir()
    (tmp_path / "model" / "vae" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="model.fingerprint"):
        generate(bench(tmp_path))


def test_every_source_of_images_is_judged_on_every_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = bench(tmp_path, "--limit", "2")
    monkeypatch.setattr(
        "seg2any.evaluation.shapes.sources.round_trip", lambda images, pipeline: iter(images)
    )  # an autoencoder without loss
    run = measured.measure("normal")
    assert all(row.n == 2 for row in run.rows if row.name not in ("background", "leak where coloured", "letter"))
    assert run.row("IoU", "VAE round trip").value == run.row("IoU", "rendered (ceiling)").value > 0.98
    assert run.row("IoU").value == run.row("IoU", "grey image (floor)").value == 0
    assert 0 < run.row("IoU", "another scene (floor)").value < 0.6
    assert set(measured.clock.seconds) >= {"judging", "images (generated)", "images (VAE round trip)"}
    assert run.row("leak").better == "lower" and run.hashes["data"] == ShapesDataset("test", 200).fingerprint()

    page = finish(run, tmp_path / "out" / "normal.json", "IoU", measured.gallery("normal"))
    assert read_run(tmp_path / "out" / "normal.json").row("IoU").value == 0
    assert page.read_text().count("data:image/webp") == 2 * 5


def test_numbers_are_means_over_regions_and_intervals_over_scenes():
    scenes = ShapesDataset("test", 3)
    images = [scenes[0].image, scenes[0].image, scenes[2].image]  # the second image shows another scene
    verdicts = {scenes.key(n): judge(images[n], scenes[n].layout) for n in range(3)}
    found = {result.name: result for result in results({key: [verdict] for key, verdict in verdicts.items()})}
    regions = [region for verdict in verdicts.values() for region in verdict.regions]
    assert found["IoU"].value == pytest.approx(np.mean([region.iou for region in regions]))
    assert found["colour"].value == pytest.approx(np.mean([region.colour_right for region in regions]))
    assert found["IoU"].per_sample[scenes.key(1)] == pytest.approx(
        np.mean([region.iou for region in verdicts[scenes.key(1)].regions])
    )
    assert found["clutter"].value == pytest.approx(np.mean([verdict.clutter for verdict in verdicts.values()]))
    row = make_run("shapes", [found["IoU"]], {}, {}).row("IoU")
    assert row.low < row.value < row.high and row.n == 3


def a_run(**values: float):
    found = [mean(name.replace("_", " "), {"a": value}) for name, value in values.items()]
    return make_run("shapes", [*found, mean("boundary IoU", {"a": 0.1}, source="VAE round trip")], {}, {})


def test_bars_are_those_of_the_generated_images():
    exact = {"colour": 0.99, "pattern": 0.9, "letter": 0.8, "IoU": 0.95, "boundary_IoU": 0.75, "leak": 0.005}
    assert [bar.is_met for bar in bars(a_run(**exact))] == [True] * 6
    for name, value in exact.items():
        verdicts = bars(a_run(**{**exact, name: value + (0.001 if name == "leak" else -0.001)}))
        assert [bar.name for bar in verdicts if not bar.is_met] == [name.replace("_", " ")]
        assert sum("MISSED" in line for line in bar_lines(verdicts)) == 1
    assert [bar.name for bar in bars(a_run(colour=1.0))] == ["colour"]


def test_the_table_has_a_line_per_number_and_a_column_per_source():
    found = [mean("IoU", {"a": 0.25, "b": 0.75}), mean("IoU", {"a": 1.0, "b": 1.0}, source="rendered (ceiling)")]
    lines = table(make_run("shapes", [*found, mean("leak", {"a": 0.256, "b": 0.256})], {}, {})).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["IoU", "0.500", "[0.250,", "0.750]", "1.000"]
    assert lines[2].split() == ["leak", "25.6", "%", "[25.6,", "25.6]", "-"]


def test_a_commit_is_known_only_inside_of_git(tmp_path: Path):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    if head.returncode == 0:
        assert commit().rstrip("+") == head.stdout.strip()
    assert commit(tmp_path) == "unknown"


def test_two_images_of_a_scene_count_as_one_scene():
    scenes = ShapesDataset("test", 3)
    twice = {
        scenes.key(n): [judge(scenes[n].image, scenes[n].layout), judge(scenes[0].image, scenes[n].layout)]
        for n in (1, 2)
    }
    (found,) = (result for result in results(twice) if result.name == "IoU")
    regions = [region.iou for verdicts in twice.values() for verdict in verdicts for region in verdict.regions]
    assert found.value == pytest.approx(np.mean(regions)) and len(found.per_sample) == 2


def test_round_trip_of_an_identity_autoencoder_is_the_image():
    processor = SimpleNamespace(
        postprocess=lambda images, output_type: (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    )
    base = SimpleNamespace(
        geometry=SimpleNamespace(pixels_per_token=2),
        encode_images=lambda images: SimpleNamespace(mean=images),
        decode=lambda tokens, grid: tokens,
    )
    pipeline = SimpleNamespace(base=base, image_processor=processor)
    images = [np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8) for seed in range(10)]
    found = list(round_trip(images, pipeline))
    assert len(found) == 10 and all((a == b).all() for a, b in zip(found, images, strict=True))


def test_a_stopwatch_sums_times_including_those_of_failed_tasks(monkeypatch: pytest.MonkeyPatch):
    times = iter([0.0, 2.0, 10.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr("seg2any.evaluation.shapes.bench.time.perf_counter", lambda: next(times))
    clock = Stopwatch()
    for task in ("a", "a"):
        with clock(task):
            pass
    with pytest.raises(ValueError), clock("b"):
        raise ValueError
    assert clock.seconds == {"a": 5.0, "b": 0.5} and str(clock) == "a 5 s, b 0 s"


def test_bad_flags_are_one_line(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        parse_options(["--limit", "0"])
    assert "--limit: 0 is not a whole number of at least 1" in capsys.readouterr().err
    assert main(["--model", "nowhere", "--lora", "none"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_missing_adapter_is_one_line(capsys: pytest.CaptureFixture):
    assert main(["--lora", "nowhere"]) == 2
    told = capsys.readouterr().err
    assert "seg2any.evaluation.shapes: --lora nowhere: no such folder" in told and told.count("\n") == 1


def test_options_have_the_documented_defaults():
    model, lora = "examples/shapes/model", Path("examples/shapes/lora")
    expected = Options(model, lora, Path("result/bench_shapes"), None, 42, 20, 8, None, None, False, ())
    assert parse_options([]) == expected
