"""Keep freed memory in this process for the next step, on CPUs and on GPUs.

glibc returns freed memory to the system and takes it back page by page, which costs time in every block of a denoising
step on a CPU (`docs/performance.md`). torch's allocator for CUDA keeps blocks of the sizes that it was asked
for; every layout and every training step has another number of tokens, so blocks of many sizes pile up, unless its
segments can grow.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of mallopt in malloc.h
MOST_BYTES = 2**30  # larger allocations are few
# torch reads the first of these that is set.
ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory from now on.

    Returns whether the C library can: glibc can; those of macOS and Windows, and musl, cannot.

    The process then stays at the size of its peak, so programs call this and libraries do not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, MOST_BYTES) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)])


def let_segments_grow() -> None:
    """Give CUDA's allocator segments that grow; call it before torch is imported.

    Settings of the user stay as they are.
    """
    if not any(name in os.environ for name in ALLOCATOR_SETTINGS):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
