"""Check the machine: versions, order of kernels, gradients through cuDNN, 8-bit layers."""

from __future__ import annotations

import math
import statistics

import torch
import torch.nn.functional as F

from benchmarks.gpu.measure import Run, cudnn, once, qkv, say


def env(on: Run) -> None:
    """Print versions, the GPU and the order in which torch tries its attention kernels."""
    say("env", torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    if on.device == "cuda":
        q = torch.randn(1, 2, 64, 64, device="cuda", dtype=torch.bfloat16)
        F.scaled_dot_product_attention(q, q, q)
        names = {int(v): k for k, v in torch.nn.attention.SDPBackend.__members__.items()}
        order = [names.get(int(i), i) for i in torch._C._get_sdp_priority_order()]
        free, total = torch.cuda.mem_get_info()
        say("env", gpu=torch.cuda.get_device_name(), capability=torch.cuda.get_device_capability(), order=order)
        say("env", free_gib=free / 2**30, total_gib=total / 2**30)
    import diffusers
    import peft
    import transformers

    say("env", diffusers=diffusers.__version__, peft=peft.__version__, transformers=transformers.__version__)


def new_shapes(on: Run) -> None:
    """Time the first and second attention call at new lengths, with and without cuDNN."""
    for allowed in (True, False):
        for masked in (False, True):
            for grad in (False, True):
                with cudnn(allowed):
                    first, then = _new_lengths(on, masked, grad, 8 if allowed else 0)
                say("new_shapes", cudnn=allowed, masked=masked, backward=grad, first_ms=first, next_ms=then)


def _new_lengths(on: Run, masked: bool, grad: bool, shift: int) -> tuple[float, float]:
    """Return median milliseconds of the first and second call at four lengths.

    shift  added to all lengths, so that another measurement has lengths of its own
    """
    base, first, then = 5000 if on.is_full else 200, [], []
    for step in range(5):
        length = base + 24 * step + shift
        q, k, v = (x.transpose(1, 2) for x in qkv(on, 1, length, grad))
        q = q[:, :, :512]
        mask = torch.zeros(1, 1, q.shape[2], length, dtype=on.dtype, device=on.device) if masked else None

        def work(q=q, k=k, v=v, mask=mask):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            if grad:
                out.backward(torch.ones_like(out))

        first.append(once(on, work))
        then.append(once(on, work))
    return statistics.median(first[1:]), statistics.median(then[1:])


def nan_repro(on: Run) -> None:
    """Count NaN gradients of a masked cuDNN call at length 64 modulo 128 (pytorch #196678)."""
    for allowed in (True, False):
        with cudnn(allowed):
            torch.manual_seed(0)
            n, d = 704, 64
            q, k = (torch.randn(1, 1, n, d, device=on.device, dtype=torch.bfloat16) * 0.1 for _ in range(2))
            v = torch.randn(1, 1, n, d, device=on.device, dtype=torch.bfloat16)
            q[..., 0], k[..., 0] = 1.0, -120 * math.sqrt(d)
            q.requires_grad_()
            mask = torch.zeros(1, 1, n, n, device=on.device, dtype=torch.bfloat16)
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
            say("nan_repro", cudnn=allowed, non_finite=int((~q.grad.isfinite()).sum()))


def int8_offload(on: Run) -> None:
    """Measure how much GPU memory 8-bit layers keep when their network is moved to the CPU."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        return say("int8_offload", skipped="no bitsandbytes")
    width = 4096 if on.is_full else 64
    network = torch.nn.Sequential(*(bnb.nn.Linear8bitLt(width, width, has_fp16_weights=False) for _ in range(4)))
    memory = (lambda: torch.cuda.memory_allocated() / 2**20) if on.device == "cuda" else (lambda: 0.0)
    start, rows = memory(), {}
    for name, device in (("loaded", on.device), ("sent_away", "cpu"), ("back", on.device)):
        network.to(device)
        rows[name] = memory() - start
    with torch.no_grad():
        network(torch.randn(8, width, device=on.device, dtype=torch.float16))
    network.to("cpu")
    rows["sent_away_after_use"] = memory() - start
    say("int8_offload", expected_mib=4 * width * width / 2**20, **rows)


CHECKS = (env, new_shapes, nan_repro, int8_offload)
