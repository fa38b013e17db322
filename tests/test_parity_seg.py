"""Every case recorded from published methods that find masks in images, one test each.

Arrays are in NAME.safetensors as `case/tensor`, parameters in cases.json. A case without a check fails.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from safetensors import safe_open
from torch.testing import assert_close

from seg2any.adapters.routing import Rows
from seg2any.attention.attend import attention_weights
from seg2any.bases.flux1.base import Flux1
from seg2any.bases.flux1.blocks import RegionalAttnProcessor, RegionalDoubleBlock, RegionalSingleBlock
from seg2any.bases.flux1.context import BlockContext
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.diffusion.denoise import times
from seg2any.diffusion.flow import interpolate
from seg2any.segment import attention_maps, merge
from seg2any.segment.coloring import points, ranges
from seg2any.training import mask_losses
from seg2any.training.coloring_loss import coloring_loss, instances_of_colors
from tests.golden_root import seg_golden_root

ROOT = seg_golden_root()
FORMS = {"": "published", "_sigmoid_form": "sigmoid"}
COLOR_RANGES = {
    "training": "published_training",
    "sd_pipeline": "published_pipeline",
    "mae_pipeline": "published_mae",
}
Tensors = dict[str, torch.Tensor]


def double_block(weights: Tensors, width: int, heads: int) -> torch.nn.Module:
    block = FluxTransformerBlock(width, heads, width // heads)
    block.__class__ = RegionalDoubleBlock
    return loaded(block, weights)


def single_block(weights: Tensors, width: int, heads: int) -> torch.nn.Module:
    block = FluxSingleTransformerBlock(width, heads, width // heads)
    block.__class__ = RegionalSingleBlock
    return loaded(block, weights)


def loaded(block: torch.nn.Module, weights: Tensors) -> torch.nn.Module:
    block.load_state_dict(weights)
    block.attn.set_processor(RegionalAttnProcessor())
    return block.eval()


@torch.no_grad()
def attention_case(x: Tensors, about: dict) -> None:
    weights = {name.removeprefix("weights/"): tensor for name, tensor in x.items() if name.startswith("weights/")}
    image, text = x["hidden_states"], x["encoder_hidden_states"]
    make = {"double": double_block, "single": single_block}[about["block"]]
    block, seen = make(weights, image.shape[-1], about["heads"]), []
    rope = SimpleNamespace(pos_embed=FluxPosEmbed(10000, about["rope_axes"]))
    rotation = Seg2AnyTransformer2DModel._rotation(rope, x["rope_ids"][None])
    for tap in (None, lambda number, query, key, pattern: seen.append((query, key))):
        context = BlockContext(0, Rows(), None, tap=tap)
        new_text, new_image = block(image, text, x["temb"][:, None], rotation, {"context": context})
        assert_close(new_image, x["block_out_hidden"], rtol=1e-5, atol=1e-5)
        assert_close(new_text, x["block_out_encoder"], rtol=1e-5, atol=1e-5)
    ((query, key),) = seen
    n_text, n_image = text.shape[1], image.shape[1]
    for mine, theirs in ((query, x["q"]), (key, x["k"])):
        assert_close(mine.transpose(1, 2), theirs, rtol=1e-5, atol=1e-5)
    assert_close(attention_weights(query, key, None).mean(1), x["attention_mean_full"], rtol=1e-5, atol=1e-6)
    assert_close(attention_maps.image_to_text(query, key, n_text, n_image), x["i2t"], rtol=1e-5, atol=1e-6)
    scores = attention_maps.image_to_text_scores(query, key, n_text, n_image)
    assert_close(scores, x["i2t_logits_heads"], rtol=1e-5, atol=5e-6)
    assert_close(scores.mean(1), x["i2t_logits_mean"], rtol=1e-5, atol=5e-6)


def att2mask_case(x: Tensors, about: dict) -> None:
    for name, recorded in x.items():
        if name.startswith("in"):
            continue
        power = float(name.rpartition("power")[2])
        if name.startswith("out"):
            assert_close(attention_maps.min_max(x[f"in{name[3]}d"], 2, power), recorded, rtol=1e-5, atol=1e-6)
        else:  # a method that another of its name hides, so that it never runs
            assert_close(attention_maps.min_max(x["in3d"][0], 0, power), recorded, rtol=1e-5, atol=1e-6)


def pool_case(x: Tensors, about: dict) -> None:
    grid, size, start = about["grid_hw"], tuple(about["output_hw"]), about["first_column"]
    columns = []
    for count in about["tokens_per_class"]:
        columns.append(range(start, start + count))
        start += count
    names = {"norm_before_merge": "tokens", "norm_after_merge": "classes"}
    maps = attention_maps.class_maps(x["attention"][0], columns, grid, [names[key] for key in names if about[key]])
    assert_close(maps, x["class_maps"], rtol=1e-5, atol=1e-6)
    everything = torch.zeros(about["total_classes"], *grid)
    everything[about["class_indices"]] = maps
    labels = attention_maps.label_map(everything, size)
    assert torch.equal(labels, x["argmax"].long())
    if "upsampled_selected" in x:
        larger = torch.stack([attention_maps.enlarged(one, size) for one in maps])
        assert_close(larger, x["upsampled_selected"], rtol=1e-5, atol=1e-6)


def merge_case(x: Tensors, about: dict) -> None:
    divergence = merge.divergences(x["maps"])
    assert_close(divergence.float(), x.get("kl", divergence.float()), rtol=1e-4, atol=2e-6)
    assert merge.groups_of(divergence, about["threshold"]) == about["groups"]
    found = merge.merged(x["maps"], about["threshold"])
    assert_close(found, x["merged"], rtol=1e-4, atol=1e-7)
    assert torch.equal(found.argmax(0), x["argmax"].long())


def unsupervised_case(x: Tensors, about: dict) -> None:
    rescaled = attention_maps.min_max(x["attention"].mean(1), 2)
    assert_close(rescaled, x["rescaled"], rtol=1e-5, atol=1e-6)
    maps = rescaled[0].T.unflatten(1, about["grid_hw"])
    assert_close(maps, x["maps"], rtol=1e-5, atol=1e-6)
    merge_case(x | {"maps": maps}, about)


def elementwise_case(x: Tensors, about: dict) -> None:
    losses = {"dice": mask_losses.dice_loss}
    losses |= {f"focal{name}": functools.partial(mask_losses.focal_loss, form=form) for name, form in FORMS.items()}
    for name, loss in losses.items():
        logits = x["logits"].clone().requires_grad_()
        value = loss(logits, x["targets"], about["num_masks"])
        value.backward()
        assert_close(value.detach(), x[name], rtol=1e-5, atol=1e-6)
        assert_close(logits.grad, x[f"{name}_grad"], rtol=1e-4, atol=1e-6)


def criterion_case(x: Tensors, about: dict) -> None:
    maps = x["pred_masks"].clone().requires_grad_()
    masks = [x[f"target_masks_{b}"] for b in range(len(maps))]
    for b, own in enumerate(masks):
        rows, columns = mask_losses.pair(maps[b], own, "published")
        assert torch.equal(rows, x[f"assigned_pred_{b}"]) and torch.equal(columns, x[f"assigned_target_{b}"])
        if f"cost_{b}" not in x:
            continue
        reduced = torch.nn.functional.interpolate(own[None].float(), maps.shape[2:], mode="nearest")[0].flatten(1)
        for name, form in FORMS.items():
            focal, dice = mask_losses.pair_costs(x["pred_masks"][b].flatten(1), reduced, form)
            assert_close(focal, x[f"cost_focal{name}_{b}"], rtol=1e-5, atol=1e-6)
            assert_close(dice, x[f"cost_dice_{b}"], rtol=1e-5, atol=1e-6)
    loss = mask_losses.matched_loss(maps, masks, "published")
    loss.total.backward()
    for mine, name in ((loss.focal, "loss_mask"), (loss.dice, "loss_dice"), (loss.total, "total")):
        assert_close(mine.detach(), x[name], rtol=1e-5, atol=1e-6)
    assert_close(maps.grad, x["total_grad"], rtol=1e-4, atol=1e-6)


def direct_case(x: Tensors, about: dict) -> None:
    maps, pooled, wanted = x["token_maps"].clone().requires_grad_(), [], []
    for b, (prompt, classes) in enumerate(
        zip(about["prompt_token_ids"], about["class_indices_per_image"], strict=True)
    ):
        columns = [mask_losses.columns_of(prompt, about["class_token_ids"][number]) for number in classes]
        assert columns == about["columns_used"][b]
        pooled += [maps[b, own].mean(0) for own in columns if own]
        wanted += [mask for mask, own in zip(x[f"target_masks_{b}"], columns, strict=True) if own]
    pooled, wanted = torch.stack(pooled), torch.stack(wanted)
    assert_close(pooled.detach(), x["pooled"], rtol=1e-5, atol=1e-6)
    assert torch.equal(wanted, x["targets_used"])
    loss = mask_losses.mask_loss(pooled, wanted, len(pooled), "published")
    loss.total.backward()
    assert_close(0.1 * loss.focal.detach(), x["loss_mask_weighted"], rtol=1e-5, atol=1e-6)
    assert_close(0.2 * loss.dice.detach(), x["loss_dice_weighted"], rtol=1e-5, atol=1e-6)
    assert_close(maps.grad, x["total_grad"], rtol=1e-4, atol=1e-6)


def noise_case(x: Tensors, about: dict) -> None:
    if "shift" in about:  # the schedule of Stable Diffusion 3, which is diffusers' own
        scheduler = FlowMatchEulerDiscreteScheduler(shift=about["shift"])
        scheduler.set_timesteps(about["steps"])
        found = scheduler.timesteps
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        n_tokens = about["image_seq_len_given"]
        assert abs(Flux1(None).time_shift(scheduler.config, n_tokens, about["steps"]) - about["mu"]) < 1e-9
        found = times(Flux1(None), scheduler, n_tokens, about["steps"], torch.device("cpu"))
    assert_close(found, x["timesteps"], rtol=1e-6, atol=1e-4)
    assert_close(scheduler.sigmas, x["sigmas"], rtol=1e-6, atol=1e-7)
    s = found[about["index"]][None] / 1000
    clean, noise = torch.eye(2)[:, None, :, None].unbind()
    assert_close(interpolate(clean, noise, s).flatten(), torch.tensor([about["clean_weight"], about["noise_weight"]]))


def coloring_case(x: Tensors, about: dict) -> None:
    painted = x["prediction"].clone().requires_grad_()
    loss = coloring_loss(painted, instances_of_colors(x["label"]), x["no_bg"].tolist())
    loss.backward()
    assert_close(loss.detach(), x["loss"], rtol=2e-6, atol=0)
    assert_close(painted.grad, x["grad"], rtol=0, atol=5e-8)


def color_range_case(x: Tensors, about: dict) -> None:
    for name, published in COLOR_RANGES.items():
        assert_close(ranges.RANGES[published](x["decoded"]), x[name], rtol=1e-6, atol=1e-4)


def heatmap_case(x: Tensors, about: dict) -> None:
    y, w = about["point_normalised_y_x"]
    assert_close(2 * points.gaussian(tuple(about["shape_hw"]), w, y, about["sigma"])[None] - 1, x["heatmap"])


def point_case(x: Tensors, about: dict) -> None:
    (height, width), (px, py) = about["shape_hw"], x["point_xy"].tolist()
    colors, plain = x["feature"].numpy(), points.PointSettings(about["sigma"], about["threshold"], "published", None)
    weights = points.gaussian((height, width), px / (width - 1), py / (height - 1), about["sigma"])
    assert_close(weights, x["weights"], rtol=0, atol=1e-7)
    assert_close(points.color_around(x["feature"].float(), weights), x["query_colour"], rtol=0, atol=3e-5)
    similarity = points.similarity_to(colors, px, py, plain)
    assert_close(torch.from_numpy(similarity), x["similarity"], rtol=0, atol=2e-5)
    filtered = about["bilateral"]
    assert filtered["sigmaColor"] == filtered["sigmaSpace"]
    bilateral = replace(plain, diameter=filtered["d"], spread=filtered["sigmaColor"])
    levels = torch.from_numpy(points.smoothed(similarity, colors, bilateral) * 255).round()
    assert_close(levels, x["refined_u8"].float(), rtol=0, atol=0)
    for settings, name in ((bilateral, "mask_bilateral"), (plain, "mask_plain")):
        mask, _ = points.region_of_points(colors, [(px, py)], [], settings)
        assert torch.equal(torch.from_numpy(mask), x[name] > 0)


# file, beginning of the case's name -> section of cases.json ("": called as the case), check
CHECKS: dict[tuple[str, str], tuple[str, Callable[[Tensors, dict], None]]] = {
    ("attention_maps", ""): ("attention_maps", attention_case),
    ("noise_levels", ""): ("noise_levels", noise_case),
    ("pooling_and_merge", "att2mask"): ("", att2mask_case),
    ("pooling_and_merge", "unsupervised_chain"): ("", unsupervised_case),
    ("pooling_and_merge", "pool"): ("class_pooling", pool_case),
    ("pooling_and_merge", "merge"): ("mask_merge", merge_case),
    ("mask_losses_and_matching", "elementwise"): ("mask_losses", elementwise_case),
    ("mask_losses_and_matching", "criterion"): ("criterion", criterion_case),
    ("mask_losses_and_matching", "direct"): ("direct_pairing", direct_case),
    ("instance_colouring_loss", ""): ("instance_colouring_loss", coloring_case),
    ("colour_range", ""): ("colour_range", color_range_case),
    ("point_prompt", "heatmap"): ("point_prompt", heatmap_case),
    ("point_prompt", ""): ("point_prompt", point_case),
}


@functools.cache
def parameters() -> dict:
    return json.loads((ROOT / "cases.json").read_text(encoding="utf-8"))


@functools.cache
def names_in(file: Path) -> tuple[str, ...]:
    with safe_open(file, "pt") as tensors:
        return tuple(tensors.keys())


def recorded_cases(root: Path) -> list[tuple[str, str]]:
    """List (file, case) of every recorded case; a case's name ends before the name of its tensor or its weights."""
    found = dict.fromkeys(
        (file.stem, name.split("/weights/")[0] if "/weights/" in name else name.rpartition("/")[0])
        for file in sorted(root.glob("*.safetensors"))
        for name in names_in(file)
    )
    return sorted(found)


