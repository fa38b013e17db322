"""Check and time the attention backends and torch's kernels at full size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.joined import joined
from benchmarks.gpu.measure import Run, cudnn, ms, once, qkv, random_layout, say
from seg2any.attention.attend import BACKENDS, AttentionPlan
from seg2any.attention.kernels import masked_sdpa
from seg2any.attention.pattern import AttentionPattern
from seg2any.attention.settings import ConditionSettings

MOST_ERROR = 0.03  # relative to the norm; correct kernels stay below 0.01 in bf16
ORACLE_CASES = (  # mask method, weight between condition and image, batch size, regions
    ("hard", 1.0, 1, 5),
    ("hard", 1.0, 3, 9),
    ("base", 0.5, 2, 4),
    ("hard", 0.0, 1, 3),
    ("place", 1.0, 2, 3),
)
TORCH_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def oracle(on: Run) -> None:
    """Compare every backend with `dense`, forward and backward, on several layouts."""
    rng, began, worst = np.random.default_rng(0), time.perf_counter(), {}
    for method, weight, batch, n in ORACLE_CASES:
        settings = ConditionSettings(method, (0, 0), weight, cond_scale_factor=2)
        tokens, _ = random_layout(on, rng, n, batch, settings, side=256 if on.is_full else 128)
        plan = AttentionPlan(tokens, settings)
        for block in (0, 1):
            torch.manual_seed(1)
            inputs = qkv(on, batch, tokens.kind.shape[1], grad=True)
            truth = _outputs_and_gradients("dense", [x.float() for x in inputs], plan.pattern(block), inputs)
            for name in ("sdpa", "grouped", "flex", "auto"):
                if name == "grouped" and method == "place" or name == "flex" and on.device == "cpu":
                    continue
                if time.perf_counter() - began > on.seconds:
                    return say("oracle", stopped="out of time", worst=worst)
                for allowed in (True, False):
                    with cudnn(allowed):
                        found = _outputs_and_gradients(name, inputs, plan.pattern(block), inputs)
                    error = max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))
                    key = f"{name}{'/cudnn' if allowed else ''}"
                    worst[key] = max(worst.get(key, 0.0), error)
                    if not error < MOST_ERROR:
                        say("oracle", BAD=key, method=method, weight=weight, batch=batch, block=block, error=error)
    say("oracle", **worst)


def _outputs_and_gradients(
    backend: str, given: list[torch.Tensor], pattern: AttentionPattern, inputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the output, then the gradients of `inputs`, for a random gradient of the output."""
    out = BACKENDS[backend](*given, pattern)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return [x.detach().float() for x in (out, *torch.autograd.grad(out, inputs, seed))]


def kernels(on: Run) -> None:
    """Time one block with torch's kernels, with and without a mask, and with our backends."""
    for side in (1024, 512) if on.is_full else (128,):
        tokens, settings = random_layout(on, np.random.default_rng(0), 8, side=side)
        plan, length = AttentionPlan(tokens, settings), tokens.kind.shape[1]
        for block, kind in ((1, "SAA"), (0, "AIA")):
            for grad in (False, True):
                inputs = qkv(on, 1, length, grad)
                rows = _torch_kernels(on, inputs, plan.pattern(block), kind) | _backends(
                    on, inputs, plan.pattern(block)
                )
                say("kernels", side=side, block=kind, tokens=length, backward=grad, **rows)


def _torch_kernels(on: Run, inputs: list[torch.Tensor], pattern: AttentionPattern, kind: str) -> dict[str, float]:
    """Time torch's kernels in ms, with the whole mask and, for SAA only, without a mask."""
    heads_first, rows = [x.transpose(1, 2) for x in inputs], {}
    for name, backend in TORCH_KERNELS.items():
        for what, mask in (("open", None), ("whole_mask", pattern.mask(on.dtype, on.device))):
            if (what == "whole_mask" and name == "flash") or (what == "open" and kind == "AIA"):
                continue

            def work(mask=mask):
                return F.scaled_dot_product_attention(*heads_first, attn_mask=mask)

            with contextlib.suppress(RuntimeError), sdpa_kernel([backend]):  # not every kernel takes every shape
                rows[f"{name}_{what}"] = _timed(on, work, inputs)
    return rows


def _backends(on: Run, inputs: list[torch.Tensor], pattern: AttentionPattern) -> dict[str, float]:
    """Time the fused call with the whole mask and our backends in ms, with and without cuDNN."""
    mask, rows = pattern.mask(on.dtype, on.device), {}
    for allowed, suffix in ((True, "cudnn"), (False, "no_cudnn")):
        with cudnn(allowed):
            rows[f"whole_{suffix}"] = _timed(on, lambda: masked_sdpa(*inputs, mask), inputs)
            for name in ("sdpa", "grouped"):
                rows[f"{name}_{suffix}"] = _timed(on, lambda name=name: BACKENDS[name](*inputs, pattern), inputs)
    return rows


def _timed(on: Run, work: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> float:
    """Return milliseconds of `work`, with its backward pass if the inputs require gradients."""

    def run() -> None:
        out = work()
        if inputs[0].requires_grad:
            out.backward(torch.ones_like(out))

    return round(ms(on, run), 3)


def flex(on: Run) -> None:
    """Time the first (compiling) and later calls of backend `flex` on several layouts."""
    if on.device != "cuda":
        return say("flex", skipped="torch compiles it on CUDA only")
    rng = np.random.default_rng(0)
    for number, grad in ((0, False), (1, False), (0, True), (1, True), (2, True)):
        tokens, settings = random_layout(on, rng, 8)
        plan, length = AttentionPlan(tokens, settings), tokens.kind.shape[1]
        for block, kind in ((1, "SAA"), (0, "AIA")):
            inputs, pattern = qkv(on, 1, length, grad), plan.pattern(block)

            def run(inputs=inputs, pattern=pattern, grad=grad):
                out = BACKENDS["flex"](*inputs, pattern)
                if grad:
                    out.backward(torch.ones_like(out))

            first, then = once(on, run), ms(on, run)
            say("flex", layout=number, block=kind, tokens=length, backward=grad, first_ms=first, ms=then)


def merged(on: Run) -> None:
    """Time SAA computed by a few unmasked calls whose outputs are merged, and by `sdpa`."""
    tokens, settings = random_layout(on, np.random.default_rng(0), 8)
    pattern = AttentionPlan(tokens, settings).pattern(1)
    inputs = qkv(on, 1, tokens.kind.shape[1])
    attend, open_call, calls = joined(on, inputs, pattern)
    with torch.no_grad():
        expected = BACKENDS["sdpa"](*inputs, pattern).float()
        difference = float((attend().float() - expected).norm() / expected.norm())
        rows = {"merged": ms(on, attend), "open": ms(on, open_call)}
        for allowed in (True, False):
            with cudnn(allowed):
                name = "sdpa_cudnn" if allowed else "sdpa"
                rows[name] = ms(on, lambda: BACKENDS["sdpa"](*inputs, pattern))
    say("merged", tokens=tokens.kind.shape[1], difference=difference, **calls, **rows)


CHECKS = (kernels, merged, flex, oracle)
