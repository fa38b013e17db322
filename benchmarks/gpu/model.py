"""Time few blocks of FLUX's width: new layouts, launches, precision, adapters, compiling."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.clock import synchronise
from benchmarks.gpu.measure import Run, cudnn, ms, once, random_layout, resident_mib, say
from benchmarks.step_schemes import GUIDANCE, base_of
from seg2any.adapters.files import add_adapters, trainable_parameters
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import TokenLayout
from seg2any.bases.base import Condition
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel

TEXT_WIDTH, POOLED_WIDTH, CHANNELS = 256, 64, 64


def small_flux(on: Run, n_double: int = 1, n_single: int = 3, trained: bool = False) -> Seg2AnyTransformer2DModel:
    """Create a model with random weights and adapters.

    trained  keep the adapters trainable, in fp32
    """
    torch.manual_seed(0)
    torch.set_default_dtype(on.dtype)
    try:
        with torch.device(on.device):
            model = Seg2AnyTransformer2DModel(
                **{"num_layers": n_double, "num_single_layers": n_single, "guidance_embeds": True},
                **{"num_attention_heads": on.heads, "attention_head_dim": on.head_dim},
                **{"joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": POOLED_WIDTH},
                axes_dims_rope=(16, 56, 56) if on.is_full else (4, 6, 6),
            )
    finally:
        torch.set_default_dtype(torch.float32)
    add_adapters(model.requires_grad_(False), 64 if on.is_full else 4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.02
            if not trained:
                parameter.data = parameter.data.to(on.dtype)
                parameter.requires_grad_(False)
    if trained:
        trainable_parameters(model)
        model.enable_gradient_checkpointing()
        return model.train()
    return model.eval()


@dataclass(frozen=True)
class Inputs:
    """Inputs of one step: latents x [B, I, D], noise levels s [B] and the condition."""

    x: torch.Tensor
    s: torch.Tensor
    condition: Condition

    @classmethod
    def random(cls, on: Run, tokens: TokenLayout, settings: ConditionSettings, dtype: torch.dtype) -> Inputs:
        """Draw latents, text embeddings and contour latents for a token layout."""
        batch = len(tokens.kind)

        def tensor(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=on.device, dtype=dtype)

        text, pooled = tensor(batch, tokens.n_text, TEXT_WIDTH), tensor(batch, POOLED_WIDTH)
        condition = Condition(text, pooled, tokens, settings, tensor(batch, tokens.n_cond, CHANNELS))
        time = torch.full((batch,), 0.5, device=on.device, dtype=dtype)
        return cls(tensor(batch, tokens.n_image, CHANNELS), time, condition)

    def predict(self, model: Seg2AnyTransformer2DModel) -> torch.Tensor:
        """Predict the velocity [B, I, D]."""
        return base_of(model).velocity(self.x, self.s, self.condition, GUIDANCE)


def training_step(model: Seg2AnyTransformer2DModel, inputs: Inputs) -> torch.Tensor:
    """Run forward and backward; return the prediction [B, I, D]."""
    prediction = inputs.predict(model)
    prediction.float().square().mean().backward()
    model.zero_grad(set_to_none=True)
    return prediction.detach().float()


def layouts(on: Run) -> None:
    """Time the first and second step of every new layout, and count host memory per layout."""
    for trained in (False, True):
        model = small_flux(on, trained=trained)
        for allowed in (True, False):
            with cudnn(allowed):
                first, then, growth = _new_layouts(on, model, trained, seed=3 + allowed)
            numbers = {"first_ms": first, "second_ms": then, "rss_mb_per_layout": growth}
            say("layouts", training=trained, cudnn=allowed, blocks=4, **numbers)
        del model
        gc.collect()


def _new_layouts(on: Run, model: Seg2AnyTransformer2DModel, trained: bool, seed: int) -> tuple[float, float, float]:
    """Measure first and second steps in ms (medians), and MiB of host memory per layout."""
    rng, first, then, before = np.random.default_rng(seed), [], [], 0.0
    for number in range(6):
        tokens, settings = random_layout(on, rng, 6)
        inputs = Inputs.random(on, tokens, settings, on.dtype)
        for block in (0, 1):
            inputs.condition.plan.pattern(block)  # not part of a step: it is built once per image
        if number == 1:
            before = resident_mib()
        step = _training(model, inputs) if trained else _prediction(model, inputs)
        first.append(once(on, step))
        then.append(once(on, step))
    growth = (resident_mib() - before) / (len(first) - 1)
    return statistics.median(first[1:]), statistics.median(then[1:]), growth


def _training(model: Seg2AnyTransformer2DModel, inputs: Inputs) -> Callable[[], object]:
    return lambda: training_step(model, inputs)


def _prediction(model: Seg2AnyTransformer2DModel, inputs: Inputs) -> Callable[[], torch.Tensor]:
    return torch.no_grad()(lambda: inputs.predict(model))


def launches(on: Run) -> None:
    """Compare a step's time on GPU and host, to see if the GPU waits for Python."""
    model = small_flux(on)
    for side in (512, 1024) if on.is_full else (128,):
        tokens, settings = random_layout(on, np.random.default_rng(0), 8, side=side)
        work = _prediction(model, Inputs.random(on, tokens, settings, on.dtype))
        rows = {"step_ms": ms(on, work, 10), "host_ms": _host_ms(on, work)}
        if on.device == "cuda":
            rows |= _profile(side, work)
        say("launches", side=side, tokens=tokens.kind.shape[1], blocks=4, **rows)