def check_of(file: str, case: str) -> tuple[str, Callable[[Tensors, dict], None]] | None:
    return next((found for (stem, begin), found in CHECKS.items() if stem == file and case.startswith(begin)), None)


@pytest.mark.parametrize(("file", "case"), recorded_cases(ROOT))
def test_recorded(file: str, case: str):
    section, check = check_of(file, case)
    of_section = parameters().get(section or case.split("/")[0], {})
    about = of_section.get(case.rpartition("/")[2], of_section)
    with safe_open(ROOT / f"{file}.safetensors", "pt") as tensors:
        names = [name for name in names_in(ROOT / f"{file}.safetensors") if name.startswith(f"{case}/")]
        check({name.removeprefix(f"{case}/"): tensors.get_tensor(name) for name in names}, about)


def test_every_recorded_case_is_served():
    recorded = recorded_cases(ROOT)
    assert len(recorded) > 50, f"{ROOT} holds few cases"
    assert not [one for one in recorded if check_of(*one) is None]


def test_the_committed_subset_is_small():
    from tests.golden_root import SEG_SUBSET

    assert sum(path.stat().st_size for path in SEG_SUBSET.iterdir()) <= 2_000_000


@pytest.mark.parametrize("form", mask_losses.FOCAL)
def test_a_better_map_costs_less(form: str):
    """Guard against a swapped sign or weight: the loss falls from wrong over undecided to right."""
    target = torch.tensor(np.random.default_rng(0).random((1, 64)) < 0.5).float()
    sign = 2 * target - 1
    losses = [
        mask_losses.focal_loss(x, target, 1, form) + mask_losses.dice_loss(x, target, 1)
        for x in (-0.9 * sign, 0 * sign, 0.9 * sign)
    ]
    assert losses[0] > losses[1] > losses[2]
