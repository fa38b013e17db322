"""Compare transformer outputs, adapters and gradients with the recording."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from seg2any.adapters.files import PREFIX, AdapterCard, save_adapters
from seg2any.attention.pattern import additive_mask
from seg2any.attention.settings import Attention
from tests.parity.transformer_defects import check_alpha_bug, check_no_cond_tokens, check_scale_bug
from tests.parity.transformer_run import RELATIVE, expect_close, read_run


def check_masks(folder: Path) -> None:
    run = read_run(folder)
    recorded = {name: mask for name, mask in run.inputs.items() if name.startswith("mask_")}
    for name, mask in recorded.items():
        *_, method = name.split("_")
        condition = run.condition(method, "nocond" not in name)
        attention = Attention.AIA if method == "hard" else Attention.SAA
        ours = additive_mask(condition.tokens, attention, condition.settings)[:, 0]
        assert torch.equal(ours, mask), f"{name}: {(ours != mask).sum()} entries differ"


def check_output(folder: Path, key: str) -> None:
    adapters, name = key.split("/")
    run = read_run(folder)
    with torch.no_grad():
        expect_close(
            run.forward(run.model(adapters == "lora"), name), run.outputs[key], key, max(RELATIVE, 3 * run.noise)
        )


def check_blocks(folder: Path) -> None:
    """Compare every block of lora/cond_hard: text, image and condition rows, padding included."""
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
    """Compare d mean(output**2) / d LoRA of lora/cond_hard.

    Weights that cannot matter have a gradient of zero, not None, so weight decay and distributed reduction treat them
    like all others.
    """
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
    """Compare with the stock model bit for bit, with and without `default`.

    `cond` is loaded, but must not act.
    """
    run = read_run(folder)
    stock = FluxTransformer2DModel.from_pretrained(folder / "transformer").eval()
    with torch.no_grad():
        assert torch.equal(run.forward(run.model(False), "nocond_nomask"), stock(**run.arguments(None))[0])
        weights = load_file(folder / "checkpoint" / "default" / "pytorch_lora_weights.safetensors")
        stock.load_lora_adapter(weights, adapter_name="default")
        expect_close(run.forward(run.model(True), "nocond_nomask"), stock(**run.arguments(None))[0], "default")


def check_saving(folder: Path) -> None:
    """Load the files, save them again, and compare keys and values."""
    with tempfile.TemporaryDirectory() as saved:
        save_adapters(read_run(folder).model(True), saved, AdapterCard())
        for name in ("default", "cond"):
            file = f"{name}/pytorch_lora_weights.safetensors"
            ours, recorded = load_file(Path(saved) / file), load_file(folder / "checkpoint" / file)
            assert sorted(ours) == sorted(recorded)
            assert all(torch.equal(ours[key], recorded[key]) for key in ours)


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
