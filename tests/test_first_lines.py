"""The first lines of a run say what it does, and its last line is a command that makes an image."""

from __future__ import annotations

import re
import shlex

import pytest
from PIL import Image
from safetensors import safe_open

from seg2any.commands import generate
from seg2any.generate.options import parse_options
from tests import tiny_run

pytestmark = pytest.mark.slow


def test_the_first_lines_count_and_the_last_makes_an_image(tiny_model, tmp_path, capsys):
    options = ("--trainer.max_train_steps=1", "--trainer.cache_latents=true", "--model.num_inference_steps=1")
    tiny_run.fit([*tiny_run.arguments(tiny_model, tmp_path), *options])
    told = capsys.readouterr().out
    said = dict(re.findall(r"^(processes|device|samples a step|steps|trained|memory|cached) {2,}(.+)$", told, re.M))

    assert said["processes"].startswith("1 (NO)") and said["device"] == "cpu, fp32"
    assert said["samples a step"] == "4 = 2 per process x 2 accumulated x 1 process"
    assert said["steps"] == "1; an epoch has 2 steps, 8 samples"  # 11 scenes: two groups of 4
    written = 0
    for file in (tmp_path / "run" / "checkpoint-1").glob("*/pytorch_lora_weights.safetensors"):
        with safe_open(file, "np") as adapters:
            written += sum(adapters.get_tensor(name).size for name in adapters.keys())  # noqa: SIM118
    assert said["trained"] == f"{written:,} parameters"
    assert re.search(r"\d GiB", said["memory"])
    assert said["cached"] == f"class names and latents, in {tmp_path / 'cache'}"

    program, script, *words = shlex.split(told.strip().splitlines()[-1])
    assert (program, script) == ("python", "infer.py")
    generate.run(parse_options([*words, "--device", "cpu"]))
    (image,) = (tmp_path / "run" / "images").glob("*.png")
    assert Image.open(image).size == (64, 64)
