"""A recorded transformer run, and our model and conditions for it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from benchmarks.scenes import SampleTokens
from seg2any.adapters.files import load_adapters
from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import layout_tokens, token_coverage, token_masks
from seg2any.bases.base import Condition
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel

RELATIVE = 1e-5


def relative_error(ours: torch.Tensor, recorded: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest recorded value."""
    assert ours.shape == recorded.shape
    return ((ours.float() - recorded.float()).abs().max() / recorded.abs().max().clamp_min(1e-12)).item()


def expect_close(ours: torch.Tensor, recorded: torch.Tensor, what: str, tolerance: float = RELATIVE) -> None:
    error = relative_error(ours, recorded)
    assert error <= tolerance, f"{what}: relative error {error:.1e}, allowed {tolerance:.1e}"


class Run:
    """One folder transformer/<name>: index, recorded inputs, and the models made from them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index = json.loads((folder / "index.json").read_text())
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")

    @functools.cached_property
    def noise(self) -> float:
        """Measure how far stock diffusers is from the recording on this machine.

        On the recording machine it was exactly 0. The difference comes from the last bit of float32 `exp` in the time
        embedding, which differs between CPUs and is then multiplied by a time of up to 1000. No implementation can be
        closer than this, and gradients amplify it.
        """
        stock = FluxTransformer2DModel.from_pretrained(self.folder / "transformer").eval()
        with torch.no_grad():
            return relative_error(stock(**self.arguments(None))[0], self.outputs["nolora/nocond_nomask"])

    def model(self, adapters: bool) -> Seg2AnyTransformer2DModel:
        model = Seg2AnyTransformer2DModel.from_pretrained(self.folder / "transformer").eval()
        if adapters:
            load_adapters(model, self.folder / "checkpoint")
        return model

    def condition(self, method: str, with_cond: bool) -> Condition:
        weights = self.index["cond2image_attention_weight"]
        if not isinstance(weights, dict):
            weights = {f"mask_{method}": weights}
        recorded_for = f"mask_{method}" if with_cond else "nocond"
        weight = next((value for key, value in weights.items() if recorded_for in key.split("/")), 1.0)
        return Condition(
            text=self.inputs["encoder_hidden_states"],
            pooled=self.inputs["pooled_projections"],
            tokens=self.tokens(with_cond),
            settings=ConditionSettings(method, tuple(self.index["hard_attn_block_range"]), weight),
            cond=self.inputs["cond_hidden_states"] if with_cond else None,
        )

    def tokens(self, with_cond: bool):
        grid = tuple(self.index["tokens_hw"])
        samples = []
        for b, (lengths, n_cond) in enumerate(
            zip(self.index["txt_seq_lens"], self.index["cond_seq_lens"], strict=True)
        ):
            masks = self.inputs[f"label{b}"].bool().numpy()
            samples.append(
                SampleTokens(
                    text_lengths=tuple(lengths[: len(masks) + 1]),
                    masks=token_masks(masks, grid),
                    cond_positions=self.inputs["cond_ids"][b, :n_cond, 1:].numpy() if with_cond else None,
                    coverage=token_coverage(masks, grid),
                )
            )
        return layout_tokens(samples)

    def arguments(self, condition: Condition | None) -> dict:
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")
        given = {name: self.inputs[name] for name in names if name in self.inputs}
        if not self.index["config"].get("guidance_embeds"):
            given.pop("guidance", None)
        if condition is None:
            return given | {"img_ids": self.inputs["img_ids"], "txt_ids": self.inputs["txt_ids"], "return_dict": False}
        return given | {"joint_attention_kwargs": {"condition": condition}, "return_dict": False}

    def forward(self, model: torch.nn.Module, name: str) -> torch.Tensor:
        """Run the forward pass recorded under `<cond|nocond>_<hard|base|place|nomask>`."""
        stream, method = name.split("_")
        condition = None if method == "nomask" else self.condition(method, stream == "cond")
        return model(**self.arguments(condition))[0]


read_run = functools.lru_cache(maxsize=2)(Run)
