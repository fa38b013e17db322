"""`infer.py` as its users meet it: a process with arguments, files, an exit status and messages."""

from __future__ import annotations

import dataclasses
import hashlib
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

from infer import main
from seg2any.attention import AttentionRules
from seg2any.errors import UserError
from seg2any.inference.choices import Machine, check_modes, choose_settings, shared_recipe
from seg2any.inference.options import Options
from seg2any.inference.plan import batches, make_plan
from seg2any.inference.recipe import BrokenImage, differences, read_recipe, save_image
from seg2any.inference.run import discard_panel, explained_memory
from seg2any.inference.survey import survey_layouts
from seg2any.layout import Layout
from seg2any.models.adapters import add_adapters
from seg2any.models.card import AdapterCard
from seg2any.modes import MEMORY_MODES
from seg2any.pipeline import Seg2AnyPipeline
from seg2any.preflight import ModelFacts
from seg2any.settings import ConditionSettings
from tests.golden_root import REPOSITORY

MODEL = REPOSITORY / "examples" / "shapes" / "model"
SIDE = 64


def infer(*arguments: object, **flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments, **flags), capture_output=True, text=True, timeout=240, env=environment())


def command(*arguments: object, **flags: object) -> list[str]:
    flags = {"pretrained_model_name_or_path": MODEL, "num_inference_steps": 1, "device": "cpu", **flags}
    named = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(REPOSITORY / "infer.py"), *named, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def layout(
    name: str, side: int = SIDE, seed: int | None = 3, captions: tuple[str, ...] = ("a red circle", "a star")
) -> Layout:
    masks = np.zeros((2, side, side), dtype=bool)
    masks[0, 4 : side // 2, 4 : side // 2], masks[1, side // 2 :, side // 4 :] = True, True
    return Layout(masks, captions, "a red circle and a star", seed=seed, name=name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two layouts of one size and one of another."""
    for item in (layout("a"), layout("b", seed=None), layout("c", side=80)):
        item.write(tmp_path / "masks" / f"{item.name}.json")
    return tmp_path / "masks"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """`infer.py` without the seconds that a new process takes: status and stderr."""

    def run(*arguments: object, **flags: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", command(*arguments, **flags)[1:])
        return main(), capsys.readouterr().err

    return run


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestGoodRuns:
    def test_images_recipes_panels_and_going_on(self, folder: Path, tmp_path: Path):
        out = tmp_path / "out"
        first = infer("--save_panels", seg_mask_path=folder, output_path=out, batch_size=2)
        assert first.returncode == 0, first.stderr
        assert files(out) == [f"{name}{kind}.png" for name in "abc" for kind in ("", "_panel")]
        assert "3 images to make on cpu in float32" in first.stdout
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
        (out / "b.png").write_bytes(before["b.png"][:-7])  # a copy that was cut off
        (out / "a_panel.png").unlink()
        second = infer("--save_panels", seg_mask_path=folder, output_path=out)
        assert second.returncode == 0, second.stderr
        assert "1 images to make on cpu in float32, 2 are there already" in second.stdout
        assert "b.png: is not a whole image, so it is made again" in second.stderr
        assert files(out) == sorted(before)
        again = np.asarray(Image.open(out / "b.png")).astype(int)
        (out / "b_before.png").write_bytes(before["b.png"])
        # made alone instead of in a batch of two: equal up to rounding
        assert np.abs(again - np.asarray(Image.open(out / "b_before.png")).astype(int)).max() <= 1

        third = infer(seg_mask_path=folder / "a.json", output_path=out, seed=4)
        assert third.returncode == 0 and "a.png: was made with another seed and is left alone" in third.stderr
        assert (out / "a.png").read_bytes() == before["a.png"]

    def test_an_interrupted_run_leaves_whole_files(self, folder: Path, tmp_path: Path):
        out = tmp_path / "out"
        flags = {"seg_mask_path": folder / "a.json", "output_path": out, "num_images_per_prompt": 400}
        process = subprocess.Popen(
            command(**{**flags, "num_inference_steps": 4}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            # A shell's background jobs ignore Ctrl-C, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 240
        while not (out / "a_1.png").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 130, errors
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
        card = AdapterCard(attention_mask_method="base", cond_scale_factor=1, regional_max_sequence_length=7)
        pipeline.save_adapters(tmp_path / "lora", card)
        status, errors = call(
            seg_mask_path=folder / "a.json", output_path=tmp_path / "out", lora_ckpt_path=tmp_path / "lora"
        )
        assert status == 0, errors
        recipe = read_recipe(tmp_path / "out" / "a.png")
        assert recipe["settings"]["attention_mask_method"] == "base" and len(recipe["adapter"]["sha256"]) == 64
        assert recipe["settings"]["regional_max_sequence_length"] == 7
        (image,) = pipeline(
            layout("a"), num_inference_steps=1, attention_mask_method="base", regional_max_sequence_length=7
        ).images
        made = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
        assert np.abs(made - np.asarray(image).astype(int)).max() <= 1
        (plain,) = pipeline(layout("a"), num_inference_steps=1, attention_mask_method="none").images
        assert np.abs(made - np.asarray(plain).astype(int)).max() > 5  # the comparison sees a difference

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

    def test_check_into_a_folder_of_the_layouts_can_be_repeated(self, folder: Path, call):
        Image.new("RGB", (8, 8)).save(folder / "stray.png")
        for _ in range(2):
            status, errors = call("--check", seg_mask_path=folder, output_path=folder / "check")
            assert status == 0, errors
            report = json.loads((folder / "check" / "preflight.json").read_text())
            assert [entry["name"] for entry in report["layouts"]] == ["a", "b", "c"] and report["errors"] == []
            assert "warning" in errors and "stray.png" in errors and "stray.png" in report["warnings"][0]


class TestBadInput:
    """What counts is what the user sees: status 2, one line, no traceback."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            # two things are wrong: that of the layouts is known first
            ({"seg_mask_path": "nothing.json", "pretrained_model_name_or_path": "no/model"}, "nothing.json: no such"),
            ({"pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev"}, "HF_HUB_OFFLINE keeps the hub away"),
        ],
    )
    def test_as_a_process(self, folder: Path, tmp_path: Path, arguments: dict, message: str):
        failed = infer(**{"seg_mask_path": folder, "output_path": tmp_path / "out", **arguments})
        assert failed.returncode == 2
        assert len(failed.stderr.splitlines()) == 1 and message in failed.stderr, failed.stderr
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pretrained_model_name_or_path": "no/such/folder"}, "no such folder; give a FLUX pipeline folder or a"),
            ({"pretrained_model_name_or_path": REPOSITORY}, "has no model_index.json"),
            ({"lora_ckpt_path": "no_adapter"}, "no_adapter: no default/"),
            ({"device": "quantum"}, "--device quantum: cannot be used"),
            ({"output_path": "/dev/null/out"}, "/dev/null"),
        ],
    )
    def test_one_line(self, folder: Path, tmp_path: Path, call, arguments: dict, message: str):
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

    def test_all_bad_layouts_are_named_before_weights_are_loaded(self, folder: Path, tmp_path: Path, call):
        (folder / "a.png").write_bytes(b"")
        (folder / "b.json").write_text('{"segments_info": []}')
        status, errors = call(seg_mask_path=folder, output_path=tmp_path / "out")
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
        ],
    )
    def test_wrong_arguments(self, arguments: list[str], capsys: pytest.CaptureFixture):
        from seg2any.inference.options import parse_options

        with pytest.raises(SystemExit) as caught:
            parse_options(arguments)
        assert caught.value.code == 2 and "error:" in capsys.readouterr().err

    def test_help_answers_quickly_and_shows_examples(self):
        code = (
            "import atexit, sys, infer; sys.argv = ['infer.py', '--help'];"
            "atexit.register(lambda: print('torch' in sys.modules)); infer.main()"
        )
        helped = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
        assert helped.returncode == 0 and helped.stdout.strip().endswith("False")
        for flag in ("--seg_mask_path", "--cond2image_attention_weight", "--snap_colors", "examples:", "130"):
            assert flag in helped.stdout


