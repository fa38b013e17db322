"""Write the model cards of the embedded model: tables of runs, and loss curves."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from diffusers import FluxPipeline

from examples.shapes.make.build import GLOBAL_TOKENS, REGION_TOKENS
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

HUB_HEADER = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [seg2any, flux, layout-to-image, segmentation-mask-to-image]
---

"""  # the licence and the tags, as the model hub reads them

CARD = """# The embedded model of the `shapes` world

A FLUX pipeline in small, made by this repository and trained from nothing on rendered scenes (`seg2any/data/shapes.py`,
training split), so that everything here runs offline on a laptop. It draws coloured figures and nothing else.
Licence: Apache-2.0, like the code. Precision: 16 bit.

| part | parameters | steps | learning rate | hours | machine | seed | last loss | commit |
|---|---|---|---|---|---|---|---|---|
{rows}

![loss curves](loss.png)

Geometry as in FLUX.1: VAE factor 8 with 16 channels, 2 x 2 packing, one token per 16 x 16 px; {geometry}.
T5 was trained at {lengths} tokens; use these as `max_sequence_length` and `regional_max_sequence_length`.
There is no guidance embedding, so `guidance_scale` has no effect. Reproduce:

    python -m examples.shapes.make.train_vae
    python -m examples.shapes.make.train_base texture --vae runs/tiny_vae/vae
    python -m examples.shapes.make.train_base figure --start_from runs/base_texture/model
    python -m examples.shapes.make.train_base scene --start_from runs/base_figure/model
    python -m examples.shapes.make.publish --base runs/base_texture runs/base_figure runs/base_scene
    python train.py config/seg2any_shapes.yaml
"""

TOGETHER_CARD = """# Seg2Any's adapters for the embedded model

LoRA of rank {rank} on `examples/shapes/model`: `default` on text and image tokens, `cond` on contour tokens. Their last
runs trained them together with the base, on rendered training scenes (`examples/shapes/make/train_together.py`):

| run | steps | learning rate | hours | machine | seed | last loss | commit |
|---|---|---|---|---|---|---|---|
{rows}

Weights are the moving average, in 16 bit. Licence: Apache-2.0. `adapter.json` holds the settings that
generation follows.

![loss curves](loss.png)
"""

LORA_CARD = """# Seg2Any's adapters for the embedded model

LoRA of rank {rank} on `examples/shapes/model`: `default` on text and image tokens, `cond` on contour tokens. Made by
`train.py config/seg2any_shapes.yaml`: {scenes} rendered training scenes, {steps} steps of {batch}, learning rate
{rate}, about {hours:.2f} hours on {machine}, seed {seed}, commit {commit}. Weights are the moving average, in 16 bit.
Licence: Apache-2.0. `adapter.json` holds the settings that generation follows.

| step | training loss | validation loss (fixed noise) |
|---|---|---|
{rows}

![loss curves](loss.png)
"""

COLORING_CARD = """# Adapters that paint every instance in a colour of its own

LoRA of rank {rank} on `examples/shapes/model`, for `seg2any segment --method coloring`. The last of their runs was made
by `train.py config/seg2any_shapes.yaml config/seg2any_shapes_coloring.yaml`: {scenes} rendered training scenes, {steps}
steps of {batch}, learning rate {rate}, about {hours:.2f} hours on {machine}, seed {seed}, commit {commit}. Weights are
the moving average, in 16 bit. Licence: Apache-2.0. `adapter.json` holds where the photo is and the range of colours.

| step | training loss | validation loss (fixed words) |
|---|---|---|
{rows}

![loss curves](loss.png)
"""


def losses_of(logs: dict[str, tuple[dict, list[dict]]]) -> dict[str, list[float]]:
    """Return the losses of logged runs, by the run's name."""
    return {name: [row["loss"] for row in rows] for name, (_, rows) in logs.items()}


def validation_rows(rows: list[dict]) -> list[str]:
    """Format a table row for every validation, with the mean training loss since the one before."""
    lines, recent = [], []
    for row in rows:
        if "loss" in row:
            recent.append(row["loss"])
        if "val_loss" in row:
            lines.append(
                f"| {row['step']} | {np.mean(recent) if recent else float('nan'):.4f} | {row['val_loss']:.4f} |"
            )
            recent = []
    return lines


