"""The device of a process: chosen once, and CUDA's current one before anything is loaded."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline

from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.device import best_device, choose_device, device_name, make_current
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.training import accelerator
from seg2any.training.config import Config


@pytest.fixture
def calls(monkeypatch) -> list[object]:
    """Record what makes a device current, and what loads weights or starts processes."""
    made = []
    monkeypatch.setattr("torch.cuda.set_device", lambda device: made.append(torch.device(device)))
    return made


@pytest.fixture
def four_gpus(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: torch.device("cuda"))
    zeros = torch.zeros
    monkeypatch.setattr("torch.zeros", lambda *size, device=None: zeros(*size))  # the only use of the device in here


def test_every_process_has_a_gpu_of_its_own(four_gpus):
    names = [device_name(Process(i, 8, i % 4, 4), None) for i in range(8)]
    assert names == 2 * ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert device_name(Process(1, 2, 1, 2), "cuda") == "cuda:1"
    assert device_name(Process(), "cuda:1") == "cuda:1" and device_name(Process(), None) is None
    with pytest.raises(UserError, match="5 processes, but 4 GPUs"):
        device_name(Process(4, 5, 4, 5), None)
    with pytest.raises(UserError, match="--device cuda:1"):
        device_name(Process(0, 2, 0, 2), "cuda:1")


@pytest.mark.parametrize("count", [1, 2])
def test_a_launch_on_the_cpu_stays_there(four_gpus, count: int):
    process = Process.of({"RANK": "0", "WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"})
    assert device_name(process, None) == "cpu"
    assert device_name(Process(1, 2, 1, 2), "cpu") == "cpu"


def test_the_chosen_gpu_becomes_current(four_gpus, calls):
    assert choose_device(device_name(Process(6, 8, 2, 4), None)) == torch.device("cuda:2")
    assert calls == [torch.device("cuda:2")]


@pytest.mark.parametrize("name", ["cuda", "cpu", "meta"])
def test_a_device_without_a_number_changes_nothing(calls, name: str):
    make_current(torch.device(name))
    assert not calls


def test_without_a_gpu_every_build_of_torch_computes_on_the_cpu(monkeypatch):
    """A build for CUDA names its accelerator even where there is none, unless it is asked for an available one."""
    monkeypatch.setattr(
        "torch.accelerator.current_accelerator",
        lambda check_available=False: None if check_available else torch.device("cuda"),
    )
    assert best_device() == torch.device("cpu")


def test_the_pipeline_loads_onto_the_current_device(monkeypatch, calls):
    """bitsandbytes quantises on the current device, while the weights are loaded."""

    def load(cls, name, **options):
        calls.append("weights")
        return cls(*[None] * 7)

    monkeypatch.setattr(FluxPipeline, "from_pretrained", classmethod(load))
    monkeypatch.setattr("seg2any.generate.memory.check_bitsandbytes", lambda *_: None)
    monkeypatch.setattr("seg2any.generate.memory.place", lambda *_: calls.append("placed"))
    monkeypatch.setattr("seg2any.bases.flux1.pipeline.load_saved", lambda *_: None)
    monkeypatch.setattr(Seg2AnyPipeline, "NETWORKS", ())  # without files there is nothing to check
    Seg2AnyPipeline.from_pretrained("a/model", memory="nf4", device="cuda:3", dtype=torch.bfloat16)
    assert calls == [torch.device("cuda:3"), "weights", "placed"]


def test_training_makes_its_device_current(monkeypatch, calls):
    class Accelerator:
        device = torch.device("cuda:1")

        def __init__(self, **_: object):
            calls.append("processes")

    monkeypatch.setattr(accelerator, "Accelerator", Accelerator)
    accelerator.make_accelerator(Config())
    assert calls == ["processes", torch.device("cuda:1")]