FACTS = ModelFacts(pixels_per_token=16, count_tokens=lambda text: len(text.split()) + 1)


class TestSurvey:
    def options(self, folder: Path, **changes: object) -> Options:
        return Options(seg_mask_path=folder, output_path=folder.parent / "out", **changes)

    def test_strict_turns_warnings_into_failure(self, folder: Path):
        pixels = np.array(Image.open(folder / "a.png"))
        pixels[:5, -5:] = [9, 200, 9]
        Image.fromarray(pixels).save(folder / "a.png")
        survey = survey_layouts(self.options(folder), ConditionSettings(), FACTS)
        assert len(survey.warnings) == 1 and "colour [9, 200, 9] (25 pixels) is not in the JSON" in survey.warnings[0]
        survey.stop_at_problems(strict=False)
        with pytest.raises(UserError, match="not in the JSON"):
            survey.stop_at_problems(strict=True)

    def test_names_that_collide_and_images_below_a_token(self, folder: Path):
        layout("a").write(folder / "a.npz")
        layout("d", side=20).write(folder / "d.json")
        survey = survey_layouts(self.options(folder), ConditionSettings(cond_scale_factor=2), FACTS)
        tiny, collision = survey.errors
        assert "d.json: 20x20 is smaller than one token" in tiny
        assert "a.json" in collision and "a.npz" in collision and "rename one" in collision
        (flat,) = survey_layouts(self.options(folder / "b.json", height=8), ConditionSettings(), FACTS).errors
        assert "b.json: 64x8 is smaller than one token" in flat

    def test_plain_flux_needs_a_global_caption(self, folder: Path):
        Layout(np.ones((1, 64, 64), dtype=bool), ("a",)).write(folder / "d.json")
        plain = ConditionSettings(rules=AttentionRules(method="none"))
        (error,) = survey_layouts(self.options(folder), plain, FACTS).errors
        assert "d.json: caption is missing" in error

    def test_sizes(self, folder: Path):
        survey = survey_layouts(self.options(folder, height=100, width=70), ConditionSettings(), FACTS)
        assert {item.report.image_size for item in survey.layouts} == {(96, 64)}
        survey = survey_layouts(self.options(folder), ConditionSettings(cond_scale_factor=2), FACTS)
        assert [item.report.image_size for item in survey.layouts] == [(64, 64), (64, 64), (64, 64)]

    def test_sizes_that_no_memory_holds_are_refused_before_masks_are_drawn_at_them(self, folder: Path):
        survey = survey_layouts(self.options(folder, height=2**16, width=2**16), ConditionSettings(), FACTS)
        assert len(survey.errors) == 3 and "65536x65536 is more than 64 megapixels" in survey.errors[0]


