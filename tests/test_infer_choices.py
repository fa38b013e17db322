"""Settings that a run of `infer.py` chooses, and its messages when memory is short."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from infer import main
from seg2any.adapters.card import AdapterCard
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.generate.choices import (
    Machine,
    check_modes,
    choose_settings,
    explained_memory,
    shared_recipe,
    size_remarks,
)
from seg2any.generate.memory_modes import MEMORY_MODES
from seg2any.generate.model import known_model
from seg2any.generate.options import Options
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.recipe import differences, read_recipe
from seg2any.system.errors import UserError
from tests.infer_command import MODEL, command, infer, layout, three_layouts

pytestmark = pytest.mark.slow

ADAPTER = MODEL.parent / "lora"
CPU = Machine(torch.device("cpu"), torch.float32)
OPTIONS = Options(seg_mask_path=Path("x"))


def bytes_read() -> int:
    """Return how many bytes this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_layouts(tmp_path)


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

    def test_estimate_lists_the_peak_of_every_mode(self, folder: Path, tmp_path: Path):
        found = infer("--estimate", seg_mask_path=folder, output_path=tmp_path / "out", memory="fp8", batch_size=2)
        lines = found.stdout.splitlines()
        assert "in float32, 2 x 80x80, 2 regions" in lines[0], found.stderr
        rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
        assert list(rows) == list(MEMORY_MODES) and rows["fp8"][-1] == "chosen"
        for text, denoising, decoding, peak in (map(float, row[:4]) for row in rows.values()):
            assert peak == pytest.approx(max(text, denoising, decoding) + 1, abs=0.002)

    def test_estimate_knows_tiling_and_the_adapters_inside_of_a_folded_model(self, tmp_path: Path, monkeypatch, capsys):
        """Compare the estimates of a folded model and its unfolded original.

        Weights and adapters are the same; stacks of folded adapters are kept. No library prints anything.
        """
        pipe = Seg2AnyPipeline.from_pretrained(MODEL)
        pipe.load_adapters(str(ADAPTER))
        pipe.fold()
        pipe.save_pretrained(tmp_path / "folded")
        layout("a", side=512).write(tmp_path / "masks" / "a.json")

        def full(*arguments: str, **flags: object) -> list[float]:
            monkeypatch.setattr(
                sys, "argv", command("--estimate", *arguments, seg_mask_path=tmp_path / "masks", **flags)[1:]
            )
            capsys.readouterr()
            assert main() == 0
            found = capsys.readouterr()
            assert "warning" not in found.err.replace("warning: 512x512 is far from 256x256", "")
            (line,) = [line for line in found.out.splitlines() if line.split()[0] == "full"]
            return [float(word) for word in line.split()[1:5]]

        whole = full(lora_ckpt_path=ADAPTER)
        folded = full(pretrained_model_name_or_path=tmp_path / "folded")
        stacks = sum(file.stat().st_size for file in ADAPTER.rglob("*.safetensors")) / 2**30  # both are in fp32
        assert folded == pytest.approx([gib + stacks for gib in whole], abs=0.006)
        tiled = full("--vae_tiling", lora_ckpt_path=ADAPTER)
        assert tiled[:2] == whole[:2] and tiled[2] < 0.7 * whole[2]

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"memory": "offload"}, "--memory offload: moves weights between a GPU and the CPU"),
            ({"memory": "nf4"}, "--memory nf4 needs"),
        ],
    )
    def test_what_a_cpu_cannot_do_is_one_line(self, folder: Path, tmp_path: Path, call, flags, message):
        status, errors = call(seg_mask_path=folder, output_path=tmp_path / "out", **flags)
        assert status == 2 and f"infer.py: {message}" in errors and not (tmp_path / "out").exists()

    def test_a_step_cache_works_on_a_cpu(self, folder: Path, tmp_path: Path, call):
        status, errors = call(seg_mask_path=folder, output_path=tmp_path / "out", step_cache="mag")
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
            part = tmp_path / folder / "transformer"
            part.mkdir(exist_ok=True, parents=True)
            (part / "model.safetensors").write_bytes(weights)
            options = Options(seg_mask_path=Path("x"), pretrained_model_name_or_path=str(tmp_path / folder))
            return json.loads(json.dumps(shared_recipe(options, ConditionSettings(), CPU)))

        first = recipe("here", b"1")
        assert differences(first, recipe("there", b"1")) == []
        assert differences(first, recipe("here", b"2")) == ["model.fingerprint"]

        older = {**first, "model": {"path": "elsewhere", "sha256": hashlib.sha256(b"2").hexdigest()}}
        assert differences(older, recipe("here", b"2")) == []
        assert differences(older, recipe("there", b"1")) == ["model.sha256"]

    def test_a_recipe_reads_little_of_the_weights_that_decide_images_and_nothing_of_others(self, tmp_path: Path):
        """Change every file of a folded model; only the single-file copy of its weights does not count."""
        places = [tmp_path / name for name in ("transformer/model", "vae/model", "adapters/cond/lora", "single")]
        weights = {"weight": torch.zeros(1 << 22), "bias": torch.zeros(3)}
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights, f"{place}.safetensors")
        read = bytes_read()
        found = [known_model(str(tmp_path))]
        assert bytes_read() - read < 1 << 16
        for place in places:
            save_file({**weights, "weight": torch.ones(1 << 22)}, f"{place}.safetensors")
            found.append(known_model(str(tmp_path)))
        assert len({model["fingerprint"] for model in found}) == 4 and found[-1] == found[-2]

    def test_the_adapter_decides_and_the_command_line_overrides_with_a_warning(self):
        card = AdapterCard(condition=ConditionSettings(attention_mask_method="base", regional_max_sequence_length=10))
        settings, remarks = choose_settings(Options(seg_mask_path=Path("x")), card)
        assert (settings.attention_mask_method, settings.cond_scale_factor, settings.regional_max_sequence_length) == (
            "base",
            1,
            10,
        )
        assert remarks == []
        options = Options(Path("x"), settings={"attention_mask_method": "hard", "cond2image_attention_weight": 0.5})
        settings, remarks = choose_settings(options, card)
        assert settings.attention_mask_method == "hard" and settings.cond2image_attention_weight == 0.5
        assert remarks == ["attention_mask_method is hard, but the adapter was trained with base"]

    def test_published_checkpoints_get_the_published_settings(self):
        settings, remarks = choose_settings(
            Options(seg_mask_path=Path("x"), settings={"max_sequence_length": 99}), AdapterCard(assumed=True)
        )
        assert settings.hard_attn_block_range == (19, 37) and settings.cond_scale_factor == 2 and remarks == []

    def test_without_an_adapter_the_model_is_plain_unless_flags_say_otherwise(self):
        settings, remarks = choose_settings(Options(seg_mask_path=Path("x")), None)
        assert settings.is_plain and not settings.is_use_cond_token and remarks == []
        assert {settings.attention_of(block) for block in range(57)} == {Attention.FULL}
        options = Options(Path("x"), settings={"attention_mask_method": "base"})
        assert choose_settings(options, None)[0].attention_mask_method == "base"
        assert not choose_settings(Options(Path("x"), check=True), None)[0].is_plain, "a report shows the regions"

    def test_a_config_speaks_for_published_adapters_only(self):
        asked, base = Options(Path("x")), ConditionSettings(attention_mask_method="base")
        assert choose_settings(asked, AdapterCard(assumed=True), base)[0] == base
        assert choose_settings(asked, None, base)[0].is_plain
        assert choose_settings(asked, AdapterCard(condition=ConditionSettings()), base)[0] == ConditionSettings()

    @pytest.mark.parametrize(
        ("size", "nearest"),
        [
            ((600, 800), "--width 288 --height 224"),  # 4:3 with about 256 x 256 pixels
            ((1024, 1024), "--width 256 --height 256"),
            ((128, 128), "--width 256 --height 256"),
            ((640, 96), "--width 128 --height 512"),  # the pixels of training, but a side of 2.5 times its
            ((256, 256), None),
            ((192, 320), None),
            ((352, 352), None),
        ],
    )
    def test_sizes_far_from_training_are_named_with_the_nearest_that_works(self, size, nearest):
        card = AdapterCard(resolution=256)
        found = size_remarks([size, (256, 256), size], card, 16)
        assert len(found) == (nearest is not None)
        if nearest:
            assert nearest in found[0] and f"{size[1]}x{size[0]}" in found[0] and "256x256" in found[0]
            width, height = map(int, re.findall(r"--\w+ (\d+)", found[0]))
            assert size_remarks([(height, width)], card, 16) == [], "what is advised is not warned of"
        assert size_remarks([size], AdapterCard(resolution=256, assumed=True), 16) == []
        assert size_remarks([size], None, 16) == []

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory."),
            MemoryError(),
            RuntimeError("MPS backend out of memory (MPS ...)"),
        ]
        + [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")],
    )
    def test_out_of_memory_suggests_flags(self, error: Exception):
        options = Options(seg_mask_path=Path("x"), batch_size=4)
        with (
            pytest.raises(MemoryError, match=r"out of memory; turn on --batch_size 1 \(now 4\)"),
            explained_memory(options, ConditionSettings(), CPU),
        ):
            raise error

    def test_out_of_memory_suggests_no_flag_that_is_set_already(self):
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

    def test_other_errors_are_raised_unchanged(self):
        with pytest.raises(RuntimeError, match="shapes"), explained_memory(OPTIONS, ConditionSettings(), CPU):
            raise RuntimeError("shapes do not match")
