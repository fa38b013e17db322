"""Copy finished runs into examples/shapes in 16 bit, with model cards.

    python -m examples.shapes.make.publish --base runs/base_texture runs/together_small runs/together_large
    python -m examples.shapes.make.publish --lora runs/shapes/checkpoint-2400   # adapters that train.py trained
    python -m examples.shapes.make.publish --lora runs/shapes_coloring/checkpoint-2000 \\
        --lora_output examples/shapes/lora_coloring

A model card holds settings, times and loss curves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline

from examples.shapes.make.cards import (
    COLORING_CARD,
    LORA_CARD,
    TOGETHER_CARD,
    losses_of,
    model_card,
    read_log,
    row_of,
    validation_rows,
    write_card,
)
from seg2any.adapters.files import save_adapters
from seg2any.data.shapes_draw import BACKGROUNDS, COLOURS, LETTERS, PATTERNS, SHAPES
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.world import FILE
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, user_path
from seg2any.system.interrupts import run_command
from seg2any.training import config

GRAMMAR = ("a", "an", "and", "on", "background", "many", "figures", "with", "the", "letter")  # besides, in captions

LARGEST = 640  # pixels of a side


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 published, 2 wrong input or unwritable folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base",
        type=user_path,
        nargs="+",
        default=[Path("runs/base_scene")],
        help="runs of the base, in order; the last is published, with its adapters if it has any",
    )
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
            if (args.base[-1] / "lora").is_dir():
                publish_together(args.base, args.lora_output)

    return exit_status("examples.shapes.make.publish", publish, "start again")


def publish_base(vae: list[Path], decoder: Path | None, base: list[Path], output: Path) -> None:
    """Write the pipeline folder, its card and loss curves; `base` are runs in order.

    Raises UserError for an unfinished run.
    """
    logs = {run.name: read_log(run / "log.jsonl") for run in (*vae, decoder, *base) if run}
    if not (base[-1] / "model").is_dir():
        raise UserError(f"{base[-1]}: the folder model is missing; let this run finish first")
    pipeline = FluxPipeline.from_pretrained(base[-1] / "model")
    if decoder:
        pipeline.vae = AutoencoderKL.from_pretrained(decoder / "vae")
    pipeline.to(torch.float16).save_pretrained(output)
    write_world(output)
    write_card(output, model_card(pipeline, logs, {run.name for run in base}), losses_of(logs))


def publish_together(runs: list[Path], output: Path) -> None:
    """Write the adapters of the last of some runs that trained base and adapters together, with a card of these."""
    logs = {run.name: read_log(run / "log.jsonl") for run in runs if (run / "lora").is_dir()}
    for file in sorted(file for file in (runs[-1] / "lora").rglob("*") if file.is_file()):
        target = output / file.relative_to(runs[-1] / "lora")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            temporary.write_bytes(file.read_bytes())
    rank = json.loads((output / "adapter.json").read_text(encoding="utf-8"))["rank"]
    rows = "\n".join(row_of(name, *log) for name, log in logs.items())
    write_card(output, TOGETHER_CARD.format(rank=rank, rows=rows), losses_of(logs))


def write_world(folder: Path) -> None:
    """Write what the model knows, for `seg2any.generate.world`."""
    parts = (COLOURS, BACKGROUNDS, PATTERNS, SHAPES, LETTERS.lower(), GRAMMAR)
    words = sorted({word for part in parts for word in part} - {"plain"})  # captions name no pattern that is plain
    knows = "coloured shapes with patterns or letters on plain backgrounds only"
    content = {"knows": knows, "largest": LARGEST, "words": words}
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
    card = COLORING_CARD if pipeline.card.photo else LORA_CARD
    text = card.format(
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


if __name__ == "__main__":
    run_command(main)