class TestPlan:
    def plan(self, folder: Path, **changes: object):
        options = Options(seg_mask_path=folder, output_path=folder.parent / "out", **changes)
        return make_plan(survey_layouts(options, ConditionSettings(), FACTS).layouts, options, {"model": "m"})

    def test_seeds(self, folder: Path):
        assert [job.seed for job in self.plan(folder).to_do] == [3, 0, 3]
        jobs = self.plan(folder, num_images_per_prompt=2, seed=2**63 - 1).to_do
        assert [job.seed for job in jobs] == [2**63 - 1, 0] * 3
        assert [job.path.name for job in jobs[:3]] == ["a_0.png", "a_1.png", "b_0.png"]

    def test_batches_have_one_size(self, folder: Path):
        layout("d").write(folder / "d.json")
        jobs = self.plan(folder, num_images_per_prompt=2).to_do
        names = [[job.path.stem for job in batch] for batch in batches(jobs, 4)]
        assert names == [["a_0", "a_1", "b_0", "b_1"], ["d_0", "d_1"], ["c_0", "c_1"]]

    def test_images_of_others_are_left_alone(self, folder: Path):
        out = folder.parent / "out"
        out.mkdir()
        Image.new("RGB", (64, 64)).save(out / "a.png")
        plan = self.plan(folder)
        assert [job.path.name for job in plan.finished] == ["a.png"] and "not made by this program" in plan.remarks[0]
        assert len(self.plan(folder, overwrite=True).to_do) == 3

    def test_a_folder_in_the_place_of_an_image_is_known_before(self, folder: Path):
        (folder.parent / "out" / "b.png").mkdir(parents=True)
        with pytest.raises(UserError, match="b.png: is a folder"):
            self.plan(folder)

    def test_captions_that_do_not_fit_a_jpeg_are_known_before(self, folder: Path):
        layout("a", captions=("x" * 70000, "b")).write(folder / "a.json")
        with pytest.raises(UserError, match="a.jpg: the captions are too long .* use --format png"):
            self.plan(folder, format="jpg")
        assert len(self.plan(folder).to_do) == 3

    def test_a_layout_called_like_the_panel_of_another(self, folder: Path):
        layout("a_panel").write(folder / "a_panel.json")
        options = Options(seg_mask_path=folder, output_path=folder.parent / "out")
        (collision,) = survey_layouts(options, ConditionSettings(), FACTS).errors
        assert "a.json" in collision and "would both write a_panel.png" in collision

    def test_a_panel_goes_with_its_image_and_pictures_of_others_stay(self, folder: Path):
        job, other, _ = self.plan(folder).to_do
        save_image(Image.new("RGB", (8, 8)), {"panel": {}}, job.panel_path)
        save_image(Image.new("RGB", (8, 8)), {}, other.panel_path)
        discard_panel(job)
        discard_panel(other)
        assert files(folder.parent / "out") == ["b_panel.png"]

    def test_layouts_are_never_overwritten(self, folder: Path):
        options = Options(seg_mask_path=folder, output_path=folder, overwrite=True)
        with pytest.raises(UserError, match="is where the layouts are"):
            survey_layouts(options, ConditionSettings(), FACTS)


