"""`infer.py` as a user runs it: arguments, files, exit status and messages of a process."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seg2any.adapters.card import AdapterCard
from seg2any.adapters.files import add_adapters
from seg2any.attention.settings import ConditionSettings
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.recipe import read_recipe
from tests.golden_root import REPOSITORY
from tests.infer_command import MODEL, command, environment, files, infer, infer_process, layout, three_layouts

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_layouts(tmp_path)


class TestGoodRuns:
    def test_images_recipes_panels_and_going_on(self, folder: Path, tmp_path: Path):
        out = tmp_path / "out"
        regions = {"attention_mask_method": "hard"}  # without an adapter the model is plain
        first = infer("--save_panels", seg_mask_path=folder, output_path=out, batch_size=2, **regions)
        assert first.returncode == 0, first.stderr
        assert files(out) == [f"{name}{kind}.png" for name in "abc" for kind in ("", "_panel")]
        assert "3 images to make on cpu in float32, 0 are there already; threads: 1\n" in first.stdout
        recipe = read_recipe(out / "a.png")
        assert recipe["layout"] == {
            "sha256": layout("a").digest(),
            "name": "a",
            "caption": "a red circle and a star",
            "captions": ["a red circle", "a star"],
        }
        assert (recipe["seed"], recipe["size"], recipe["num_inference_steps"]) == (3, [64, 64], 1)
        assert (
            recipe["settings"]["attention_mask_method"] == "hard" and recipe["versions"]["torch"] == torch.__version__
        )
        assert Image.open(out / "c.png").size == (80, 80)

        before = {path.name: path.read_bytes() for path in out.iterdir()}
        (out / "b.png").write_bytes(before["b.png"][:-7])  # a truncated copy
        (out / "a_panel.png").unlink()
        second = infer("--save_panels", seg_mask_path=folder, output_path=out, **regions)
        assert second.returncode == 0, second.stderr
        assert "1 images to make on cpu in float32, 2 are there already" in second.stdout
        assert "b.png: is not a whole image, so it is made again" in second.stderr
        assert files(out) == sorted(before)
        again = np.asarray(Image.open(out / "b.png")).astype(int)
        (out / "b_before.png").write_bytes(before["b.png"])
        # made alone instead of in a batch of two: equal up to rounding
        assert np.abs(again - np.asarray(Image.open(out / "b_before.png")).astype(int)).max() <= 1

        third = infer(seg_mask_path=folder / "a.json", output_path=out, seed=4, **regions)
        assert third.returncode == 0 and "a.png: was made with another seed and is left alone" in third.stderr
        assert (out / "a.png").read_bytes() == before["a.png"]

    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)])
    def test_an_interrupted_run_leaves_whole_files(self, folder: Path, tmp_path: Path, number: signal.Signals):
        out = tmp_path / "out"
        flags = {"seg_mask_path": folder / "a.json", "output_path": out, "num_images_per_prompt": 400}
        process = subprocess.Popen(
            command(**{**flags, "num_inference_steps": 4}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            # Background jobs of a shell ignore Ctrl-C, and their children inherit this.
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 240
        while not (out / "a_1.png").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 128 + number, errors
        assert "interrupted" in errors and "Traceback" not in errors
        made = files(out)
        assert 2 <= len(made) < 400 and all(re.fullmatch(r"a_\d+\.png", name) for name in made)
        seeds = {read_recipe(out / name)["seed"] for name in made}
        assert seeds == {3 + n for n in range(len(made))}

    def test_the_image_is_the_pipelines_with_the_settings_of_the_adapter(self, folder: Path, tmp_path: Path, call):
        pipeline = Seg2AnyPipeline.from_pretrained(MODEL, dtype=torch.float32)
        torch.manual_seed(1)
        add_adapters(pipeline.transformer, rank=2)
        for name, weight in pipeline.transformer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        card = AdapterCard(condition=ConditionSettings(attention_mask_method="base", regional_max_sequence_length=7))
        pipeline.save_adapters(tmp_path / "lora", card)
        status, errors = call(
            seg_mask_path=folder / "a.json", output_path=tmp_path / "out", lora_ckpt_path=tmp_path / "lora"
        )
        assert status == 0, errors
        recipe = read_recipe(tmp_path / "out" / "a.png")
        assert recipe["settings"]["attention_mask_method"] == "base" and len(recipe["adapter"]["sha256"]) == 64
        assert recipe["settings"]["regional_max_sequence_length"] == 7
        (image,) = pipeline(layout("a"), num_inference_steps=1, settings=card.condition).images
        made = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
        assert np.abs(made - np.asarray(image).astype(int)).max() <= 1
        (plain,) = pipeline(layout("a"), num_inference_steps=1, settings=ConditionSettings("none")).images
        assert np.abs(made - np.asarray(plain).astype(int)).max() > 5  # the comparison can fail

    def test_check_writes_a_report_and_overlays_and_no_image(self, folder: Path, tmp_path: Path, call):
        status, _ = call("--check", seg_mask_path=folder, output_path=tmp_path / "out", regional_max_sequence_length=2)
        assert status == 0
        assert files(tmp_path / "out") == ["a_overlay.png", "b_overlay.png", "c_overlay.png", "preflight.json"]
        report = json.loads((tmp_path / "out" / "preflight.json").read_text())
        assert [entry["name"] for entry in report["layouts"]] == ["a", "b", "c"]
        region = report["layouts"][0]["regions"][0]
        assert region["pixels"] == 28 * 28 and region["caption"]["limit"] == 2
        assert "region 1 ('a red circle') loses" in report["warnings"][0]
        assert len(report["warnings"]) == 6 and report["settings"]["regional_max_sequence_length"] == 2

    def test_names_that_are_not_utf_8_or_that_a_terminal_cannot_show(self, tmp_path: Path, call, monkeypatch):
        """Use file names as other systems' archives leave them.

        The terminal can show ASCII only.
        """
        masks, stdout = tmp_path / "two words", io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        names = (os.fsdecode(b"caf\xe9"), "\N{CJK UNIFIED IDEOGRAPH-732B} 1")
        for name in names:
            layout(name).write(masks / f"{name}.json")
        monkeypatch.setattr(sys, "stdout", stdout)
        status, errors = call("--check", seg_mask_path=masks, output_path=tmp_path / "out")
        stdout.flush()
        printed = stdout.buffer.getvalue()
        assert status == 0 and b"caf\\udce9: 64x64" in printed and b"\\u732b 1: 64x64" in printed, errors
        report = json.loads((tmp_path / "out" / "preflight.json").read_text(encoding="utf-8"))
        assert [entry["name"] for entry in report["layouts"]] == sorted(names, key=os.fsencode)

    def test_check_into_a_folder_of_the_layouts_can_be_repeated(self, folder: Path, call):
        Image.new("RGB", (8, 8)).save(folder / "stray.png")
        for _ in range(2):
            status, errors = call("--check", seg_mask_path=folder, output_path=folder / "check")
            assert status == 0, errors
            report = json.loads((folder / "check" / "preflight.json").read_text())
            assert [entry["name"] for entry in report["layouts"]] == ["a", "b", "c"] and report["errors"] == []
            assert "warning" in errors and "stray.png" in errors and "stray.png" in report["warnings"][0]


class TestBadInput:
    """Bad input, as the user sees it: status 2, one line, no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            # with two mistakes, the layouts' is found first
            ({"seg_mask_path": "nothing.json", "pretrained_model_name_or_path": "no/model"}, "nothing.json: no such"),
            ({"pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev"}, "HF_HUB_OFFLINE keeps the hub away"),
        ],
    )
    def test_a_process_ends_with_2_and_one_line(self, folder: Path, tmp_path: Path, arguments: dict, message: str):
        failed = infer_process(**{"seg_mask_path": folder, "output_path": tmp_path / "out", **arguments})
        assert failed.returncode == 2
        assert len(failed.stderr.splitlines()) == 1 and message in failed.stderr, failed.stderr
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pretrained_model_name_or_path": "no/such/folder"}, "no such folder; give a FLUX pipeline folder or a"),
            ({"pretrained_model_name_or_path": REPOSITORY}, "has no model_index.json"),
            ({"lora_ckpt_path": "no_adapter"}, "no_adapter: no such folder"),
            ({"device": "quantum"}, "--device quantum: is no device"),
            ({"device": "meta"}, "--device meta: is no device"),
            ({"output_path": REPOSITORY / "LICENSE"}, "LICENSE: is a file or below one; give a folder"),
            ({"output_path": "/dev/null/out"}, "/dev/null"),
        ],
    )
    def test_a_call_ends_with_2_and_one_line(self, folder: Path, tmp_path: Path, call, arguments: dict, message: str):
        status, errors = call(**{"seg_mask_path": folder, "output_path": tmp_path / "out", **arguments})
        assert status == 2 and len(errors.splitlines()) == 1 and "infer.py: " in errors and message in errors, errors
        assert not (tmp_path / "out").exists()

    def test_a_damaged_model_and_a_damaged_adapter(self, folder: Path, tmp_path: Path, call):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model_index.json").write_text("{}")
        status, errors = call(seg_mask_path=folder, pretrained_model_name_or_path=tmp_path / "model")
        assert status == 2 and "cannot be loaded" in errors and "is the folder complete?" in errors
        (tmp_path / "lora" / "default").mkdir(parents=True)
        (tmp_path / "lora" / "default" / "pytorch_lora_weights.safetensors").write_bytes(b"123")
        status, errors = call(seg_mask_path=folder, lora_ckpt_path=tmp_path / "lora")
        assert status == 2 and "pytorch_lora_weights.safetensors: is damaged" in errors

    def test_bad_layouts_are_left_out_and_named_at_once_and_at_the_end(self, folder: Path, tmp_path: Path, call):
        (folder / "a.png").write_bytes(b"")
        (folder / "b.json").write_text('{"segments_info": []}')
        status, errors = call(seg_mask_path=folder, output_path=tmp_path / "out")
        said = errors.replace("\r", "\n").splitlines()
        lines = [line for line in said if line.startswith(("warning: ", "infer.py: "))]  # without the bars
        assert status == 1 and files(tmp_path / "out") == ["c.png"], errors
        for line, start in zip(lines, ["warning: left out: "] * 2 + ["infer.py: "] * 3, strict=True):
            assert line.startswith(start)
        assert "2 left out, all others are made" in lines[2]
        for first, second in (lines[:2], lines[3:]):
            assert "a.png: cannot be read as an image" in first and "b.json: segments_info is empty" in second

    def test_all_bad_layouts_are_named_before_weights_are_loaded(self, folder: Path, tmp_path: Path, call):
        (folder / "a.png").write_bytes(b"")
        (folder / "b.json").write_text('{"segments_info": []}')
        status, errors = call("--keep_going", "false", seg_mask_path=folder, output_path=tmp_path / "out")
        assert status == 2
        first, second = errors.splitlines()
        assert "a.png: cannot be read as an image" in first and "b.json: segments_info is empty" in second

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--seg_mask_path", "x", "--seed", "-1"],
            ["--seg_mask_path", "x", "--seed", "nan"],
            ["--seg_mask_path", "x", "--guidance_scale", "inf"],
            ["--seg_mask_path", "x", "--num_inference_steps", "0"],
            ["--seg_mask_path", "x", "--attention_mask_method", "soft"],
            ["--seg_mask_path", "x", "--hard_attn_block_range", "3"],
            ["--seg_mask_path", "x", "--cond2image_attention_weight", "2"],
            ["--seg_mask_path", "x", "--steps", "3"],
            ["--seg_mask_path", "x", "--check", "--estimate"],
            ["--seg_mask_path", "x", "--strict", "--keep_going"],
            ["--seg_mask_path", "x", "--keep_going", "maybe"],
        ],
    )
    def test_wrong_arguments(self, arguments: list[str], capsys: pytest.CaptureFixture):
        from seg2any.generate.options import parse_options

        with pytest.raises(SystemExit) as caught:
            parse_options(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2 and line.startswith("infer.py: --")

    def test_help_answers_quickly_and_shows_examples(self):
        code = (
            "import atexit, sys, infer; sys.argv = ['infer.py', '--help'];"
            "atexit.register(lambda: print('torch' in sys.modules)); infer.main()"
        )
        helped = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
        assert helped.returncode == 0 and helped.stdout.strip().endswith("False")
        for flag in ("--seg_mask_path", "--cond2image_attention_weight", "--snap_colors", "examples:", "130"):
            assert flag in helped.stdout
