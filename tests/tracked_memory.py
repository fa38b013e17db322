"""Measure peak tensor memory on any device, like `torch.cuda.max_memory_allocated`."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TrackedMemory(TorchDispatchMode):
    """Counts the bytes of storages that operators return while these are alive.

    `peak` is the maximum. Memory that a kernel allocates and frees internally is not counted.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.add((args, kwargs), outputs)
        return outputs

    def add(self, inputs: object, outputs: object) -> None:
        """Count the storages of an operator's results, nested or not, that no operand has."""
        known = {x.untyped_storage()._cdata for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), known)

    def _add(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key = storage._cdata
        if key in known or key in self._seen:
            return
        self._seen.add(key)
        self.now += (size := storage.nbytes())
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
