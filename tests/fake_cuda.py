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
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.fake_trace import ACTIVE, Call, tensors

CUDA_SLOT, LAZY_SLOT = 1, 17  # numbers of device types in torch's c10/core/DeviceType.h
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
MASK_ALIGNMENT = 8  # elements; the efficient kernel copies a mask with other strides
NO_LAUNCH = {"_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty", "device", "lift_fresh"}
NO_LAUNCH |= {"new_empty_strided", "resize_", "set_", "_reshape_alias", "_shape_as_tensor", "is_same_size"}


class HostSync(AssertionError):
    """An operator for which the host waits until the GPU has computed everything before it."""


class FakeCuda(contextlib.ExitStack):
    """A context in which device "cuda" exists and holds tensors without numbers; see the module."""

    def __enter__(self) -> FakeCuda:
        super().__enter__()
        self.is_quiet = False
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
        given = tensors((args, kwargs))
        try:
            outputs = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostSync(f"{name} waits for the GPU") from error
        made = tensors(outputs)
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
        for trace in ACTIVE:
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
        is_own = func in own and any(x.is_cuda for x in tensors((args, kwargs)))
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
        for trace in ACTIVE:
            trace.calls.append(Call(trace.block, tuple(query.shape), tuple(key.shape), query.dtype, kernel, cudnn))
        return output

    def _rms_norm(self, input, normalized_shape, weight=None, eps=None):
        if torch.is_autocast_enabled("cuda"):  # its list of functions in fp32 has this one
            input, weight = input.float(), None if weight is None else weight.float()
        if weight is not None and weight.dtype != input.dtype:
            return F.rms_norm(input, normalized_shape, weight, eps)  # torch has no fused kernel for two dtypes
        with self.cuda.quiet(), torch.autocast("cuda", enabled=False):
            output = F.rms_norm(input, normalized_shape, weight, eps)
        for trace in ACTIVE:
            trace.record_memory((input, weight), output)
            trace.record("rms_norm", (input, weight), output)
        return output


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """Copy a mask whose rows the efficient kernel cannot read, as torch does."""
    if all(stride % MASK_ALIGNMENT == 0 for stride in mask.stride()[:-1]):
        return mask
    return F.pad(mask, (0, -mask.shape[-1] % MASK_ALIGNMENT))[..., : mask.shape[-1]]


def _is_on_cuda(args: tuple, kwargs: dict) -> bool:
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
        return True
    return any(isinstance(x, FakeTensor) for x in tensors((args, kwargs)))


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
