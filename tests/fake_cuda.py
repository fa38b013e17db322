"""Run real modules on CUDA tensors without numbers, on a machine without a GPU.

Tensors of device "cuda" are fake: they have a shape, a dtype and a device, but no numbers. CPU tensors stay real, so
tokens and attention patterns are computed as always. Autocast's rules are CUDA's own. Two operators are replaced,
since a CPU build of torch would take them apart: attention becomes torch's flash kernel, or the efficient kernel if
there is a mask, and RMS norm is one launch.

    with FakeCuda():
        model, inputs = flux_model(), flux_inputs(tokens, settings)  # of tests.fake_flux
        with torch.no_grad(), Trace(model) as trace:
            inputs.predict(model)
    assert trace.launches(block=1) <= 40

Raises HostSync where the host would wait for the GPU (`.item()`, `nonzero`, `unique`, `.cpu()`), and torch's
FakeTensorDeviceMismatchError where devices are mixed. Cannot run a backward pass, and does not measure time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.tracked_memory import TrackedMemory

CUDA_SLOT, LAZY_SLOT = 1, 17  # numbers of device types in torch's c10/core/DeviceType.h
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
MASK_ALIGNMENT = 8  # elements; the efficient kernel copies a mask with other strides
NO_LAUNCH = {"_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty", "device", "lift_fresh"}
NO_LAUNCH |= {"new_empty_strided", "resize_", "set_", "_reshape_alias", "_shape_as_tensor", "is_same_size"}


class HostSync(AssertionError):
    """An operator for which the host waits until the GPU has computed everything before it."""


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
        FakeCuda.current.traces.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        FakeCuda.current.traces.remove(self)
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
        given, made = _tensors(inputs), _tensors(outputs)
        n_bytes = sum(x.numel() * x.element_size() for x in (*given, *made))
        shape, dtype = (tuple(made[0].shape), made[0].dtype) if made else ((), torch.float32)
        self.kernels.append(Kernel(op, self.block, shape, dtype, n_bytes, is_cast))

    def record_memory(self, inputs: object, outputs: object) -> None:
        """Add the storages of results that are no operand's storage."""
        self._memory.add(inputs, outputs)


