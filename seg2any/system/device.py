"""Choose the one device of a process, and make it the current one before anything is loaded.

Libraries put what they allocate unasked on CUDA's current device: bitsandbytes its quantised weights, diffusers the
streams of group offloading, NCCL its buffers. It is GPU 0 in every process until one says otherwise. torch is imported
inside the functions, so that --help does not wait for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from seg2any.system.errors import UserError, shown
from seg2any.system.processes import Process

if TYPE_CHECKING:
    import torch


KINDS = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mtia", "xla")  # that may compute; torch knows which of them do


def best_device() -> torch.device:
    """Return the accelerator of this machine, else the CPU; torch's CUDA build runs on both."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory that tensors took on a device since the process began; None where nobody counts."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def total_bytes(device: torch.device) -> int | None:
    """Return the size of a device's memory, of the machine's where the device uses that; None where nobody counts."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total if device.type in ("cpu", "mps") else None


def device_name(process: Process, asked: str | None) -> str | None:
    """Return the value of --device for a process; of several, each has its own GPU.

    Raises UserError if there are fewer GPUs than processes, or if one GPU is named for all of them.
    """
    import torch

    if asked is None and process.is_on_cpu:
        return "cpu"
    if process.count == 1:
        return asked
    if asked is None and not torch.cuda.is_available():
        return None
    if asked is not None and asked.startswith("cuda:"):
        raise UserError(f"--device {asked}: all {process.count} processes would share it; leave --device out")
    n_gpus = torch.cuda.device_count()
    if asked in (None, "cuda") and process.local >= n_gpus:
        raise UserError(f"{process.local_count} processes, but {n_gpus} GPUs here; start one process for each GPU")
    return f"cuda:{process.local}" if asked in (None, "cuda") else asked


def check_device_name(name: str | None) -> None:
    """Raise UserError for a word that names no device, without asking torch."""
    if name is not None and not re.fullmatch(rf"({'|'.join(KINDS)})(:\d+)?", name):
        raise UserError(f"--device {name}: is no device; choose cuda, mps or cpu, or leave it out")


def choose_device(name: str | None) -> torch.device:
    """Return the named device if it is usable, else the best one present; make it current.

    Raises UserError.
    """
    import torch

    try:
        device = best_device() if name is None else torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch raises a different kind for every device that it cannot use
        reason = shown(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)
        raise UserError(
            f"--device {name}: cannot be used ({reason}); choose cuda, mps or cpu, or leave it out"
        ) from error
    make_current(device)
    return device


def make_current(device: torch.device) -> None:
    """Let libraries allocate on a CUDA device; one without a number is the current one already."""
    import torch

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
