"""Benchmarks started through eval.sh, on small copies of the data with tiny models."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from seg2any.evaluation import generate_image
from seg2any.evaluation.generated import Generated
from seg2any.evaluation.judges import clip, deeplab, features, mask2former
from seg2any.evaluation.labels.label_maps import ClassTable, squashed
from seg2any.evaluation.report.results import Run, read_run
from seg2any.evaluation.runners import __main__ as runners
from seg2any.evaluation.runners.items import Benchmark
from seg2any.evaluation.runners.options import DEFAULTS, JUDGES, parse_options
from seg2any.segment import sam2
from seg2any.system.weights import file_digest
from tests.golden_root import REPOSITORY, golden_root
from tests.synthetic_data import Synthetic, make_ade20k, make_coco_stuff, make_sacap_1m
from tests.tiny_judges import save_judges

pytestmark = pytest.mark.slow

PIPELINE = golden_root() / "pipeline"
SAMPLES, GROUPS, SIDE = 2, 2, 64


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_judges(tmp_path_factory.mktemp("judges"))


def shell(out: Path, *arguments: object, judges: dict[str, Path] | None = None, **more: object):
    flags = " ".join(f"--{flag} {path}" for flag, path in (judges or {}).items())
    own = {"PYTHON": sys.executable, "MODEL": PIPELINE / "model", "LORA": PIPELINE / "checkpoint", "OUT": out}
    if judges and judges["inception"].is_file():
        own["INCEPTION_SHA256"] = file_digest(judges["inception"])
    own |= {"JUDGES": f"--device cpu {flags}", "HF_HUB_OFFLINE": 1, "OMP_NUM_THREADS": 1, **more}
    environment = {**os.environ, **{name: str(value) for name, value in own.items() if value is not None}}
    command = ["bash", str(REPOSITORY / "eval.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True, timeout=290)


def in_process(out: Path, name: str, *arguments: object, judges: dict[str, Path]) -> subprocess.CompletedProcess:
    """Call the two commands of a benchmark as eval.sh starts them, which saves seconds of imports for each."""
    known = {"INCEPTION_SHA256": file_digest(judges["inception"])} if judges["inception"].is_file() else {}
    places = ["--pretrained_model_name_or_path", PIPELINE / "model", "--lora_ckpt_path", PIPELINE / "checkpoint"]
    generating = [REPOSITORY / "config" / f"seg2any_{name}.yaml", *places, "--output_path", out, *arguments]
    measuring = [out, "--device", "cpu", *(word for flag, path in judges.items() for word in (f"--{flag}", path))]
    told, errors = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, known), redirect_stdout(told), redirect_stderr(errors):
        status = generate_image.main([*map(str, generating)]) or runners.main([*map(str, measuring)])
    return subprocess.CompletedProcess(generating, status, told.getvalue(), errors.getvalue())


def tiny(data: Synthetic, **flags: object) -> list[object]:
    """Return flags that make a benchmark small without changing what it measures."""
    flags = {"limit": SAMPLES, "num_inference_steps": 1, "batch_size": 4, "device": "cpu", **flags}
    own = {**data.params, "cache_root": "null"}  # the config's cache_root lies in the checkout
    params = [f"--data.val.params.{name}={value}" for name, value in own.items()]
    named = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [*named, f"--resolution={SIDE}", "--model.max_sequence_length=32", *params]


def checked(done: subprocess.CompletedProcess, out: Path, metrics: tuple[str, ...]) -> Run:
    """Check every file that a benchmark has to write, and return the evaluation."""
    assert done.returncode == 0, done.stderr[-3000:]
    run = read_run(out / "evaluation.json")
    assert run.settings["metrics"] == list(metrics) and len(run.hashes["data"]) == 64
    for row in run.rows:
        assert row.label in done.stdout
        assert np.isfinite(row.value)
        if row.low is not None:
            assert row.low <= row.value <= row.high
    page = (out / "evaluation.html").read_text()
    assert page.count("data:image/webp") >= SAMPLES * 4
    return run


@pytest.mark.parametrize(
    ("name", "make", "labelled", "start"),
    [
        ("ade20k", lambda root: make_ade20k(root, 4, "validation"), "mIoU", in_process),
        pytest.param(
            *("coco_stuff", lambda root: make_coco_stuff(root, 4, "val2017"), "mIoU", shell), marks=pytest.mark.long
        ),
    ],
)
def test_closed_set_benchmarks(name: str, make, labelled: str, start, tmp_path: Path, judges: dict[str, Path]):
    data, out = make(tmp_path), tmp_path / "out"
    done = start(out, name, *tiny(data, num_images_per_prompt=GROUPS), judges=judges)
    run = checked(done, out, DEFAULTS[name])
    assert {row.source for row in run.rows if row.name == labelled} == {
        *("generated", "real images", "grey images", "shuffled images")
    }
    assert {row.name for row in run.rows} == {"mIoU", "FID", "CMMD", "FDD", "seam score"}
    assert run.row(labelled).n == SAMPLES and len(run.row("FID").extra["groups"]) == GROUPS
    used = run.settings["settings"]
    assert (used["attention_mask_method"], used["regional_max_sequence_length"]) == ("base", 10)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["evaluation_pictures", "group_0", "group_1"]
    assert len(list((out / "group_1").iterdir())) == SAMPLES


def test_sacap_in_two_processes(tmp_path: Path, judges: dict[str, Path]):
    data, out = make_sacap_1m(tmp_path, 4, groups=0), tmp_path / "out"
    more = ["--model.hard_attn_block_range=[2,4]"]
    done = shell(out, "sacap", *tiny(data), *more, judges=judges, PROCESSES=2)
    assert "process 2 of 2" in done.stdout, done.stderr[-3000:]
    run = checked(done, out, DEFAULTS["sacap_1m"])
    label = "class-agnostic mIoU"
    assert {row.source for row in run.rows if row.name == label} == {
        *("generated", "real images", "grey images", "shuffled images")
    }
    assert {"CLIP score", "FID", "caption leak", f"{label}, outlines"} <= {row.name for row in run.rows}
    for source in ("real images", "shuffled images"):
        assert run.row("CLIP score", source).n == SAMPLES and run.row("caption leak", source)
    assert run.settings["settings"]["hard_attn_block_range"] == [2, 4]


def test_shapes(tmp_path: Path):
    out = tmp_path / "out"
    done = shell(out, "shapes", "--limit", 2, "--judged", 1, "--num_inference_steps", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("normal", "crowded"):
        run = read_run(out / f"{kind}.json")
        sources = {row.source for row in run.rows}
        assert "rendered (ceiling)" in sources and "grey image (floor)" in sources and len(sources) == 5
        assert run.row("IoU").low <= run.row("IoU").value <= run.row("IoU").high
        assert (out / f"{kind}.html").is_file() and f"{kind}: 2 unseen scenes" in done.stdout
    assert read_run(out / "judges.json").row("pixels, absolute error", "as asked").n == 1
    assert "errors of the judges" in done.stdout and "pixels       as asked" in done.stdout
    assert "attention    not measured" in done.stdout
    assert "generated, 95 %" in done.stdout and "[" in done.stdout and "bars, on the normal scenes" in done.stdout
    assert "masks -> image -> masks" in done.stdout and "the judge" in done.stdout and "off the judge by" in done.stdout


def test_missing_judges_are_listed_together_before_anything_is_measured(tmp_path: Path):
    data, out = make_ade20k(tmp_path, 4, "validation"), tmp_path / "out"
    nowhere = {flag: tmp_path / "nowhere" / flag for flag in JUDGES}
    done = in_process(out, "ade20k", *tiny(data, limit=1), "--num_images_per_prompt", 1, judges=nowhere)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("seg2any.evaluation.runners: ")]
    assert len(told) == 4 and all("download" in line for line in told), told
    assert not (out / "evaluation.json").exists()


def test_wrong_calls_are_one_line(tmp_path: Path):
    done = shell(tmp_path / "out", "imagenet")
    assert done.returncode == 2 and done.stderr == (
        "eval.sh: imagenet is not a benchmark; choose ade20k, coco_stuff, sacap, overlaybench, sa_z, coco_mig, shapes, "
        "shapes_masks, shapes_coloring, NAME_points, xsam_NAME, voc20, coco_object, pc59, ade150 or cityscapes\n"
    )
    done = shell(tmp_path / "out", "ade20k", LORA="")
    assert done.returncode == 2 and done.stderr.startswith("eval.sh: LORA is not set") and not done.stdout
    assert "bash eval.sh shapes" in shell(tmp_path / "out", "--help").stdout


def started(folder: Path, *arguments: object, **more: object) -> list[str]:
    """Return the command lines that eval.sh starts."""
    stub, notes = folder / "python", folder / "notes"
    stub.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> "$NOTES"\n[ "$1" != -c ] || exec "$REAL" "$@"\n')
    stub.chmod(0o755)
    done = shell(folder / "out", *arguments, PYTHON=stub, NOTES=notes, REAL=sys.executable, **more)
    assert done.returncode == 0, done.stderr
    return notes.read_text().splitlines()


def test_each_benchmark_starts_its_commands(tmp_path: Path):
    places = f"--pretrained_model_name_or_path {PIPELINE / 'model'} --lora_ckpt_path {PIPELINE / 'checkpoint'}"
    out = tmp_path / "out"
    for name, config, images in (("ade20k", "ade20k", 4), ("coco_stuff", "coco_stuff", 4), ("sacap", "sacap_1m", 1)):
        generating, measuring = started(tmp_path, name, "--limit", 3)[-2:]
        assert generating == (
            f"-m seg2any.evaluation.generate_image config/seg2any_{config}.yaml {places} --output_path {out} "
            f"--num_images_per_prompt {images} --limit 3"
        )
        assert measuring == f"-m seg2any evaluate measure {out} --device cpu"
    *_, drawn, found = started(tmp_path, "shapes", "--limit", 3)
    own = f"--model {PIPELINE / 'model'} --output {out}"
    assert drawn == f"-m seg2any.evaluation.shapes {own} --lora {PIPELINE / 'checkpoint'} --limit 3"
    assert found.startswith(f"-m seg2any.evaluation.shapes.segmenters {own}")
    (*_, masks) = started(tmp_path, "shapes_masks", "--limit", 3)
    assert masks == f"-m seg2any.evaluation.shapes.masks --model {PIPELINE / 'model'} --limit 3"


def test_several_processes_meet_without_a_port_that_unpickles(tmp_path: Path):
    """The rendezvous of --standalone unpickles a key that anybody who reaches its port may set; static ones do not."""
    lines = started(tmp_path, "sacap", PROCESSES=2)
    (launch,) = (line for line in lines if "torch.distributed.run" in line)
    assert "--rdzv_backend static --master_addr 127.0.0.1 --master_port " in launch and "--standalone" not in launch
    port = int(launch.split("--master_port ")[1].split()[0])
    assert 1024 < port < 65536 and "--nproc_per_node 2 -m seg2any.evaluation.generate_image" in launch


def stretched(labels: np.ndarray) -> np.ndarray:
    rows, columns = (np.floor((np.arange(SIDE) + 0.5) * edge / SIDE).astype(int) for edge in labels.shape)
    return labels[rows][:, columns]


@pytest.mark.parametrize(("name", "make"), [("ade20k", make_ade20k), ("coco_stuff", make_coco_stuff)])
def test_items_have_the_labels_of_their_files(name: str, make, tmp_path: Path):
    """Use images painted by hand in place of generated ones."""
    data = make(tmp_path, 3)
    keys = [truth.key for truth in data.truths]
    benchmark = painted(tmp_path / "out", name, data, keys)
    found = list(benchmark.images())
    assert [(item.group, item.key) for item in found] == [(group, key) for group in range(2) for key in keys]
    for item in found:
        assert (item.image == 100 * item.group + keys.index(item.key)).all()
        truth = data.truths[keys.index(item.key)]
        expected = np.full(truth.masks.shape[1:], 255)
        for mask, caption in zip(truth.masks, truth.captions, strict=True):
            names = ClassTable.of(name).names
            assert caption in names
            expected[mask] = benchmark.table.names.index(caption)
        shown = stretched(expected)
        same = [benchmark.table.names[a] == benchmark.table.names[b] for a, b in pairs(item.labels, shown)]
        assert all(same) and ((item.labels == 255) == (shown == 255)).all()
    photos = list(benchmark.real())
    assert [item.key for item in photos] == keys and photos[0].image.shape[:2] == data.truths[0].masks.shape[1:]
    bounds = {source: list(items) for source, items in benchmark.bounds().items()}
    assert set(bounds) == {"real images", "grey images", "shuffled images"}
    own = {item.key: item.labels for item in found}
    assert all((item.labels == own[item.key]).all() for items in bounds.values() for item in items)
    assert (bounds["grey images"][0].image == 128).all() and bounds["real images"][0].image.shape == (SIDE, SIDE, 3)


def pairs(found: np.ndarray, expected: np.ndarray) -> set[tuple[int, int]]:
    known = (found != 255) & (expected != 255)
    return set(zip(found[known].tolist(), expected[known].tolist(), strict=True))


def painted(folder: Path, name: str, data: Synthetic, keys: list[str]) -> Benchmark:
    from seg2any.data.catalog import open_data_set
    from seg2any.evaluation.generated import write_run

    opened = open_data_set(name, data.params)
    for group in range(2):
        (folder / f"group_{group}").mkdir(parents=True)
        for number, key in enumerate(keys):
            tone = np.full((SIDE, SIDE, 3), 100 * group + number, np.uint8)
            Image.fromarray(tone).save(folder / f"group_{group}" / f"{key}.png")
    told = {"type": name, "params": data.params, "fingerprint": opened.fingerprint()}
    run = {"data": told, "samples": len(keys), "groups": 2, "format": "png", "size": [SIDE, SIDE], "recipe": {}}
    write_run(folder, run, overwrite=False)
    return Benchmark.open(Generated.read(folder))


def test_squashing_agrees_with_the_images_own_stretching():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (squashed(labels, (SIDE, SIDE)) == stretched(labels)).all()


def test_options_have_a_judge_for_every_metric():
    options = parse_options(["x"])
    assert Path(options.judges["deeplab"]).name == deeplab.SOURCE.rsplit("/", 1)[1]  # the name of the downloaded file
    assert Path(options.judges["inception"]).name == features.INCEPTION_SOURCE.rsplit("/", 1)[1]
    sources = (("clip", clip.SOURCE), ("cmmd_clip", features.CMMD_SOURCE), ("dinov2", features.DINOV2_SOURCE))
    for flag, source in (*sources, ("mask2former", mask2former.SOURCE), ("sam2", sam2.SOURCE)):
        assert options.judges[flag] == source
    assert options.output == Path("x/evaluation.json") and set(options.judges) == {*JUDGES, "segmenter", "vqa_mode"}
    with pytest.raises(SystemExit, match="2"):
        parse_options(["x", "--metrics", "beauty"])
