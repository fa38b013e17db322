"""Compare transformer outputs, adapters and gradients with the recording."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file

from seg2any.adapters.files import PREFIX, AdapterCard, save_adapters
from seg2any.attention.pattern import additive_mask
from seg2any.attention.settings import Attention
from tests.parity.transformer_defects import DEFECTS
from tests.parity.transformer_run import RELATIVE, expect_close, read_run

ROUNDING = 1e-7  # of the largest gradient


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
    loss = run.forward(model.requires_grad_(True), "cond_hard").square().mean()
    loss.backward()
    allowed = max(RELATIVE, 30 * run.noise)
    if "loss_mean_square" in run.index:
        expect_close(loss, torch.tensor(run.index["loss_mean_square"]), "loss", allowed)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = load_file(folder / "grads.safetensors")
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, recorded in gradients.items():
        adapter, _, path = key.partition("/")
        grad = ours[path.removeprefix(PREFIX).replace(".weight", f".{adapter}.weight")]
        assert grad is not None, f"{key}: no gradient"
        if recorded.any():
            # A small gradient carries the rounding error of the large ones.
            expect_close(grad, recorded, key, allowed + ROUNDING * largest / recorded.abs().max().item())
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
    for folder in _runs(root):
        name, outputs = f"transformer/{folder.name}", _outputs(folder)
        checks |= {f"{name}/{key}": partial(check_output, folder, key) for key in sorted(outputs)}
        checks |= {
            f"{name}/masks": partial(check_masks, folder),
            f"{name}/saving": partial(check_saving, folder),
            f"{name}/without_condition": partial(check_without_condition, folder),
        }
        if "lora/cond_hard" in outputs:
            checks[f"{name}/blocks"] = partial(check_blocks, folder)
        if (folder / "grads.safetensors").exists():
            checks[f"{name}/grads"] = partial(check_gradients, folder, False)
            checks[f"{name}/grads_checkpointing"] = partial(check_gradients, folder, True)
        for defect in _defects(folder):
            if check := _check_of(defect):
                checks[f"{name}/bugs_demo/{defect}"] = partial(check, folder, defect)
    return checks


def pending(root: Path) -> dict[str, str]:
    """List what a run lacks, and recorded defects that no check here covers."""
    found = {}
    for folder in _runs(root):
        name = f"transformer/{folder.name}"
        if "lora/cond_hard" not in _outputs(folder):
            found[f"{name}/blocks"] = "the set has no outputs of lora/cond_hard"
        if not (folder / "grads.safetensors").exists():
            found[f"{name}/grads"] = "the set has no gradients"
        unknown = [defect for defect in _defects(folder) if not _check_of(defect)]
        found |= {f"{name}/bugs_demo/{defect}": "a new kind of defect" for defect in unknown}
    return found


def _runs(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("transformer/*/index.json"))


def _outputs(folder: Path) -> list[str]:
    with safe_open(folder / "outputs.safetensors", "pt") as outputs:
        return [key for key in outputs.keys() if not key.startswith("blocks/")]  # noqa: SIM118 (not a dict)


def _defects(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text()).get("bugs_demo", {})


def _check_of(defect: str) -> Callable[[Path, str], None] | None:
    return next((check for words, check in DEFECTS.items() if words in defect), None)
