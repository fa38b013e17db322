"""Train base and adapters of the embedded model together, on layouts of small images first.

    python -m examples.shapes.make.train_together small --start_from runs/base_texture/model --lora examples/shapes/lora

A base that draws a pattern badly gives the adapters nothing to steer, and adapters of another base draw nothing. So
whole weights learn what regions ask for; in some steps the adapters are off and the base reads captions alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from examples.shapes.make import loop, train_base
from examples.shapes.make.curriculum import STAGES, scenes_of
from seg2any.adapters.card import AdapterCard, read_card
from seg2any.adapters.files import save_adapters
from seg2any.bases.text import encode_texts
from seg2any.data.shapes import Scene
from seg2any.data.shapes_draw import Size
from seg2any.diffusion.flow import TimestepWeighting
from seg2any.diffusion.prepare import draw_layout
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.system.console import exit_status, real, whole
from seg2any.system.files import atomic_write, user_path
from seg2any.system.interrupts import run_command
from seg2any.training.samples import Captions, EncodedSample, Texts, encode_latents, latents_entry, latents_of_entry
from seg2any.training.tasks.flow_matching import Objective, Velocity

ALONE = 5  # every so many steps the base is trained without its adapters
ALONE_SCENES = 1500
PATTERNS = TimestepWeighting("logit_normal", logit_mean=-1.5, logit_std=1.1)
OUTLINES = TimestepWeighting("logit_normal", logit_mean=-0.3, logit_std=1.3)


@dataclass(frozen=True)
class Layouts:
    """A part of the training.

    sizes, steps, batch_size  (H, W) in turn, number, images per step
    kinds                     shares of the kinds of scenes
    alone                     stage of `curriculum` whose scenes the base sees without its adapters; "": it is frozen
    """

    sizes: tuple[Size, ...]
    steps: int
    batch_size: int
    kinds: dict[str, float]
    alone: str
    learning_rate: float


LARGE = {"normal": 0.6, "crowded": 0.15, "badges": 0.25}
LARGE_SIZES = ((256, 256), (256, 256), (192, 320))
PARTS = {
    "small": Layouts(((128, 128), (128, 128), (96, 160)), 1500, 16, {"single": 0.35, "few": 0.65}, "texture", 7e-4),
    "large": Layouts(LARGE_SIZES, 280, 12, LARGE, "scene", 5e-4),
    "adapters": Layouts(LARGE_SIZES, 320, 12, LARGE, "", 8e-4),
}


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 trained to the end, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS, help="what to train on")
    parser.add_argument("--start_from", required=True, help="pipeline folder of the base to train further")
    parser.add_argument("--lora", required=True, help="adapter folder to train further")
    parser.add_argument("--output_dir", type=user_path, help="folder of the run (default: runs/together_PART)")
    parser.add_argument("--steps", type=whole(0), help="default: the part's")
    parser.add_argument("--scenes", type=whole(4), default=3000, help="scenes to keep (default: %(default)s)")
    parser.add_argument("--learning_rate", type=real(0), help="peak value (default: the part's)")
    parser.add_argument("--seed", type=whole(0), default=0, help="default: %(default)s")
    args = parser.parse_args(words)
    return exit_status("examples.shapes.make.train_together", lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Train to the end and save the folders `model` and `lora` in fp16.

    An interrupted run continues from the state in --output_dir.
    """
    part, output = PARTS[args.part], args.output_dir or Path(f"runs/together_{args.part}")
    pipeline = Seg2AnyPipeline.from_pretrained(args.start_from, dtype=torch.float32)
    for encoder in pipeline.base.text_encoders:
        encoder.requires_grad_(False)
    pools = {size: encode(pipeline, part, size, args.scenes, output, args.lora) for size in dict.fromkeys(part.sizes)}
    alone = encode_alone(pipeline, part, output) if part.alone else None
    pipeline.load_adapters(args.lora)
    network = pipeline.transformer.train()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(alone is not None or "lora_" in name)
    steps = part.steps if args.steps is None else args.steps
    rate = args.learning_rate or part.learning_rate
    settings = loop.LoopSettings(
        str(output), steps, rate, final_lr=0.1, ema_decay=0.995, save_every=100, seed=args.seed, muon=muon(network)
    )
    velocity = Velocity(pipeline.base, 1.0)
    condition = pipeline.card.condition.override({"attention_backend": "matmul"})  # a CPU's fastest backward pass
    objectives = [Objective(condition, noise, 0.1, 0.1) for noise in (PATTERNS, OUTLINES)]

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step))
        if alone and step % ALONE == ALONE - 1:
            network.disable_adapters()
            kind, indices = alone.draw(rng)
            loss = train_base.flow_loss(pipeline, alone, kind, indices, rng)
            network.enable_adapters()
            return loss, {"alone": loss.item()}
        pool = pools[part.sizes[step % len(part.sizes)]]
        chosen = [pool[i] for i in rng.integers(len(pool), size=part.batch_size)]
        seeds = [torch.Generator().manual_seed(int(seed)) for seed in rng.integers(2**60, size=len(chosen))]
        loss = objectives[step % 2](velocity, chosen, seeds)
        return loss, {("patterns", "outlines")[step % 2]: loss.item()}

    loop.run(network, loss_at, settings)
    save(pipeline, args.start_from, pipeline.card, output)


