"""Copy finished runs into examples/shapes in 16 bit, with model cards.

    python -m examples.shapes.make.publish                                      # runs/tiny_vae and runs/tiny_base
    python -m examples.shapes.make.publish --lora runs/shapes/checkpoint-2400   # adapters that train.py trained

A model card holds settings, times and loss curves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline

from examples.shapes.make.build import GLOBAL_TOKENS, REGION_TOKENS
from seg2any.adapters.files import save_adapters
from seg2any.data.shapes_draw import BACKGROUNDS, COLOURS, LETTERS, PATTERNS, SHAPES
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.world import FILE
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, user_path
from seg2any.system.interrupts import run_command
from seg2any.training import config

GRAMMAR = ("a", "and", "on", "background", "many", "figures", "with", "the", "letter")  # besides, in captions

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
    python -m examples.shapes.make.train_base
    python -m examples.shapes.make.publish
    python train.py config/seg2any_shapes.yaml
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


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 published, 2 wrong input or unwritable folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=user_path, default=Path("runs/tiny_base"), help="default: %(default)s")
    parser.add_argument(
        "--vae",
        type=user_path,
        nargs="*",
        default=[Path("runs/tiny_vae")],
        help="runs of the VAE, in order, for the card",
    )
    parser.add_argument("--decoder", type=user_path, help="a run of train_vae --decoder_only, if any")
    parser.add_argument("--model", type=user_path, default=Path("examples/shapes/model"), help="default: %(default)s")
    parser.add_argument("--lora", type=user_path, help="a checkpoint of train.py to publish instead of the base")
    parser.add_argument(
        "--lora_output", type=user_path, default=Path("examples/shapes/lora"), help="default: %(default)s"
    )
    args = parser.parse_args(words)

    def publish() -> None:
        if args.lora:
            publish_lora(args.lora, args.model, args.lora_output)
        else:
            publish_base(args.vae, args.decoder, args.base, args.model)

    return exit_status("examples.shapes.make.publish", publish, "start again")


def publish_base(vae: list[Path], decoder: Path | None, base: Path, output: Path) -> None:
    """Write the pipeline folder, its card and loss curves.

    Raises UserError for an unfinished run.
    """
    logs = {run.name: read_log(run / "log.jsonl") for run in (*vae, decoder, base) if run}
    if not (base / "model").is_dir():
        raise UserError(f"{base}: the folder model is missing; let examples.shapes.make.train_base finish first")
    pipeline = FluxPipeline.from_pretrained(base / "model")
    if decoder:
        pipeline.vae = AutoencoderKL.from_pretrained(decoder / "vae")
    pipeline.to(torch.float16).save_pretrained(output)
    write_world(output)
    write_card(output, model_card(pipeline, logs), {n: [row["loss"] for row in rows] for n, (_, rows) in logs.items()})


def write_world(folder: Path) -> None:
    """Write what the model knows, for `seg2any.generate.world`."""
    parts = (COLOURS, BACKGROUNDS, PATTERNS, SHAPES, LETTERS.lower(), GRAMMAR)
    words = sorted({word for part in parts for word in part} - {"plain"})  # captions name no pattern that is plain
    content = {"knows": "coloured shapes with patterns or letters on plain backgrounds only", "words": words}
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def publish_lora(checkpoint: Path, model: Path, output: Path) -> None:
    """Write the adapters and adapter.json in 16 bit, a card and loss curves.

    Raises UserError for a folder that is not a checkpoint.
    """
    pipeline = Seg2AnyPipeline.from_pretrained(model)
    pipeline.load_adapters(str(checkpoint))
    save_adapters(pipeline.transformer, output, pipeline.card, dtype=torch.float16)
    settings = config.load([str(checkpoint / "config.yaml")])
    log = (checkpoint.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, log) if row["step"] <= pipeline.card.step]
    start = next(row["run"] for row in rows if "run" in row)
    curves = {key: [row[key] for row in rows if key in row] for key in ("loss", "val_loss")}
    speeds = [row["images_per_s"] for row in rows if "images_per_s" in row]
    batch = settings.trainer.train_batch_size
    text = LORA_CARD.format(
        rank=settings.model.rank,
        scenes=settings.data.train.params["n_scenes"],
        steps=pipeline.card.step,
        batch=batch,
        rate=settings.trainer.learning_rate,
        hours=pipeline.card.step * batch / float(np.mean(speeds)) / 3600,
        seed=settings.seed,
        commit=start["commit"][:12],
        machine=start["machine"]["name"],
        rows="\n".join(validation_rows(rows)),
    )
    write_card(output, text, curves)


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


def model_card(pipeline: FluxPipeline, logs: dict[str, tuple[dict, list[dict]]]) -> str:
    """Format the model's README.md: sizes, and a row for each run in `logs`.

    logs  results of `read_log` by the run's name
    """
    count = {"tiny_base": pipeline.transformer}
    lines = []
    for name, (start, rows) in logs.items():
        settings = start["settings"]
        size = sum(p.numel() for p in count.get(name, pipeline.vae).parameters()) / 1e6
        last = float(np.mean([row["loss"] for row in rows[-20:]]))
        hours = rows[-1]["seconds"] / 3600
        lines.append(
            f"| {name} | {size:.1f} M | {settings['steps']} | {settings['learning_rate']} | {hours:.2f} "
            f"| {start['machine']['name']} | {settings['seed']} | {last:.4f} | {start['commit'][:12]} |"
        )
    config = pipeline.transformer.config
    geometry = (
        f"{config.num_layers} double and {config.num_single_layers} single blocks of width "
        f"{config.num_attention_heads * config.attention_head_dim}"
    )
    lengths = f"{GLOBAL_TOKENS} and {REGION_TOKENS}"
    return CARD.format(rows="\n".join(lines), geometry=geometry, lengths=lengths)


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


if __name__ == "__main__":
    run_command(main)