def write_card(folder: Path, text: str, losses: dict[str, list[float]]) -> None:
    """Write README.md with the hub's header and a text, and loss.png with a curve for each name."""
    with atomic_write(folder / "loss.png") as temporary:
        curves = draw_curves({name: values for name, values in losses.items() if values})
        temporary.write_bytes(cv2.imencode(".png", curves)[1])  # imwrite says nothing on a full disk
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(HUB_HEADER + text, encoding="utf-8")
    print(f"wrote {folder}")


def read_log(path: Path) -> tuple[dict, list[dict]]:
    """Read the first start of a run, and its rows; seconds count from the first start.

    If a step was logged twice, before and after a resume, the later row counts. Raises UserError without a log.
    """
    if not path.exists():
        raise UserError(f"{path}: the log is missing; train this part first (see --help)")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    first = next(line for line in lines if "settings" in line)
    seconds, offset, rows = 0.0, 0.0, {}
    for line in lines:
        if "settings" in line:
            offset = seconds
            continue
        seconds = offset + line["seconds"]
        rows[line["step"]] = line | {"seconds": seconds}
    return first, [rows[step] for step in sorted(rows)]


def model_card(pipeline: FluxPipeline, logs: dict[str, tuple[dict, list[dict]]], bases: Collection[str]) -> str:
    """Format the model's README.md: sizes, and a row for each run in `logs`.

    logs   results of `read_log` by the run's name
    bases  names of the runs that trained the transformer; the others trained the VAE
    """
    lines = []
    for name, log in logs.items():
        part = pipeline.transformer if name in bases else pipeline.vae
        size = sum(p.numel() for p in part.parameters()) / 1e6
        lines.append(row_of(f"{name} | {size:.1f} M", *log))
    config = pipeline.transformer.config
    geometry = (
        f"{config.num_layers} double and {config.num_single_layers} single blocks of width "
        f"{config.num_attention_heads * config.attention_head_dim}"
    )
    lengths = f"{GLOBAL_TOKENS} and {REGION_TOKENS}"
    return CARD.format(rows="\n".join(lines), geometry=geometry, lengths=lengths)


def row_of(name: str, start: dict, rows: list[dict]) -> str:
    """Format the row of a run in a card's table."""
    settings, last = start["settings"], float(np.mean([row["loss"] for row in rows[-20:]]))
    return (
        f"| {name} | {settings['steps']} | {settings['learning_rate']} | {rows[-1]['seconds'] / 3600:.2f} "
        f"| {start['machine']['name']} | {settings['seed']} | {last:.4f} | {start['commit'][:12]} |"
    )


def draw_curves(losses: dict[str, list[float]], size: tuple[int, int] = (360, 720)) -> np.ndarray:
    """Draw a smoothed logarithmic curve per run, uint8 [H, W, 3].

    Each curve has its own scale and is labelled with its first and last value.
    """
    canvas = np.full((*size, 3), 255, np.uint8)
    palette = [(200, 90, 20), (40, 140, 40), (40, 40, 200), (140, 40, 140)]
    for number, (name, values) in enumerate(losses.items()):
        window = max(1, len(values) // 60)
        smooth = np.log([np.mean(values[i : i + window]) for i in range(0, len(values), window)])
        y = 20 + (smooth.max() - smooth) / max(float(np.ptp(smooth)), 1e-9) * (size[0] - 40)
        points = np.stack([np.linspace(20, size[1] - 20, len(y)), y], 1).round().astype(np.int32)
        cv2.polylines(canvas, [points], False, palette[number % 4], 2, cv2.LINE_AA)
        label = f"{name}: {np.exp(smooth[0]):.3f} to {np.exp(smooth[-1]):.3f}"
        cv2.putText(canvas, label, (size[1] // 2, 30 + 24 * number), 0, 0.5, palette[number % 4], 1, cv2.LINE_AA)
    return canvas