def encode_alone(pipeline: Seg2AnyPipeline, part: Layouts, folder: Path) -> train_base.Pool:
    """Draw and encode the scenes that the base sees without its adapters, or read their latents in `folder`."""
    stage = STAGES[part.alone]
    stage = replace(stage, sizes=stage.sizes[:1], batch_size=part.batch_size)
    return train_base.encode_pool(pipeline, stage, stage.sizes[0], ALONE_SCENES, folder)


def muon(network: nn.Module) -> tuple[str, ...]:
    """Name the matrices of the base's blocks but those of modulation; adapters and all else are AdamW's."""
    return tuple(
        name
        for name, p in network.named_parameters()
        if p.ndim == 2 and "blocks." in name and "lora_" not in name and "norm" not in name
    )


def encode(
    pipeline: Seg2AnyPipeline, part: Layouts, size: Size, n_scenes: int, folder: Path, lora: str
) -> list[EncodedSample]:
    """Draw and encode the training scenes of a part in one size, or read their latents in `folder`."""
    base, settings = pipeline.base, read_card(Path(lora), {}).condition
    n_scenes, total = round(n_scenes * part.sizes.count(size) / len(part.sizes)), sum(part.kinds.values())
    scenes: list[Scene] = []
    for kind, share in part.kinds.items():
        scenes += scenes_of(kind, max(1, round(share / total * n_scenes)), size)
    path = folder / f"layouts_{size[0]}x{size[1]}.safetensors"
    captions = [Captions(scene.caption, scene.captions) for scene in scenes]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        entries = {}
        for index, (scene, texts) in enumerate(zip(tqdm(scenes, desc="encoding"), captions, strict=True)):
            image, masks = scene.render()
            drawn = draw_layout(masks, size, base.geometry.pixels_per_token, settings)
            entry = latents_entry(encode_latents(image, drawn, base, with_std=False), texts, with_std=False)
            entries |= {
                f"{index}/{name}": torch.from_numpy(np.array(value, order="C")) for name, value in entry.items()
            }
        with atomic_write(path) as temporary:
            save_file(entries, temporary)
    found: list[dict] = [{} for _ in scenes]
    for name, value in load_file(path).items():
        index, _, key = name.partition("/")
        found[int(index)][key] = value.numpy()
    texts = [caption.texts(base, settings) for caption in captions]
    return _with_texts(pipeline, [latents_of_entry(entry) for entry in found], texts)


def _with_texts(pipeline: Seg2AnyPipeline, latents: Sequence, texts: Sequence[Texts]) -> list[EncodedSample]:
    known: dict = {}
    encode_texts([text.keys for text in texts], pipeline.base, known)
    wanted = dict.fromkeys(text.pooled_without_caption for text in texts if text.pooled_without_caption)
    known.update(pipeline.base.encode_text([key for key in wanted if key not in known]))
    known = {key: value.detach() for key, value in known.items()}
    return [latent.sample(text, known) for latent, text in zip(latents, texts, strict=True)]


def save(pipeline: Seg2AnyPipeline, start: str, card: AdapterCard, output: Path) -> None:
    """Write the pipeline folder `model` without adapters, and the folder `lora`, in fp16."""
    save_adapters(pipeline.transformer, output / "lora", card, dtype=torch.float16)
    weights = {
        name.replace(".base_layer", ""): value
        for name, value in pipeline.transformer.state_dict().items()
        if "lora_" not in name
    }
    plain = FluxPipeline.from_pretrained(start)
    plain.transformer.load_state_dict(weights)
    plain.to(torch.float16).save_pretrained(output / "model")
    print(f"saved {output}/model and {output}/lora")


if __name__ == "__main__":
    run_command(main)
