"""Check that defects recorded on the published transformer are absent here."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from benchmarks.scenes import SampleTokens
from seg2any.adapters.files import add_adapters
from seg2any.attention.tokens import layout_tokens, token_masks
from seg2any.bases.base import Condition
from tests.parity.transformer_run import expect_close, read_run


def scalings(model: torch.nn.Module) -> dict[str, dict[str, float]]:
    return {name: dict(module.scaling) for name, module in model.named_modules() if hasattr(module, "scaling")}


def check_scale_bug(folder: Path, defect: str) -> None:
    """Check that a scaled call leaves the adapters' scales unchanged.

    The published code leaves every scale at 1 afterwards.
    """
    published = read_run(folder).index["bugs_demo"][defect]
    assert published["call1_vs_call2"] > 0 and published["plain_call_after_vs_before"] > 0
    run, model = read_run(folder), read_run(folder).model(True)
    plain = run.arguments(run.condition("hard", True))
    (scale,) = re.findall(r"scale=([0-9.]+)", defect)
    scaled = plain | {"joint_attention_kwargs": plain["joint_attention_kwargs"] | {"scale": float(scale)}}
    before = scalings(model)
    with torch.no_grad():
        first, less, again, last = (model(**kwargs)[0] for kwargs in (plain, scaled, scaled, plain))
    assert torch.equal(first, last) and torch.equal(less, again) and not torch.equal(first, less)
    assert scalings(model) == before


def check_alpha_bug(folder: Path, defect: str) -> None:
    """Check that alpha != rank acts on every adapter and stays.

    The published code drops it in the first call.
    """
    run = read_run(folder)
    assert run.index["bugs_demo"][defect]["call1_vs_call2"] > 0
    (alpha,), rank = re.findall(r"alpha=(\d+)", defect), run.index["lora_rank"]
    scale = int(alpha) / rank
    model, twin = run.model(False), run.model(True)
    add_adapters(model, rank, int(alpha))
    model.load_state_dict(twin.state_dict())
    with torch.no_grad():
        first, second = (run.forward(model, "cond_hard") for _ in range(2))
        for module in twin.modules():
            for name, up in getattr(module, "lora_B", {}).items():
                up.weight.mul_(scale / module.scaling[name])
        expected = run.forward(twin, "cond_hard")
    assert torch.equal(first, second)
    expect_close(first, expected, "deltas scaled by alpha / rank")
    assert {found for layer in scalings(model).values() for found in layer.values()} == {scale}


def check_no_cond_tokens(folder: Path, defect: str) -> None:
    """Check a batch without any condition token: only padding is left, and it changes nothing.

    The published code crashes.
    """
    run = read_run(folder)
    assert "Error" in run.index["bugs_demo"][defect]
    model, without = run.model(True), run.condition("hard", False)
    lengths = [tuple(lengths) for lengths in run.index["txt_seq_lens"]]
    grid = tuple(run.index["tokens_hw"])
    samples = []
    for b, text_lengths in enumerate(lengths):
        masks = token_masks(run.inputs[f"label{b}"].bool().numpy(), grid)
        samples.append(SampleTokens(text_lengths[: len(masks) + 1], masks, run.inputs["cond_ids"][b, :0, 1:].numpy()))
    tokens = layout_tokens(samples)
    blank = Condition(
        without.text,
        without.pooled,
        tokens,
        without.settings,
        run.inputs["cond_hidden_states"][:, : tokens.n_cond] * 0,
    )
    with torch.no_grad():
        plain = run.forward(model, "nocond_hard")
        expect_close(model(**run.arguments(blank))[0], plain, "blank contour")


DEFECTS = {"scale=": check_scale_bug, "alpha=": check_alpha_bug, "zero cond tokens": check_no_cond_tokens}
