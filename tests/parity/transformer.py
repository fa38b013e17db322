"""Transformer, adapters and gradients against the recorded ones, on recorded weights."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from seg2any.attention import Attention, AttentionRules, additive_mask
from seg2any.condition import Condition
from seg2any.models.adapters import PREFIX, AdapterCard, add_adapters, load_adapters, save_adapters
from seg2any.models.transformer import Seg2AnyTransformer2DModel
from seg2any.tokens import SampleTokens, layout_tokens, token_coverage, token_masks

RELATIVE = 1e-5


def relative_error(ours: torch.Tensor, recorded: torch.Tensor) -> float:
    """Largest difference against the largest recorded value."""
    assert ours.shape == recorded.shape
    return ((ours.float() - recorded.float()).abs().max() / recorded.abs().max().clamp_min(1e-12)).item()


def expect_close(ours: torch.Tensor, recorded: torch.Tensor, what: str, tolerance: float = RELATIVE) -> None:
    error = relative_error(ours, recorded)
    assert error <= tolerance, f"{what}: relative error {error:.1e}, allowed {tolerance:.1e}"


class Run:
    """One folder transformer/<name>: index, recorded inputs, and the models that are made from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index = json.loads((folder / "index.json").read_text())
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")

    @functools.cached_property
    def noise(self) -> float:
        """How far stock diffusers is from the recording on this machine; on the recording one it was exactly 0.

        It comes from the last bit of float32 `exp` in the time embedding, which differs between CPUs and is then
        multiplied by a time of up to 1000. No implementation can be closer than this, and gradients amplify it.
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
        recorded_for = f"mask_{method}" if with_cond else "nocond"
        weight = next(value for key, value in weights.items() if recorded_for in key.split("/"))
        return Condition(
            prompt_embeds=self.inputs["encoder_hidden_states"],
            pooled_prompt_embeds=self.inputs["pooled_projections"],
            tokens=self.tokens(with_cond),
            rules=AttentionRules(method, tuple(self.index["hard_attn_block_range"]), weight),
            cond_hidden_states=self.inputs["cond_hidden_states"] if with_cond else None,
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
        if condition is None:
            return given | {"img_ids": self.inputs["img_ids"], "txt_ids": self.inputs["txt_ids"], "return_dict": False}
        return given | {"joint_attention_kwargs": {"condition": condition}, "return_dict": False}

    def forward(self, model: torch.nn.Module, name: str) -> torch.Tensor:
        """The forward pass recorded under `<cond|nocond>_<hard|base|place|nomask>`."""
        stream, method = name.split("_")
        condition = None if method == "nomask" else self.condition(method, stream == "cond")
        return model(**self.arguments(condition))[0]


read_run = functools.lru_cache(maxsize=2)(Run)


def check_masks(folder: Path) -> None:
    run = read_run(folder)
    recorded = {name: mask for name, mask in run.inputs.items() if name.startswith("mask_")}
    for name, mask in recorded.items():
        *_, method = name.split("_")
        condition = run.condition(method, "nocond" not in name)
        attention = Attention.ISOLATED if method == "hard" else Attention.SEMANTIC
        ours = additive_mask(condition.tokens, attention, condition.rules)[:, 0]
        assert torch.equal(ours, mask), f"{name}: {(ours != mask).sum()} entries differ"


def check_output(folder: Path, key: str) -> None:
    adapters, name = key.split("/")
    run = read_run(folder)
    with torch.no_grad():
        expect_close(
            run.forward(run.model(adapters == "lora"), name), run.outputs[key], key, max(RELATIVE, 3 * run.noise)
        )


def check_blocks(folder: Path) -> None:
    """Every block of lora/cond_hard: text, image and condition rows, padding included."""
    run = read_run(folder)
    model, seen = run.model(True), {}
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        for number, block in enumerate(getattr(model, stack)):
            block.register_forward_hook(lambda _, __, out, name=f"{stack}.{number}": seen.update({name: out}))
    with torch.no_grad():
        run.forward(model, "cond_hard")
    n_cond, expected = run.inputs["cond_hidden_states"].shape[1], {}
    for name, (text, image) in seen.items():
        parts = {"enc": text, "hid": image[:, :-n_cond], "cond": image[:, -n_cond:]}
        if name.startswith("single"):
            parts["hid"] = torch.cat([parts.pop("enc"), parts["hid"]], 1)
        expected |= {f"blocks/{name}/{part}": value for part, value in parts.items()}
    recorded = {key for key in run.outputs if key.startswith("blocks/")}
    assert recorded == set(expected)
    for key in recorded:
        expect_close(expected[key], run.outputs[key], key, max(RELATIVE, 3 * run.noise))


def check_gradients(folder: Path, checkpointing: bool) -> None:
    """d mean(output**2) / d LoRA of lora/cond_hard. Weights that cannot matter have a gradient of zero, not None, so
    weight decay and distributed reduction treat them like all others."""
    run = read_run(folder)
    model = run.model(True)
    if checkpointing:
        model.enable_gradient_checkpointing()
    run.forward(model.requires_grad_(True), "cond_hard").square().mean().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key, recorded in load_file(folder / "grads.safetensors").items():
        adapter, _, path = key.partition("/")
        grad = ours[path.removeprefix(PREFIX).replace(".weight", f".{adapter}.weight")]
        assert grad is not None, f"{key}: no gradient"
        if recorded.any():
            expect_close(grad, recorded, key, max(RELATIVE, 30 * run.noise))
        else:
            assert not grad.any(), f"{key}: expected a gradient of zero"


def check_without_condition(folder: Path) -> None:
    """Bit for bit the stock model, with and without `default`; `cond` has no say although it is loaded."""
    run = read_run(folder)
    stock = FluxTransformer2DModel.from_pretrained(folder / "transformer").eval()
    with torch.no_grad():
        assert torch.equal(run.forward(run.model(False), "nocond_nomask"), stock(**run.arguments(None))[0])
        weights = load_file(folder / "checkpoint" / "default" / "pytorch_lora_weights.safetensors")
        stock.load_lora_adapter(weights, adapter_name="default")
        expect_close(run.forward(run.model(True), "nocond_nomask"), stock(**run.arguments(None))[0], "default")


def check_saving(folder: Path) -> None:
    """Loaded and saved again, the files hold the same keys and values."""
    with tempfile.TemporaryDirectory() as saved:
        save_adapters(read_run(folder).model(True), saved, AdapterCard())
        for name in ("default", "cond"):
            file = f"{name}/pytorch_lora_weights.safetensors"
            ours, recorded = load_file(Path(saved) / file), load_file(folder / "checkpoint" / file)
            assert sorted(ours) == sorted(recorded)
            assert all(torch.equal(ours[key], recorded[key]) for key in ours)


def scalings(model: torch.nn.Module) -> dict[str, dict[str, float]]:
    return {name: dict(module.scaling) for name, module in model.named_modules() if hasattr(module, "scaling")}


def check_scale_bug(folder: Path) -> None:
    """The published code leaves every scale at 1 after a scaled call; here a call changes nothing."""
    bugs = read_run(folder).index["bugs_demo"]
    published = next(value for key, value in bugs.items() if "scale=" in key)
    assert published["call1_vs_call2"] > 0 and published["plain_call_after_vs_before"] > 0
    run, model = read_run(folder), read_run(folder).model(True)
    plain = run.arguments(run.condition("hard", True))
    scaled = plain | {"joint_attention_kwargs": plain["joint_attention_kwargs"] | {"scale": 0.5}}
    before = scalings(model)
    with torch.no_grad():
        first, half, again, last = (model(**kwargs)[0] for kwargs in (plain, scaled, scaled, plain))
    assert torch.equal(first, last) and torch.equal(half, again) and not torch.equal(first, half)
    assert scalings(model) == before


def check_alpha_bug(folder: Path) -> None:
    """alpha != rank: the published code drops it in the first call; here it acts on every adapter and stays."""
    bugs = read_run(folder).index["bugs_demo"]
    key, published = next((key, value) for key, value in bugs.items() if "alpha" in key)
    assert published["call1_vs_call2"] > 0
    alpha, rank = (int(number) for number in re.findall(r"=(\d+)", key))
    run = read_run(folder)
    model, twin = run.model(False), run.model(True)
    add_adapters(model, rank, alpha)
    model.load_state_dict(twin.state_dict())
    with torch.no_grad():
        first, second = (run.forward(model, "cond_hard") for _ in range(2))
        for module in twin.modules():
            if hasattr(module, "lora_B"):
                for up in module.lora_B.values():
                    up.weight.mul_(alpha / rank)
        expected = run.forward(twin, "cond_hard")
    assert torch.equal(first, second)
    expect_close(first, expected, "deltas scaled by alpha / rank")
    assert {scale for layer in scalings(model).values() for scale in layer.values()} == {alpha / rank}


def check_no_cond_tokens(folder: Path) -> None:
    """The published code crashes without any condition token; here only padding is left, and it changes nothing."""
    assert "Error" in read_run(folder).index["bugs_demo"]["zero cond tokens"]
    run = read_run(folder)
    model, without = run.model(True), run.condition("hard", False)
    lengths = [tuple(lengths) for lengths in run.index["txt_seq_lens"]]
    grid = tuple(run.index["tokens_hw"])
    samples = []
    for b, text_lengths in enumerate(lengths):
        masks = token_masks(run.inputs[f"label{b}"].bool().numpy(), grid)
        samples.append(SampleTokens(text_lengths[: len(masks) + 1], masks, run.inputs["cond_ids"][b, :0, 1:].numpy()))
    tokens = layout_tokens(samples)
    blank = Condition(
        without.prompt_embeds,
        without.pooled_prompt_embeds,
        tokens,
        without.rules,
        run.inputs["cond_hidden_states"][:, : tokens.n_cond] * 0,
    )
    with torch.no_grad():
        plain = run.forward(model, "nocond_hard")
        expect_close(model(**run.arguments(blank))[0], plain, "blank contour")


def cases(root: Path) -> dict[str, Callable[[], None]]:
    checks: dict[str, Callable[[], None]] = {}
    for index in sorted((root / "transformer").glob("*/index.json")):
        folder, name = index.parent, f"transformer/{index.parent.name}"
        outputs = [key for key in load_file(folder / "outputs.safetensors") if not key.startswith("blocks/")]
        checks |= {f"{name}/{key}": partial(check_output, folder, key) for key in sorted(outputs)}
        checks |= {
            f"{name}/masks": partial(check_masks, folder),
            f"{name}/blocks": partial(check_blocks, folder),
            f"{name}/grads": partial(check_gradients, folder, False),
            f"{name}/grads_checkpointing": partial(check_gradients, folder, True),
            f"{name}/saving": partial(check_saving, folder),
            f"{name}/without_condition": partial(check_without_condition, folder),
            f"{name}/bugs_demo/scale": partial(check_scale_bug, folder),
            f"{name}/bugs_demo/alpha": partial(check_alpha_bug, folder),
            f"{name}/bugs_demo/zero_cond_tokens": partial(check_no_cond_tokens, folder),
        }
    return checks
