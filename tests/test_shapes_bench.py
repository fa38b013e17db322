"""The measurement around the judge: resuming, refusing to mix runs, bars, report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eval.shapes import Bench, Options, main, parse_options
from eval.shapes_report import bars, circumstances, commit, table, write_report
from seg2any.data.shapes import ShapesDataset
from seg2any.errors import UserError
from seg2any.settings import ConditionSettings
from tests.golden_root import REPOSITORY

SAMPLES = [ShapesDataset("test", 3)[index] for index in range(3)]


class Draughtsman:
    """Stands in for the pipeline: paints every layout in the grey of its seed, and remembers what it was asked."""

    settings = ConditionSettings()
    vae = SimpleNamespace(dtype=torch.float32)

    def __init__(self):
        self.calls = []

    def set_progress_bar_config(self, disable: bool):
        assert disable

    def __call__(self, layouts, num_inference_steps, seeds):
        self.calls.append(([layout.name for layout in layouts], num_inference_steps, seeds))
        return SimpleNamespace(
            images=[
                Image.new("RGB", layout.size[::-1], (10 * seed,) * 3)
                for layout, seed in zip(layouts, seeds, strict=True)
            ]
        )


def bench(tmp_path: Path, *flags: str) -> Bench:
    (tmp_path / "model").mkdir(exist_ok=True)
    paths = ["--model", str(tmp_path / "model"), "--lora", "none", "--output", str(tmp_path / "out")]
    return Bench(parse_options([*paths, *flags]), Draughtsman())


def test_images_come_in_order_and_batches_and_are_not_made_twice(tmp_path: Path):
    first = bench(tmp_path, "--batch_size", "2", "--num_inference_steps", "7")
    images = list(first.generate(SAMPLES, "normal"))
    assert [image[0, 0, 0] for image in images] == [0, 10, 20]
    names = [sample.layout.name for sample in SAMPLES]
    assert first.pipeline.calls == [(names[:2], 7, [0, 1]), (names[2:], 7, [2])]
    files = sorted((tmp_path / "out" / "normal").iterdir())
    assert [file.stem for file in files] == names

    files[1].write_bytes(files[1].read_bytes()[:-20])  # a copy that was interrupted
    again = bench(tmp_path, "--batch_size", "2", "--num_inference_steps", "7")
    assert [image[0, 0, 0] for image in again.generate(SAMPLES, "normal")] == [0, 10, 20]
    assert again.pipeline.calls == [(names[1:2], 7, [1])]

    anew = bench(tmp_path, "--num_inference_steps", "7", "--overwrite")
    list(anew.generate(SAMPLES, "normal"))
    assert anew.pipeline.calls == [(names, 7, [0, 1, 2])]


def test_images_of_another_run_are_not_mixed_in(tmp_path: Path):
    list(bench(tmp_path).generate(SAMPLES, "normal"))
    with pytest.raises(UserError, match="num_inference_steps.*--overwrite"):
        list(bench(tmp_path, "--num_inference_steps", "3").generate(SAMPLES, "normal"))
    (tmp_path / "model" / "vae.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="model.sha256"):
        list(bench(tmp_path).generate(SAMPLES, "normal"))


def test_every_source_of_images_is_judged_on_every_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = bench(tmp_path, "--limit", "2")
    monkeypatch.setattr(Bench, "round_trip", lambda self, images: iter(images))  # an autoencoder without loss
    results = measured.measure("normal")
    assert all(means["images"] == 2 for means in results.values())
    assert results["VAE round trip"] == results["rendered (ceiling)"]
    assert results["rendered (ceiling)"]["iou"] > 0.98
    assert results["generated"]["iou"] == results["grey image (floor)"]["iou"] == 0
    assert 0 < results["another scene (floor)"]["iou"] < 0.6


def test_bars_are_those_of_the_generated_images():
    exact = {"colour_right": 0.95, "iou": 0.9, "boundary_iou": 0.4, "leak": 0.02}
    results = {"generated": exact, "VAE round trip": {"boundary_iou": 0.5}}
    assert [bar.passed for bar in bars(results)] == [True] * 4
    for measure, worse in {"colour_right": 0.949, "iou": 0.899, "boundary_iou": 0.399, "leak": 0.021}.items():
        verdicts = bars({**results, "generated": {**exact, measure: worse}})
        assert [bar.measure for bar in verdicts if not bar.passed] == [measure]
        assert sum("MISSED" in str(bar) for bar in verdicts) == 1


def test_the_table_has_a_line_per_source_and_shows_what_is_unknown():
    means = dict.fromkeys(("colour_right", "pattern_right", "leak", "background_right", "clutter"), 0.256)
    lines = table({"ours": {**means, "iou": 0.5, "boundary_iou": 0.25, "background_right": float("nan")}}).splitlines()
    assert len(lines) == 2 and len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["ours", "25.6", "%", "25.6", "%", "0.500", "0.250", "25.6", "%", "-", "25.6", "%"]


def test_the_report_says_how_the_numbers_came_about(tmp_path: Path):
    report = json.loads(write_report({"results": 1, **circumstances(torch.device("cpu"))}, tmp_path).read_text())
    assert report["versions"]["torch"] == torch.__version__ and report["machine"]["device"] == "cpu"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    if head.returncode == 0:
        assert report["commit"].rstrip("+") == head.stdout.strip()
    assert commit(tmp_path) == "unknown"


def test_round_trip_of_an_identity_autoencoder_is_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = bench(tmp_path)
    measured.pipeline.vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,)), dtype=torch.float32)
    measured.pipeline.image_processor = SimpleNamespace(
        postprocess=lambda images, output_type: (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    )
    monkeypatch.setattr("eval.shapes.encode_images", lambda images, vae: SimpleNamespace(mean=images))
    monkeypatch.setattr("eval.shapes.decode_latents", lambda tokens, grid, vae: tokens)
    images = [np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8) for seed in range(10)]
    found = list(measured.round_trip(images))
    assert len(found) == 10 and all((a == b).all() for a, b in zip(found, images, strict=True))


def test_bad_flags_are_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match="2"):
        parse_options(["--limit", "0"])
    assert "--limit 0: give at least 1" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["shapes", "--model", "nowhere", "--lora", "none"])
    assert main() == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_missing_adapter_ends_the_process_without_a_traceback():
    command = [sys.executable, "-m", "eval.shapes", "--lora", "nowhere"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "eval.shapes: --lora nowhere: no such folder" in done.stderr and "Traceback" not in done.stderr


def test_options_have_the_documented_defaults():
    options = parse_options([])
    assert options == Options(
        "examples/shapes/model",
        Path("examples/shapes/lora"),
        Path("result/bench_shapes"),
        None,
        20,
        8,
        None,
        None,
        False,
    )