class TestRecipe:
    RECIPE = {"seed": 3, "settings": {"range": (1, 2)}, "caption": '\u732b "quoted"\n', "versions": {"torch": "1"}}

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
    def test_travels_with_the_image(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"x.{suffix}"
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        save_image(image, self.RECIPE, path)
        assert (
            differences(read_recipe(path), self.RECIPE) == [] and read_recipe(path)["caption"] == self.RECIPE["caption"]
        )
        whole = path.read_bytes()
        for length in {len(whole) - 1, len(whole) - 13, len(whole) // 2, 10, 0} - (
            {len(whole) - 1} if suffix != "png" else set()
        ):
            path.write_bytes(whole[:length])
            with pytest.raises(BrokenImage):
                read_recipe(path)

    def test_is_written_under_any_name_that_is_legal(self, tmp_path: Path):
        path = tmp_path / f"{'n' * 251}.png"
        save_image(Image.new("RGB", (2, 2)), {"seed": 1}, path)
        assert read_recipe(path) == {"seed": 1} and files(tmp_path) == [path.name]

    def test_what_differs_is_named(self):
        other = {**self.RECIPE, "seed": 4, "settings": {"range": [1, 3]}, "versions": {"torch": "2"}, "new": 1}
        assert differences(json.loads(json.dumps(self.RECIPE)), other) == ["new", "seed", "settings.range"]

    def test_a_recipe_too_long_for_jpeg(self, tmp_path: Path):
        with pytest.raises(UserError, match="use --format png"):
            save_image(Image.new("RGB", (8, 8)), {"caption": "x" * 70000}, tmp_path / "x.jpg")
        assert not list(tmp_path.iterdir())


CPU = Machine(torch.device("cpu"), torch.float32)
OPTIONS = Options(seg_mask_path=Path("x"))


class TestMemory:
    def test_fp8_is_smaller_not_quite_the_same_and_in_the_recipe(self, folder: Path, tmp_path: Path, call):
        for mode in ("full", "fp8"):
            status, errors = call(
                "--vae_tiling", seg_mask_path=folder / "a.json", output_path=tmp_path / mode, memory=mode
            )
            assert status == 0, errors
        recipes = [read_recipe(tmp_path / mode / "a.png") for mode in ("full", "fp8")]
        assert differences(*recipes) == ["quantization"] and recipes[1]["quantization"] == "fp8"
        full, small = (np.asarray(Image.open(tmp_path / mode / "a.png")).astype(int) for mode in ("full", "fp8"))
        assert 0 < np.abs(full - small).mean() < 20

    def test_estimate_loads_no_weights_and_writes_nothing(
        self, folder: Path, tmp_path: Path, call, monkeypatch, capsys
    ):
        monkeypatch.setattr(Seg2AnyPipeline, "to", None)
        monkeypatch.setattr("safetensors.torch.load_file", None)
        status, errors = call("--estimate", seg_mask_path=folder, output_path=tmp_path / "out", memory="fp8")
        assert status == 0 and not (tmp_path / "out").exists(), errors

    def test_estimate_says_the_peak_of_every_mode(self, folder: Path, tmp_path: Path):
        found = infer("--estimate", seg_mask_path=folder, output_path=tmp_path / "out", memory="fp8", batch_size=2)
        lines = found.stdout.splitlines()
        assert "in float32, 2 x 80x80, 2 regions" in lines[0], found.stderr
        rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
        assert list(rows) == list(MEMORY_MODES) and rows["fp8"][-1] == "chosen"
        for text, denoising, decoding, peak in (map(float, row[:4]) for row in rows.values()):
            assert peak == pytest.approx(max(text, denoising, decoding) + 1, abs=0.02)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"memory": "offload"}, "--memory offload: moves weights between a GPU and the CPU"),
            ({"memory": "nf4"}, "--memory nf4 needs"),
            ({"step_cache": "mag"}, None),
        ],
    )
    def test_what_a_cpu_cannot_do_is_one_line(self, folder: Path, tmp_path: Path, call, flags, message):
        status, errors = call(seg_mask_path=folder, output_path=tmp_path / "out", **flags)
        if message:
            assert status == 2 and f"infer.py: {message}" in errors and not (tmp_path / "out").exists()
        else:
            assert status == 0, errors

    def test_flags_that_do_not_go_together(self):
        cuda = Machine(torch.device("cuda"), torch.bfloat16)
        for flags, message in (
            ({"memory": "group_offload", "step_cache": "mag"}, "--step_cache mag: leaves out layers"),
            ({"compile": True, "step_cache": "taylorseer"}, "--compile: does not go with --step_cache taylorseer"),
            ({"compile": True, "memory": "group_offload"}, "--compile: does not go with --memory group_offload"),
        ):
            with pytest.raises(UserError, match=message):
                check_modes(dataclasses.replace(OPTIONS, **flags), cuda)
        check_modes(dataclasses.replace(OPTIONS, compile=True, memory="offload"), cuda)
        with pytest.raises(UserError, match="--compile: on a CPU"):
            check_modes(dataclasses.replace(OPTIONS, compile=True), CPU)


