"""The parity checks on golden sets whose names and settings differ from those of the first one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from seg2any.training import config
from tests.parity import data_sets, inventory, lora_keys, train
from tests.parity.train_run import Run
from tests.synthetic_data import Synthetic, make_ade20k, make_coco_stuff

SIZE = (32, 48)


def record(made: Synthetic, folder: Path) -> list[dict]:
    """Write photos, label maps and the drawn truth of a data set as a golden set does; return the items."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    Path(made.params["image_root"]).rename(folder / "images")
    Path(made.params["segm_root"]).rename(folder / "segm")
    items, tensors = [], {}
    for n, truth in enumerate(made.truths):
        image = (folder / "images").joinpath(truth.image.name)
        items.append({"idx": n, "s": 1, "image_name": image.name, "global_caption": None})
        items[-1]["regional_captions"] = list(truth.captions)
        tensors |= {f"{n}/label": nearest(truth.masks), f"{n}/pixel_values": stretched(image)}
        tensors[f"{n}/s1/cond_pixel_values_1ch"] = np.zeros((1, *SIZE), np.float32)
    (folder / "items.json").write_text(json.dumps({"resolution": SIZE, "items": items}))
    save_file(tensors, folder / "items.safetensors")
    return items


def nearest(masks: np.ndarray) -> np.ndarray:
    """Resize [N, H, W] as torch's nearest-exact does."""
    given = torch.from_numpy(masks.astype(np.float32))[None]
    return torch.nn.functional.interpolate(given, size=SIZE, mode="nearest-exact")[0].numpy().astype(np.uint8)


def stretched(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))
    unit = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    return (unit - np.float32(0.5)) / np.float32(0.5)


def write_run(root: Path, items: list[dict], batch: dict[str, np.ndarray]) -> None:
    """Write a recorded training batch, with paths of another machine in its config."""
    params = {"image_root": "/elsewhere/images", "segm_root": "segm", "resolution": SIZE[0]}
    section = {"target": "dataset.ade20k_dataset.ADE20KDataset", "params": params}
    index = {"cfg": {"data": {"train": section}}, "global_caption": None}
    index["image_names"] = [item["image_name"] for item in items]
    index["regional_captions"] = [item["regional_captions"] for item in items]
    run = root / "train" / "any_run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "index.json").write_text(json.dumps(index))
    save_file(batch, run / "batch.safetensors")


@pytest.mark.parametrize("make", [make_ade20k, make_coco_stuff])
def test_a_data_set_is_known_by_its_captions_not_by_its_folder(make, tmp_path: Path):
    folder = tmp_path / "contour" / "any_name"
    items = record(make(tmp_path / "made"), folder)
    checks = data_sets.cases(tmp_path)
    assert len(checks) == len(items) == 4
    for check in checks.values():
        check()


def test_a_caption_of_no_class_is_refused(tmp_path: Path):
    folder = tmp_path / "contour" / "any_name"
    items = record(make_ade20k(tmp_path / "made"), folder)
    items[2]["regional_captions"][0] = "a caption of no class"
    (folder / "items.json").write_text(json.dumps({"items": items}))
    with pytest.raises(AssertionError, match="any_name"):
        data_sets.cases(tmp_path)["any_name/2/s1"]()


def test_a_training_batch_is_found_among_data_sets_with_the_same_image_names(tmp_path: Path):
    first = make_ade20k(tmp_path / "made", seed=1)
    second = make_ade20k(tmp_path / "made too", seed=2)
    assert first.truths[-1].captions != second.truths[-1].captions
    for made, name in ((first, "a"), (second, "b")):
        items = record(made, tmp_path / "contour" / name)
    chosen = items[:-3:-1]
    masks = [nearest(second.truths[item["idx"]].masks) for item in chosen]
    photos = [stretched(tmp_path / "contour" / "b" / "images" / item["image_name"]) for item in chosen]
    batch = {f"label{n}": mask for n, mask in enumerate(masks)} | {"pixel_values": np.stack(photos)}
    write_run(tmp_path, chosen, batch)
    check = data_sets.cases(tmp_path)["train/any_run"]
    check()
    write_run(tmp_path, chosen, batch | {"label0": 1 - masks[0]})
    with pytest.raises(AssertionError):
        check()


