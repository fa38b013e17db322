"""Images of a benchmark: the same for any number of processes and interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.generate_image import main, parse_request
from seg2any.evaluation.generated import Generated, image_path, image_seed
from seg2any.evaluation.generation import plan
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.recipe import read_recipe
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process
from tests import forked
from tests.golden_root import REPOSITORY

pytestmark = pytest.mark.slow

MODEL, LORA = REPOSITORY / "examples" / "shapes" / "model", REPOSITORY / "examples" / "shapes" / "lora"
SIDE, SAMPLES, GROUPS, BATCH = 64, 5, 2, 3
SEED = 11


def arguments(out: Path, *more: object, **flags: object) -> list[str]:
    flags = {"num_images_per_prompt": GROUPS, "batch_size": BATCH, "limit": SAMPLES, "device": "cpu", **flags}
    flags = {"num_inference_steps": 1, "pretrained_model_name_or_path": MODEL, "lora_ckpt_path": LORA, **flags}
    named = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    config = [str(REPOSITORY / "config" / "seg2any_shapes.yaml"), f"--resolution={SIDE}", f"--seed={SEED}"]
    data = ["--data.val.params.split=test", "--data.val.params.n_scenes=8"]
    return [*config, *data, "--output_path", str(out), *named, *map(str, more)]


def content(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of every file except run.json."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that one undisturbed process makes."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert main(arguments(out)) == 0
    return out


def test_every_sample_has_its_images_and_the_run_is_described(made: Path):
    data = ShapesDataset("test", 8)
    names = {f"group_{k}/{data.key(s)}.png" for s in range(SAMPLES) for k in range(GROUPS)}
    assert set(content(made)) == names
    generated = Generated.read(made)
    assert (generated.groups, generated.size, generated.run["seed"]) == (GROUPS, (SIDE, SIDE), SEED)
    assert generated.run["data"]["fingerprint"] == data.fingerprint() == generated.open_data().fingerprint()
    assert generated.keys(data) == [data.key(s) for s in range(SAMPLES)]
    generated.check_complete(data)
    adapter = generated.run["recipe"]["adapter"]["sha256"]
    assert adapter == hashlib.sha256(b"".join(p.read_bytes() for p in sorted(LORA.rglob("*.safetensors")))).hexdigest()
    images = list(generated.images(1, data))
    assert len(images) == SAMPLES and all(image.shape == (SIDE, SIDE, 3) for image in images)
    recipe = read_recipe(made / "group_1" / f"{data.key(2)}.png")
    assert recipe["layout"]["captions"] == list(data[2].layout.captions) and recipe["image"] == 1
    assert recipe["settings"]["regional_max_sequence_length"] == 16  # the value the adapter was trained with


def test_an_image_is_what_the_pipeline_makes_of_its_layout_and_its_own_seed(made: Path):
    data = ShapesDataset("test", 8)
    sample = data[3]
    # Four times smaller: nearest-exact takes the third pixel of every four.
    layout = Layout(sample.layout.masks[:, 2::4, 2::4], sample.layout.captions, sample.layout.caption)
    digest = hashlib.sha256(f"{SEED}/1/{data.key(3)}".encode()).digest()
    seed = int.from_bytes(digest[:8], "big") % 2**63
    pipe = Seg2AnyPipeline.from_pretrained(str(MODEL))
    pipe.load_adapters(str(LORA))
    pipe.set_progress_bar_config(disable=True)
    (expected,) = pipe([layout], num_inference_steps=1, seeds=[seed]).images
    found = np.asarray(Image.open(made / "group_1" / f"{data.key(3)}.png")).astype(int)
    assert np.abs(found - np.asarray(expected).astype(int)).max() <= 1  # made in another batch
    recipe = read_recipe(made / "group_1" / f"{data.key(3)}.png")
    assert recipe["seed"] == seed and recipe["layout"]["sha256"] == layout.digest()


def test_seeds_depend_on_each_of_seed_sample_and_number():
    seeds = {image_seed(seed, key, k) for seed in range(10) for key in map(str, range(10)) for k in range(10)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(1, "1/2", 3) != image_seed(1, "2", 1)


@pytest.mark.same_numbers("images of two processes, and of one | equal")
def test_two_processes_make_the_images_of_one(made: Path, tmp_path: Path):
    out, log = tmp_path / "out", tmp_path / "log.txt"

    def make(rank: int) -> None:
        assert main(arguments(out)) == 0

    assert forked.run(make, log, 2) == [0, 0], log.read_text()
    # 10 images in 4 blocks of 3: the first process has blocks 0 and 2, the second 1 and 3.
    assert "process 1 of 2: 6 images to make" in log.read_text()
    assert "process 2 of 2: 4 images to make" in log.read_text()
    assert content(out) == content(made)


@pytest.mark.same_numbers("a run or a folder after a kill, and in one go | equal")
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 2])
def test_killed_and_started_again_the_folder_is_the_same(made: Path, tmp_path: Path, processes: int):
    """Kill all processes of a run and continue it with one."""
    out, log, replace = tmp_path / "out", tmp_path / "log.txt", os.replace

    def die_with_the_first_image(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).suffix == ".png":
            os.kill(os.getpid(), signal.SIGKILL)

    def make(rank: int) -> None:
        if rank == processes - 1:
            os.replace = die_with_the_first_image
        main(arguments(out))

    assert forked.run(make, log, processes)[-1] == -signal.SIGKILL, log.read_text()
    survived = {name for name in content(out) if ".tmp." not in name}
    assert 0 < len(survived) < SAMPLES * GROUPS, "a killed run has a part of its images"
    broken = sorted(survived)[0]
    (out / broken).write_bytes((out / broken).read_bytes()[:-30])
    (out / "group_0").mkdir(exist_ok=True)
    (out / "group_0" / ".half.tmp.png").write_bytes(b"half")
    assert main(arguments(out)) == 0
    assert content(out) == content(made)


def test_finished_images_are_neither_made_again_nor_need_the_weights(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def refuse(*_: object):
        raise AssertionError("loaded")

    monkeypatch.setattr("seg2any.generate.session.load_pipeline", refuse)
    before = content(made)
    assert main(arguments(made)) == 0
    assert "0 images to make" in capsys.readouterr().out and content(made) == before


def test_another_run_is_not_mixed_in(made: Path, capsys: pytest.CaptureFixture):
    assert main(arguments(made, num_inference_steps=2)) == 2
    assert "another num_inference_steps; use --overwrite" in capsys.readouterr().err
    assert main([*arguments(made), "--seed=12"]) == 2
    assert "another seed" in capsys.readouterr().err
    (made / "group_0" / "extra.png").write_bytes(b"")  # files that no sample names are ignored
    assert main(arguments(made)) == 0
    (made / "group_0" / "extra.png").unlink()


def test_a_foreign_image_stops_the_run(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    path = out / "group_0" / "test_normal_00001.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE)).save(path)
    assert main(arguments(out)) == 2
    assert "use --overwrite or another folder" in capsys.readouterr().err


def test_published_jpeg_has_the_pixels_that_pillow_writes_by_default(made: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main(arguments(out, "--published_jpeg", limit=1, num_images_per_prompt=1)) == 0
    assert list(content(out)) == ["group_0/test_normal_00000.jpg"]
    with Image.open(out / "group_0" / "test_normal_00000.jpg") as jpeg, BytesIO() as file:
        ours, tables = np.asarray(jpeg), jpeg.quantization
        assert read_recipe(out / "group_0" / "test_normal_00000.jpg")["seed"] == image_seed(
            SEED, "test_normal_00000", 0
        )
        Image.open(made / "group_0" / "test_normal_00000.png").save(file, "JPEG")
        default = Image.open(file)
        assert tables == default.quantization
        # Equal up to rounding in another batch, which a coarse quantisation may enlarge.
        assert np.abs(ours.astype(int) - np.asarray(default)).mean() < 0.5


def test_shares_are_disjoint_and_complete(made: Path, tmp_path: Path):
    from seg2any.evaluation.generation import ImageSet

    task = ImageSet(ShapesDataset("test", 8), tmp_path, 7, 3, "png", (SIDE, SIDE), 0, {})
    for world in (1, 2, 3, 5, 30):
        blocks = [block for rank in range(world) for block in plan(task, 4, Process(rank, world), False)[0]]
        images = [image for block in blocks for image in block.jobs]
        assert sorted(image.path for image in images) == sorted({image.path for image in task.wanted()})
        assert {block.jobs for block in blocks} == {
            block.jobs for block in plan(task, 4, ALONE, False)[0]
        }  # independent of the number of processes


def test_values_without_a_flag_come_from_the_config(tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text("eval: {guidance_scale: 2.5, num_images_per_prompt: 4}\nmodel: {num_inference_steps: 7}\n")
    request = parse_request(["--base", str(config), "--output_path", "x", "--guidance_scale", "1.5"])
    options = request.options
    assert (options.guidance_scale, options.num_images_per_prompt, options.num_inference_steps) == (1.5, 4, 7)
    assert request.config.seed == 42 and options.pretrained_model_name_or_path == "black-forest-labs/FLUX.1-dev"


def test_adapters_without_a_card_follow_the_config(made: Path, tmp_path: Path):
    for part in ("default", "cond"):
        (tmp_path / "lora" / part).mkdir(parents=True)
        weights = (LORA / part / "pytorch_lora_weights.safetensors").read_bytes()
        length = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + length])
        header.get("__metadata__", {}).pop("seg2any", None)
        text = json.dumps(header).encode()
        (tmp_path / "lora" / part / "pytorch_lora_weights.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + weights[8 + length :]
        )
    more = ["--model.attention_mask_method=base", "--model.regional_max_sequence_length=10", "--cond_scale_factor", 2]
    flags = {"lora_ckpt_path": tmp_path / "lora", "limit": 1, "num_images_per_prompt": 1}
    assert main(arguments(tmp_path / "out", *more, **flags)) == 0
    settings = Generated.read(tmp_path / "out").run["recipe"]["settings"]
    assert settings["attention_mask_method"] == "base" and settings["regional_max_sequence_length"] == 10
    assert settings["cond_scale_factor"] == 2


def test_without_adapters_the_model_is_plain_whatever_the_config_says(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = arguments(tmp_path / "out", limit=1, num_images_per_prompt=1)
    at = words.index("--lora_ckpt_path")
    assert main([*words[:at], *words[at + 2 :]]) == 0
    recipe = Generated.read(tmp_path / "out").run["recipe"]
    assert recipe["settings"]["attention_mask_method"] == "none" and not recipe["settings"]["is_use_cond_token"]
    assert "plain FLUX" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.val.type=nothing"], "data set 'nothing' does not exist"),
        (["--data.vall.type=shapes"], "did you mean 'data.val'"),
        (["--lora_ckpt_path", "nowhere"], "nowhere: no default/"),
        (["--data.aspect=bucket"], "data.aspect: bucket is for training"),
    ],
)
def test_wrong_input_is_one_line(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([*arguments(tmp_path / "out"), *more]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_it_can_be_started_as_a_file(tmp_path: Path):
    """Start the file as the published `accelerate launch eval/generate_image.py` does.

    The run ends when it finds that the adapters are missing.
    """
    command = [sys.executable, REPOSITORY / "eval" / "generate_image.py", *arguments(tmp_path / "out")]
    flags = ["--lora_ckpt_path", "nowhere"]
    done = subprocess.run([*map(str, command), *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "seg2any.evaluation.generate_image: " in done.stderr and "nowhere" in done.stderr, (
        done.stderr
    )


def test_a_missing_config_is_reported(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        parse_request(["--output_path", "x"])
    assert "no CONFIG" in capsys.readouterr().err


def test_incomplete_folders_and_changed_data_are_not_measured(made: Path, tmp_path: Path):
    with pytest.raises(UserError, match="run.json"):
        Generated.read(tmp_path)
    run = json.loads((made / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run))
    data = ShapesDataset("test", 8)
    with pytest.raises(UserError, match="and 9 more"):
        Generated.read(tmp_path).check_complete(data)
    run["data"]["fingerprint"] = "0"
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="has changed since"):
        Generated.read(tmp_path).open_data()


def test_names_cannot_lead_out_of_the_folder():
    for key in ("../x", "/x", "a/../../x"):
        with pytest.raises(UserError, match="leads out of the folder"):
            image_path(Path("out"), 0, key, "png")
