"""Examine the machine for `doctor`: device, memory, kernels, threads and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil

from seg2any.commands.finding import BAD, GOOD, POOR, Finding
from seg2any.system.cores import n_idle_cores, n_usable_cores
from seg2any.system.errors import UserError
from seg2any.system.threads import COUNT

GIB = 2**30
FLUX_GIB = 34  # of FLUX.1-dev in bf16: transformer 22, the large text encoder 9, the rest below 1, and room to unpack
# Memory of a GPU in GiB, at least -> the mode that FLUX.1-dev fits in at 1024 pixels; see docs on memory.
MODES = ((40, "full"), (26, "offload"), (16, "nf4"), (0, "group_offload"))
ROOM_GIB = 1  # for images and reports


def device(name: str | None) -> Finding:
    """Choose the device of a run, and its precision."""
    from seg2any.attention.processor import processor_of
    from seg2any.generate.choices import Machine
    from seg2any.system.device import choose_device
    from seg2any.system.precision import choose_dtype

    try:
        chosen = choose_device(name)
    except UserError as error:
        return Finding("device", BAD, str(error), "seg2any doctor")
    told = f"{Machine(chosen, choose_dtype(None, chosen))}: {processor_of(chosen.type).value}"
    if chosen.type == "cpu":
        return Finding("device", POOR, told, "enough for the embedded model; use a GPU for FLUX.1-dev")
    return Finding("device", GOOD, told)


def kernels(name: str | None) -> Finding:
    """Name the attention kernels that a device gets."""
    from seg2any.attention.processor import kernels_of
    from seg2any.system.device import choose_device

    try:
        return Finding("kernels", GOOD, f"attention: {kernels_of(choose_device(name))}")
    except UserError as error:
        return Finding("kernels", BAD, str(error), "seg2any doctor")


def memory(gpu_bytes: int | None = None, main_bytes: int | None = None) -> Finding:
    """Compare the memory with what FLUX.1-dev takes.

    gpu_bytes   of the GPU; None: ask it, if there is one
    main_bytes  of the machine; None: ask it
    """
    main = (psutil.virtual_memory().total if main_bytes is None else main_bytes) / GIB
    gpu = _gpu_bytes() if gpu_bytes is None else gpu_bytes
    told = f"{main:.0f} GiB" if not gpu else f"{gpu / GIB:.0f} GiB on the GPU, {main:.0f} GiB beside it"
    if main < FLUX_GIB:
        fix = f"FLUX.1-dev takes {FLUX_GIB} GiB while it is loaded; the embedded model takes less than 1"
        return Finding("memory", POOR, told, fix)
    mode = next(mode for least, mode in MODES if (gpu or main * GIB) / GIB >= least)
    if mode == "full":
        return Finding("memory", GOOD, told)
    return Finding("memory", POOR, told, f"use --memory {mode} for FLUX.1-dev; --estimate lists all modes")


def threads(environment: Mapping[str, str] = os.environ) -> Finding:
    """Compare the number of threads, and how they wait, with the cores that may be used."""
    usable, asked = n_usable_cores(), environment.get(COUNT)
    told = (
        f"{usable} cores, {n_idle_cores()} idle; {COUNT} {f'is {asked}' if asked else 'is not set: idle ones compute'}"
    )
    if asked and not (asked.isdecimal() and int(asked) > 0):
        return Finding("threads", BAD, told, f"unset {COUNT}")
    if asked and usable and int(asked) > usable:
        return Finding("threads", POOR, f"{told}: threads would wait for each other", f"unset {COUNT}")
    if environment.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        told = f"{told}; OMP_WAIT_POLICY is ACTIVE: waiting threads take cores from others"
        return Finding("threads", POOR, told, "unset OMP_WAIT_POLICY")
    return Finding("threads", GOOD, told)


def disk(place: Path, least_gib: float = ROOM_GIB, use: str = "images") -> Finding:
    """Compare the free space of a folder, or of the one that it will lie in, with what is needed there.

    use  what the space is for
    """
    here = next(one for one in (place, *place.absolute().parents) if one.exists())
    free = shutil.disk_usage(here).free / GIB
    told = f"{free:.0f} GiB free for {use} in {here}"
    if not os.access(here, os.W_OK):
        return Finding("disk", BAD, f"{here} cannot be written to", f"chmod u+w {here}, or choose another folder")
    if free < least_gib:
        return Finding("disk", POOR, told, f"{use} take {least_gib:.0f} GiB: free some, or choose another disk")
    return Finding("disk", GOOD, told)


def _gpu_bytes() -> int | None:
    import torch

    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
