"""The stand-in for a GPU: what it counts, what it refuses, and that its autocast is CUDA's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from benchmarks.gpu.measure import Run, random_layout
from seg2any.attention.settings import ConditionSettings
from tests.fake_cuda import FakeCuda, HostSync
from tests.fake_flux import flux_inputs, flux_model, step
from tests.fake_trace import Trace

SYNCS = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: torch.unique(x),
    "boolean index": lambda x: x[x > 0],
    "cpu": lambda x: x.cpu(),
    "copy_": lambda x: torch.zeros(4, 64).copy_(x),
}


@pytest.mark.parametrize("name", SYNCS)
def test_waiting_for_the_gpu_is_refused(name):
    with FakeCuda():
        x = torch.zeros(4, 64).to("cuda")
        with pytest.raises(HostSync):
            SYNCS[name](x)


def test_devices_do_not_mix_and_cpu_tensors_keep_their_numbers():
    with FakeCuda():
        x, y = torch.arange(3.0), torch.arange(3.0).to("cuda")
        assert (x + 1).tolist() == [1, 2, 3] and (y + 1).device == torch.device("cuda:0")
        with pytest.raises(FakeTensorDeviceMismatchError):
            x + y


def test_autocast_follows_the_lists_of_cuda():
    with FakeCuda():
        x, weight = torch.zeros(2, 8, 64, device="cuda", dtype=torch.bfloat16), torch.zeros(64, 64, device="cuda")
        with torch.autocast("cuda", torch.bfloat16), Trace() as trace:
            assert F.linear(x.float(), weight.requires_grad_()).dtype == torch.bfloat16
            assert F.layer_norm(x, (64,)).dtype == F.rms_norm(x, (64,)).dtype == torch.float32
            assert x.softmax(-1).dtype == torch.float32
            query = x.float().unflatten(-1, (4, 16))
            assert F.scaled_dot_product_attention(query, query, query).dtype == torch.bfloat16
        assert F.layer_norm(x, (64,)).dtype == F.rms_norm(x, (64,)).dtype == torch.bfloat16
    assert [call.kernel for call in trace.calls] == ["flash"]


def test_launches_bytes_and_memory_of_three_operators():
    with FakeCuda():
        x, weight = (torch.zeros(128, 256, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        with Trace() as trace:
            y = F.rms_norm(x, (256,)).view(256, 128).T  # the views are no launches
            z = x @ y[:, :128].contiguous().T.expand(128, 128).repeat(2, 1) + 1
            del y
            z = z.float()
    one = 2 * 128 * 256
    assert [kernel.op for kernel in trace.kernels] == ["rms_norm", "clone", "repeat", "mm", "add", "_to_copy"]
    assert trace.kernels[0].n_bytes == 2 * one and trace.kernels[-1].n_bytes == 3 * 2 * 128 * 128
    assert [kernel.op for kernel in trace.casts(None)] == ["_to_copy"] and trace.now == 4 * 128 * 128
    assert weight.shape == x.shape


def test_a_mask_takes_the_efficient_kernel_and_copies_unaligned_rows():
    with FakeCuda():
        query = torch.zeros(2, 4, 100, 16, device="cuda", dtype=torch.bfloat16)
        mask = torch.zeros(2, 1, 100, 104, device="cuda", dtype=torch.bfloat16)[..., :100]
        with Trace() as trace:
            F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
            F.scaled_dot_product_attention(query, query, query, attn_mask=mask.contiguous())
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                F.scaled_dot_product_attention(query, query, query)
    assert [(call.kernel, call.cudnn) for call in trace.calls] == [
        ("efficient", True),
        ("efficient", True),
        ("flash", False),
    ]
    copies = [kernel.op for kernel in trace.kernels if "attention" not in kernel.op]
    assert copies == ["clone", "constant_pad_nd"]


def test_a_step_of_flux_in_16_bit():
    settings = ConditionSettings("hard", (1, 1), cond_scale_factor=2)
    tokens, _ = random_layout(Run.of("flux", "cpu"), np.random.default_rng(0), 8, settings=settings, side=512)
    with FakeCuda():
        trace = step(flux_model(), flux_inputs(tokens, settings))
    assert not trace.in_fp32() and {call.dtype for call in trace.calls} == {torch.bfloat16}
    assert {call.query[1:2] + call.query[3:] for call in trace.calls} == {(24, 128)}
    assert all(trace.launches(block) for block in (None, 0, 1, 2))
