"""Record what `tests.fake_cuda` launches, calls and keeps in memory, by transformer block."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from tests.tracked_memory import TrackedMemory


@dataclass(frozen=True)
class Kernel:
    """One launch on the GPU, or one copy from the host (`op` is "to_device").

    block     number of the transformer block that launched it, None outside all blocks
    shape     of the first result; `dtype` of the first result
    n_bytes   read and written
    is_cast   copies a CUDA tensor to another dtype
    """

    op: str
    block: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    n_bytes: int
    is_cast: bool = False


@dataclass(frozen=True)
class Call:
    """One call of an attention kernel.

    query, key  shapes [B, heads, L, d]
    kernel      "flash", "efficient" or "math"
    cudnn       whether torch may take cuDNN's attention instead, which it prefers on H100 and newer GPUs
    """

    block: int | None
    query: tuple[int, ...]
    key: tuple[int, ...]
    dtype: torch.dtype
    kernel: str
    cudnn: bool


class Trace:
    """The kernels launched inside a `with` block, under `FakeCuda`.

    model   a transformer of diffusers, whose blocks' numbers the kernels get; None: they get none
    kept    bytes by block that its forward pass made and left alive: its output, and what a backward pass needs
    peak    bytes of CUDA tensors alive at once that were made inside, at the worst moment; `now`: at this moment
    first   of the second step of an image: the trace of the first step
    """

    first: Trace

    def __init__(self, model: nn.Module | None = None):
        self.kernels: list[Kernel] = []
        self.calls: list[Call] = []
        self.block: int | None = None
        self.kept: Counter[int] = Counter()
        self._blocks, self._memory, self._hooks = _blocks(model), TrackedMemory(), []

    def __enter__(self) -> Trace:
        for number, block in enumerate(self._blocks):
            self._hooks += [
                block.register_forward_pre_hook(lambda *_, number=number: self._enters(number)),
                block.register_forward_hook(lambda *_: self._leaves()),
            ]
        ACTIVE.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        ACTIVE.remove(self)
        for hook in self._hooks:
            hook.remove()

    def _enters(self, block: int) -> None:
        self.block = block
        self.kept[block] -= self.now

    def _leaves(self) -> None:
        self.kept[self.block] += self.now
        self.block = None

    @property
    def peak(self) -> int:
        """Return the largest number of bytes alive at once."""
        return self._memory.peak

    @property
    def now(self) -> int:
        """Return the bytes still alive, such as those kept for a backward pass."""
        return self._memory.now

    def launches(self, block: int | None) -> int:
        """Count the launches of a block, or outside all blocks (None)."""
        return sum(kernel.block == block for kernel in self.kernels)

    def n_bytes(self, block: int | None) -> int:
        """Sum the bytes that the kernels of a block read and write."""
        return sum(kernel.n_bytes for kernel in self.kernels if kernel.block == block)

    def casts(self, block: int | None) -> list[Kernel]:
        """List the copies of a block to another dtype."""
        return [kernel for kernel in self.kernels if kernel.is_cast and kernel.block == block]

    def in_fp32(self) -> Counter[tuple[str, int]]:
        """Count kernels inside blocks, other than casts, that compute in fp32, by (operator, block)."""
        found = [kernel for kernel in self.kernels if kernel.dtype == torch.float32 and not kernel.is_cast]
        return Counter((kernel.op, kernel.block) for kernel in found if kernel.block is not None)

    def record(self, op: str, inputs: object, outputs: object, is_cast: bool = False) -> None:
        """Add a launch with its operands and results, which may be nested."""
        given, made = tensors(inputs), tensors(outputs)
        n_bytes = sum(x.numel() * x.element_size() for x in (*given, *made))
        shape, dtype = (tuple(made[0].shape), made[0].dtype) if made else ((), torch.float32)
        self.kernels.append(Kernel(op, self.block, shape, dtype, n_bytes, is_cast))

    def record_memory(self, inputs: object, outputs: object) -> None:
        """Add the storages of results that are no operand's storage."""
        self._memory.add(inputs, outputs)


ACTIVE: list[Trace] = []  # those whose `with` block is running


def _blocks(model: nn.Module | None) -> list[nn.Module]:
    return [] if model is None else [*model.transformer_blocks, *model.single_transformer_blocks]


def tensors(nested: object) -> list[torch.Tensor]:
    """List the tensors in nested lists, tuples and dicts."""
    return [x for x in tree_leaves(nested) if isinstance(x, torch.Tensor)]