def test_an_adapter_list_may_hold_config_rank_and_keys_only(tmp_path: Path):
    width, rank = 32, 3
    sizes = {"num_layers": 1, "num_single_layers": 0, "attention_head_dim": 8, "num_attention_heads": 4}
    shape = {"in_channels": 16, "joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": [2, 2, 4]}
    out = {"norm1.linear": 6, "attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "attn.to_out.0": 1}
    layers = {f"transformer_blocks.0.{name}": (width, n * width) for name, n in out.items()}
    layers["transformer_blocks.0.ff.net.0.proj"] = (width, 4 * width)
    layers["transformer_blocks.0.ff.net.2"] = (4 * width, width)
    layers["x_embedder"] = (16, width)
    keys = {f"transformer.{name}.lora_A.weight": [rank, n_in] for name, (n_in, _) in layers.items()}
    keys |= {f"transformer.{name}.lora_B.weight": [n_out, rank] for name, (_, n_out) in layers.items()}
    file = tmp_path / "lora_keys" / "small.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"config": sizes | shape, "rank": rank, "keys": {"cond": keys}}))
    (check,) = lora_keys.cases(tmp_path).values()
    check()
    keys["transformer.x_embedder.lora_A.weight"] = [rank + 1, 16]
    file.write_text(json.dumps({"config": sizes | shape, "rank": rank, "keys": {"cond": keys}}))
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("empty", ["", "{}"])
def test_an_empty_record_of_extras_asks_for_nothing(empty: str, tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "extra.json").write_text(empty)
    assert not train.cases(tmp_path) and not train.pending(tmp_path) and not inventory.units(tmp_path)
    (tmp_path / "train" / "extra.json").write_text('{"a new record": 1}')
    assert set(train.pending(tmp_path)) == {"extra/a new record"} and inventory.units(tmp_path) == ["train/extra"]


def test_the_recorded_weighting_scheme_weights_the_loss():
    """Compare with the mean of s^-2 |v - (e - x0)|^2, by hand."""
    torch.manual_seed(0)
    s, prediction, target = torch.tensor([0.5, 0.1]), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    names = ("fwd/hidden_states", "fwd/guidance")
    run = SimpleNamespace(batch={"fwd/timestep": s} | dict.fromkeys(names), target=lambda: target)
    run.weighting = Run.weighting.fget(SimpleNamespace(config=config.load(["--model.weighting_scheme=sigma_sqrt"])))
    condition = SimpleNamespace(text=None, pooled=None)
    loss, _ = Run.loss(run, lambda **_: (prediction,), condition)
    squares = (prediction - target).square().mean((1, 2))
    torch.testing.assert_close(loss, (4 * squares[0] + 100 * squares[1]) / 2)


def test_the_bound_of_adams_first_step_holds_and_scales_with_the_gradient():
    torch.manual_seed(0)
    gradient = torch.randn(1000) * torch.logspace(-12, 0, 1000)
    error = torch.tensor(1e-6)
    run = SimpleNamespace(config=config.load(["--trainer.learning_rate=1e-3"]))
    allowed = train.first_step_error(run, gradient, error)
    steps = []
    for g in (gradient, gradient + error * (torch.rand(1000) * 2 - 1)):
        parameter = torch.nn.Parameter(torch.zeros(1000))
        parameter.grad = g
        torch.optim.AdamW([parameter], lr=1e-3).step()
        steps.append(parameter.detach())
    off = (steps[0] - steps[1]).abs()
    assert (off <= allowed + 1e-9).all() and off.max() > 1e-4  # signs of tiny gradients are arbitrary
    assert allowed[gradient.abs() > 1e-2].max() < 1e-8