class FakeCuda(contextlib.ExitStack):
    """A context in which device "cuda" exists and holds tensors without numbers; see the module."""

    current: FakeCuda

    def __enter__(self) -> FakeCuda:
        super().__enter__()
        FakeCuda.current, self.traces, self.is_quiet = self, [], False
        self.enter_context(_device_guard())
        self.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        self.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
        self.fake = self.enter_context(FakeTensorMode())
        self.enter_context(_Operators(self))
        self.enter_context(_Functions(self))
        return self

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Run operators without recording them."""
        before, self.is_quiet = self.is_quiet, True
        try:
            yield
        finally:
            self.is_quiet = before


class _Operators(TorchDispatchMode):
    """Compute CPU tensors for real and CUDA tensors without numbers; record the latter."""

    def __init__(self, cuda: FakeCuda):
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not _is_on_cuda(args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name, _, _ = func.__name__.partition(".")
        args, kwargs = tree_map_only(torch.Tensor, self._faked, (args, kwargs))
        given = _tensors((args, kwargs))
        try:
            outputs = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostSync(f"{name} waits for the GPU") from error
        made = _tensors(outputs)
        if any(not x.is_cuda for x in made) or (name == "copy_" and not args[0].is_cuda):
            raise HostSync(f"{name} copies from the GPU and waits for it")
        if not self.cuda.is_quiet:
            self._record(func, name, given, made)
        return outputs

    def _faked(self, x: torch.Tensor) -> FakeTensor:
        return x if isinstance(x, FakeTensor) else self.cuda.fake.from_tensor(x)

    def _record(self, func, name: str, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        if func.is_view or name in NO_LAUNCH or not made:
            launch = None
        elif any(not x.is_cuda and x.ndim for x in given):
            launch = ("to_device", False)
        else:
            launch = (name, name in ("_to_copy", "copy_") and given[-1].dtype != made[0].dtype)
        for trace in self.cuda.traces:
            trace.record_memory(given, made)
            if launch:
                trace.record(launch[0], given, made, launch[1])


class _Functions(TorchFunctionMode):
    """Replace the two functions that a CPU build of torch takes apart."""

    def __init__(self, cuda: FakeCuda):
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        own = {F.scaled_dot_product_attention: self._attention, F.rms_norm: self._rms_norm}
        is_own = func in own and any(x.is_cuda for x in _tensors((args, kwargs)))
        return (own[func] if is_own else func)(*args, **kwargs)

    def _attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        given = [query, key, value, *([] if attn_mask is None else [attn_mask])]
        if torch.is_autocast_enabled("cuda"):
            given = [x.to(torch.get_autocast_dtype("cuda")) for x in given]
        query, key, value, *masks = given
        flags, is_16_bit = torch.backends.cuda, query.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast("cuda", enabled=False):
            if not masks and is_16_bit and flags.flash_sdp_enabled():
                kernel = "flash"
                output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]
            elif flags.mem_efficient_sdp_enabled():
                kernel, mask = "efficient", _aligned(masks[0]) if masks else None
                if mask is not None:
                    mask = mask.expand(*query.shape[:3], key.shape[2])
                logsumexp = torch.is_grad_enabled() and any(x.requires_grad for x in given)
                output = torch.ops.aten._scaled_dot_product_efficient_attention(
                    query, key, value, mask, logsumexp, scale=scale
                )[0]
            else:
                kernel = "math"
                output = F.scaled_dot_product_attention(query, key, value, *masks, scale=scale)
        cudnn = flags.cudnn_sdp_enabled() and is_16_bit
        for trace in self.cuda.traces:
            trace.calls.append(Call(trace.block, tuple(query.shape), tuple(key.shape), query.dtype, kernel, cudnn))
        return output

    def _rms_norm(self, input, normalized_shape, weight=None, eps=None):
        if torch.is_autocast_enabled("cuda"):  # its list of functions in fp32 has this one
            input, weight = input.float(), None if weight is None else weight.float()
        if weight is not None and weight.dtype != input.dtype:
            return F.rms_norm(input, normalized_shape, weight, eps)  # torch has no fused kernel for two dtypes
        with self.cuda.quiet(), torch.autocast("cuda", enabled=False):
            output = F.rms_norm(input, normalized_shape, weight, eps)
        for trace in self.cuda.traces:
            trace.record_memory((input, weight), output)
            trace.record("rms_norm", (input, weight), output)
        return output


def _blocks(model: nn.Module | None) -> list[nn.Module]:
    return [] if model is None else [*model.transformer_blocks, *model.single_transformer_blocks]


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """Copy a mask whose rows the efficient kernel cannot read, as torch does."""
    if all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1]):
        return mask
    return F.pad(mask, (0, -mask.shape[-1] % MASK_ALIGNMENT))[..., : mask.shape[-1]]


def _tensors(nested: object) -> list[torch.Tensor]:
    return [x for x in tree_leaves(nested) if isinstance(x, torch.Tensor)]


def _is_on_cuda(args: tuple, kwargs: dict) -> bool:
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
        return True
    return any(isinstance(x, FakeTensor) for x in _tensors((args, kwargs)))


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """Register a device guard for CUDA that does nothing, which autograd asks for its stream.

    torch has such a guard for CUDA builds without a GPU, and puts it in the place of one that counts no devices. A CPU
    build has none to replace, so that of lazy tensors stands in: without a backend it counts none.
    """
    library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so"))
    guards = (ctypes.c_void_p * (LAZY_SLOT + 1)).in_dll(library, GUARDS)
    before = guards[CUDA_SLOT]
    guards[CUDA_SLOT] = before or guards[LAZY_SLOT]
    torch._C._ensureCUDADeviceGuardSet()
    try:
        yield
    finally:
        guards[CUDA_SLOT] = before
