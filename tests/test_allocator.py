"""Allocator settings: freed memory is reused, not requested from the system again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from seg2any.system import allocator
from tests.golden_root import REPOSITORY

# Allocate, write and free 24 MB 20 times: the size of a block's hidden tensor, and more than glibc keeps by default.
COUNT_FAULTS = """
import ctypes, resource, sys
sys.path.insert(0, {root!r})
from seg2any.system.allocator import keep_freed_memory

assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    pieces = [libc.malloc(12 << 20) for _ in range(2)]
    for piece in pieces:
        libc.memset(piece, 1, 12 << 20)
    for piece in pieces:
        libc.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def n_faults() -> int:
    program = COUNT_FAULTS.format(root=str(REPOSITORY))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_reused():
    once = 24 << 20 >> 12  # pages of 4 KiB
    assert n_faults() < 1.5 * once


def test_other_c_libraries_are_left_unconfigured(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