class TestChoices:
    def test_a_retrained_model_is_another_model_and_a_moved_one_is_not(self, tmp_path: Path):
        def recipe(folder: str, weights: bytes) -> dict:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "model.safetensors").write_bytes(weights)
            options = Options(seg_mask_path=Path("x"), pretrained_model_name_or_path=str(tmp_path / folder))
            return json.loads(json.dumps(shared_recipe(options, ConditionSettings(), CPU)))

        old = recipe("here", b"1")
        assert old["model"]["sha256"] == hashlib.sha256(b"1").hexdigest()
        assert differences(old, recipe("there", b"1")) == []
        assert differences(old, recipe("here", b"2")) == ["model.sha256"]

    def test_the_adapter_decides_and_the_command_line_overrides_with_a_warning(self):
        card = AdapterCard(attention_mask_method="base", cond_scale_factor=1, regional_max_sequence_length=10)
        settings, remarks = choose_settings(Options(seg_mask_path=Path("x")), card)
        assert (settings.rules.method, settings.cond_scale_factor, settings.regional_max_sequence_length) == (
            "base",
            1,
            10,
        )
        assert remarks == []
        options = Options(seg_mask_path=Path("x"), attention_mask_method="hard", cond2image_attention_weight=0.5)
        settings, remarks = choose_settings(options, card)
        assert settings.rules.method == "hard" and settings.rules.cond2image_attention_weight == 0.5
        assert remarks == ["attention_mask_method is hard, but the adapter was trained with base"]

    def test_published_checkpoints_get_the_published_settings(self):
        settings, remarks = choose_settings(
            Options(seg_mask_path=Path("x"), max_sequence_length=99), AdapterCard(assumed=True)
        )
        assert settings.rules.hard_attn_block_range == (19, 37) and settings.cond_scale_factor == 2 and remarks == []

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory."),
            MemoryError(),
            RuntimeError("MPS backend out of memory (MPS ...)"),
        ]
        + [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")],
    )
    def test_out_of_memory_says_what_to_turn_on(self, error: Exception):
        options = Options(seg_mask_path=Path("x"), batch_size=4)
        with (
            pytest.raises(MemoryError, match=r"out of memory; turn on --batch_size 1 \(now 4\)"),
            explained_memory(options, ConditionSettings(), CPU),
        ):
            raise error

    def test_out_of_memory_advises_nothing_that_is_set_already(self):
        settings = ConditionSettings(cond_scale_factor=2)
        machine = Machine(torch.device("cpu"), torch.bfloat16)
        with (
            pytest.raises(MemoryError) as caught,
            explained_memory(Options(seg_mask_path=Path("x"), memory="fp8"), settings, machine),
        ):
            raise MemoryError
        assert str(caught.value) == "out of memory; turn on a smaller --height and --width"

    @pytest.mark.parametrize(
        ("device", "mode", "advice"),
        [
            ("cuda", "full", "--memory offload, "),
            ("cuda", "offload", "--memory nf4, "),
            ("cuda", "nf4", "--memory group_offload, "),
            ("cuda", "group_offload", "a smaller --height"),
            ("cpu", "full", "--memory fp8, "),
        ],
    )
    def test_out_of_memory_names_the_next_mode(self, device: str, mode: str, advice: str):
        options, machine = Options(seg_mask_path=Path("x"), memory=mode), Machine(torch.device(device), torch.bfloat16)
        with (
            pytest.raises(MemoryError, match=f"turn on {advice}"),
            explained_memory(options, ConditionSettings(), machine),
        ):
            raise MemoryError

    def test_other_errors_stay_what_they_are(self):
        with pytest.raises(RuntimeError, match="shapes"), explained_memory(OPTIONS, ConditionSettings(), CPU):
            raise RuntimeError("shapes do not match")
