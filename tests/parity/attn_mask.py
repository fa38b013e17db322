"""Compare additive attention masks with the recorded ones, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.scenes import SampleTokens
from seg2any.attention.pattern import additive_mask
from seg2any.attention.settings import Attention, ConditionSettings
from seg2any.attention.tokens import TokenLayout, layout_tokens, token_coverage, token_masks

COMPRESSED = ".exp_u8"  # the ending of a mask that is stored as exp(mask)
RECORDED_AS = {"mask": Attention.SAA, "hard": Attention.AIA}


def read_masks(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a golden label picture of n stacked masks, [n*h, w] -> bool [n, h, w]."""
    return np.array(Image.open(path)).astype(bool).reshape(-1, *size)


def sample_tokens(masks: np.ndarray, grid: tuple[int, int], text_lengths: list[int], n_cond: int) -> SampleTokens:
    """Build one golden item; entries of `text_lengths` after the regions are recorded padding."""
    return SampleTokens(
        text_lengths=tuple(text_lengths[: len(masks) + 1]),
        masks=token_masks(masks, grid),
        cond_positions=np.zeros((n_cond, 2), int) if n_cond else None,
        coverage=token_coverage(masks, grid),
    )


def case_tokens(folder: Path, name: str, case: dict) -> TokenLayout:
    grid = tuple(case["tokens_hw"])
    items = [
        sample_tokens(read_masks(folder / f"{name}_label{b}.png", tuple(case["label_hw"])), grid, lengths, n_cond)
        for b, (lengths, n_cond) in enumerate(zip(case["txt_seq_lens"], case["cond_seq_lens"], strict=True))
    ]
    return layout_tokens(items)


def expect_mask(recorded: torch.Tensor, tokens: TokenLayout, attention: Attention, rules: ConditionSettings) -> None:
    ours = additive_mask(tokens, attention, rules)[:, 0]
    recorded = recorded.float().log() if recorded.dtype == torch.uint8 else recorded
    assert torch.equal(ours, recorded), f"{(ours != recorded).sum()} of {ours.numel()} entries differ"
    assert ours.isfinite().any(-1).all(), "a fully masked row"


def check_run(folder: Path, name: str, case: dict, run: dict) -> None:
    method, weight = run["key"].split("/")[1:]
    rules = ConditionSettings(attention_mask_method=method, cond2image_attention_weight=float(weight.removeprefix("w")))
    tokens = case_tokens(folder, name, case)
    if "error" in run:  # the published code fails here; ours must not
        assert additive_mask(tokens, Attention.SAA, rules).isfinite().any(-1).all()
        return
    masks = load_file(folder / "masks.safetensors")
    kinds = {kind for kind in RECORDED_AS if kind in run} | ({"mask"} if run.get("mask_equals_base") else set())
    for kind in kinds:
        base = kind == "mask" and run.get("mask_equals_base")
        key = f"{name}/{'base' if base else method}/{weight}/{kind}"
        recorded = masks[key] if key in masks else masks[key + COMPRESSED]
        expect_mask(recorded, tokens, RECORDED_AS[kind], rules)


def check_extra(folder: Path, key: str, index: dict) -> None:
    """Check `extra/<method>[_bf16]_w<weight>[/<kind>]`.

    The labels come from whichever case has a mask of that structure.
    """
    recorded = load_file(folder / "masks.safetensors")[key]
    recorded = recorded.float().log() if key.endswith(COMPRESSED) else recorded
    _, setting, *kinds = key.removesuffix(COMPRESSED).split("/")
    method, *_, weight = setting.split("_")
    kind = kinds[0] if kinds else "mask"
    rules = ConditionSettings(attention_mask_method=method, cond2image_attention_weight=float(weight.removeprefix("w")))
    for name, case in index["cases"].items():
        ours = additive_mask(case_tokens(folder, name, case), RECORDED_AS[kind], rules)[:, 0]
        if recorded.dtype == torch.bfloat16:  # the published code rounds the weight and then its logarithm
            ours = ours.exp().bfloat16().log()
        if ours.shape == recorded.shape and torch.equal(ours, recorded):
            return
    raise AssertionError("no recorded case gives this mask")


def cases(root: Path) -> dict[str, Callable[[], None]]:
    folder = root / "attn_mask"
    if not folder.is_dir():
        return {}
    index = json.loads((folder / "index.json").read_text())
    checks = {
        f"attn_mask/{run['key']}": partial(check_run, folder, name, case, run)
        for name, case in index["cases"].items()
        for run in case["runs"]
    }
    for key in load_file(folder / "masks.safetensors"):
        if key.startswith("extra/"):
            checks[f"attn_mask/{key}"] = partial(check_extra, folder, key, index)
    return checks