def _host_ms(on: Run, work: Callable[[], object]) -> float:
    """Return median milliseconds until `work` returns, without waiting for the GPU."""
    hosts = []
    for _ in range(10):
        synchronise(on.device)  # behind a full queue the host would wait for the GPU
        began = time.perf_counter()
        work()
        hosts.append((time.perf_counter() - began) * 1e3)
    synchronise(on.device)
    return statistics.median(hosts)


def _profile(side: int, work: Callable[[], object]) -> dict[str, float]:
    """Print the eight longest kernels; return the GPU's busy ms and the number of kernels."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    kernels = [event for event in found.key_averages() if event.device_type.name == "CUDA"]
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:8]:
        say("launches", side=side, kernel=event.key[:70], calls=event.count, ms=event.self_device_time_total / 1e3)
    busy = sum(event.self_device_time_total for event in kernels) / 1e3
    return {"gpu_busy_ms": busy, "kernels": sum(event.count for event in kernels)}


def autocast(on: Run) -> None:
    """Time a training step as it is, and under autocast, which computes norms in fp32 on CUDA."""
    model = small_flux(on, trained=True)
    tokens, settings = random_layout(on, np.random.default_rng(0), 8)
    inputs, outputs = Inputs.random(on, tokens, settings, on.dtype), {}
    for enabled in (False, True):
        with torch.autocast(on.device, on.dtype, enabled=enabled):
            outputs[enabled] = training_step(model, inputs)
            if on.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            step = ms(on, _training(model, inputs))
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on.device == "cuda" else 0.0
        say("autocast", under_autocast=enabled, blocks=4, step_ms=step, working_mib=peak)
    difference = float((outputs[True] - outputs[False]).norm() / outputs[False].norm())
    say("autocast", difference_of_outputs=difference)


def low_rank(on: Run) -> None:
    """Time adding an adapter to a layer's output by a product and a sum, and by one `addmm_`."""
    width, rank = on.heads * on.head_dim, 64 if on.is_full else 4
    for side, rows in ((1024, 4336), (512, 1264)) if on.is_full else ((128, 64),):
        for out in (width, 4 * width):
            shapes = ((1, rows, width), (out, width), (rank, width), (out, rank))
            x, base, down, up = (torch.randn(shape, device=on.device, dtype=on.dtype) * 0.02 for shape in shapes)

            def plain(x=x, base=base) -> torch.Tensor:
                return F.linear(x, base)

            def summed(x=x, base=base, down=down, up=up) -> torch.Tensor:
                return F.linear(x, base).add_(F.linear(F.linear(x, down), up))

            def fused(x=x, base=base, down=down, up=up) -> torch.Tensor:
                y = F.linear(x, base)
                y[0].addmm_(F.linear(x[0], down), up.T)
                return y

            times = {f"{work.__name__}_ms": ms(on, work, 10) for work in (plain, summed, fused)}
            say("low_rank", side=side, out=out, **times, difference=float((summed() - fused()).abs().max()))


def compiled(on: Run) -> None:
    """Time compiled and eager blocks on three layouts, and print inductor's warnings.

    Inductor does not fuse the complex numbers of RoPE.
    """
    from torch._dynamo.utils import counters

    plain, model = small_flux(on, 1, 1), small_flux(on, 1, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.compile_repeated_blocks(dynamic=True)
        rng, rows = np.random.default_rng(0), []
        for _ in range(3):
            inputs = Inputs.random(on, *random_layout(on, rng, 6), on.dtype)
            step, eager = _prediction(model, inputs), _prediction(plain, inputs)
            first, expected = once(on, step), eager().float()
            difference = float((step().float() - expected).norm() / expected.norm())
            rows.append((round(first), round(ms(on, step), 2), round(ms(on, eager), 2), difference))
    said = {str(w.message).split(".")[0][:80] for w in caught if "nductor" in str(w.message)}
    say("compiled", first_compiled_eager_ms_difference=rows, graphs=counters["stats"].get("unique_graphs"), said=said)


CHECKS = (layouts, launches, autocast, low_rank, compiled)
