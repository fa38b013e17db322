"""The class of a processor and its kernels follow from what it reports."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from seg2any.attention import processor
from seg2any.attention.kernels import KERNELS
from seg2any.attention.processor import COSTS, Processor, costs_of, kernels_of, processor_of
from seg2any.generate.recipe import differences

INTEL, AMD = "vendor_id\t: GenuineIntel\nflags: fpu\n", "processor: 0\nvendor_id\t: AuthenticAMD\n"
BF16, AMX = {"avx512_bf16": True}, {"avx512_bf16": True, "amx_bf16": True, "amx_tile": True}


@pytest.mark.parametrize(
    ("vendor", "machine", "vector_units", "instructions", "expected"),
    [
        (INTEL, "x86_64", "AVX512", AMX, Processor.QUICK_FUSED),
        (INTEL, "x86_64", "AVX512", BF16, Processor.QUICK_FUSED),
        (INTEL, "x86_64", "AVX512", {}, Processor.FLOAT32),
        (AMD, "x86_64", "AVX512", BF16, Processor.SLOW_FUSED),
        (AMD, "x86_64", "AVX2", BF16, Processor.SLOW_FUSED),
        (AMD, "AMD64", "AVX2", {}, Processor.FLOAT32),
        (AMD, "x86_64", "DEFAULT", BF16, Processor.SCALAR),
        ("", "aarch64", "DEFAULT", {"bf16": True}, Processor.SLOW_FUSED),
        ("", "arm64", "DEFAULT", {}, Processor.FLOAT32),
    ],
)
def test_the_class_of_a_cpu(vendor, machine, vector_units, instructions, expected, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(vendor)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vector_units)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert processor_of.__wrapped__("cpu") is expected
    assert processor_of.__wrapped__("cuda") is Processor.GPU


def test_every_class_has_a_kernel_for_each_precision():
    assert set(COSTS) == set(itertools.product(Processor, ("16 bit", "32 bit")))
    assert {costs.kernel for costs in COSTS.values()} == set(KERNELS)


@pytest.mark.parametrize("forbidden", ["AVX2", "avx512_core"])
def test_bfloat16_that_onednn_may_not_use_is_no_fast_bfloat16(forbidden):
    """In a real process, since oneDNN reads the variable when it is loaded."""
    code = (
        "import json, torch; from seg2any.attention.processor import processor_of;"
        "from seg2any.system.precision import has_fast_bfloat16;"
        "print(json.dumps([has_fast_bfloat16('cpu'), processor_of('cpu').name]))"
    )
    around = {**os.environ, "ONEDNN_MAX_CPU_ISA": forbidden, "ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", code], env=around, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [False, "FLOAT32"]


def test_recipes_name_the_kernels_and_do_not_differ_by_them():
    here = kernels_of("cpu")
    assert processor_of("cpu").value in here and costs_of(torch.device("cpu"), torch.bfloat16).kernel in here
    old = {"seed": 1, "attention_kernels": here}
    assert differences(old, {"seed": 1, "attention_kernels": kernels_of("cuda")}) == differences({"seed": 1}, old) == []
