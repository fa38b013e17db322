"""Train the embedded text-to-image base.

    python -m examples.shapes.make.train_base --vae runs/tiny_vae/vae

The base learns from global captions only and never sees a mask. The text encoders are trained with the transformer. A
curriculum helps it to connect words with pixels: first small images with one to three figures, which cost a third of a
whole scene and show figures of the same size, then whole scenes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from examples.shapes.make import loop
from examples.shapes.make.build import GLOBAL_TOKENS, REGION_TOKENS, build_pipeline
from seg2any.bases.flux1.latents import encode_images, pixels_per_token
from seg2any.data.shapes import Scene, ShapesDataset
from seg2any.diffusion import flow
from seg2any.diffusion.prepare import as_image
from seg2any.system.console import exit_status, real, whole
from seg2any.system.files import atomic_write
from seg2any.system.interrupts import run_command
from seg2any.system.precision import cpu_autocast, has_fast_bfloat16


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    size        edge of the images in pixels
    batch_size  images per step
    kinds       how often a step draws each kind of scene
    """

    size: int
    steps: int
    batch_size: int
    kinds: dict[str, float]


STAGES = (
    Stage(size=128, steps=3350, batch_size=32, kinds={"single": 0.7, "few": 0.3}),
    Stage(size=256, steps=1100, batch_size=16, kinds={"single": 0.35, "normal": 0.55, "crowded": 0.1}),
)
SCENES = {
    "single": {"kind": "single"},
    "few": {"kind": "normal", "entities": (2, 3)},
    "normal": {"kind": "normal"},
    "crowded": {"kind": "crowded"},
}
# How often T5 runs at each (length, with padding rows), on which the embeddings depend. Inference uses all three: for a
# region, for a global caption beside regions, and for plain FLUX.
ONE_FIGURE = {(REGION_TOKENS, False): 0.6, (GLOBAL_TOKENS, False): 0.3, (GLOBAL_TOKENS, True): 0.1}
SEVERAL = {(GLOBAL_TOKENS, False): 0.85, (GLOBAL_TOKENS, True): 0.15}
MUON = ("transformer_blocks.", "encoder.block.", "encoder.layers.")
# High noise levels are drawn more often: only there does the caption decide the content.
WEIGHTING = flow.TimestepWeighting("logit_normal", logit_mean=-0.8, logit_std=1.3)


@dataclass(frozen=True)
class Pool:
    """Encoded scenes of a stage.

    latents  float16 [n, I, 64]
    groups   indices of the scenes of each kind and caption length
    """

    stage: Stage
    latents: Tensor
    captions: list[str]
    groups: dict[tuple[str, int], np.ndarray]

    def draw(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """Draw the kind and the indices of one batch; its captions are equally long."""
        kind = choose(rng, self.stage.kinds)
        groups = {key: len(indices) for key, indices in self.groups.items() if key[0] == kind}
        indices = self.groups[choose(rng, groups)]
        return kind, rng.choice(indices, self.stage.batch_size, replace=len(indices) < self.stage.batch_size)


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 trained to the end, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="runs/tiny_vae/vae", help="vae/ folder of train_vae (default: %(default)s)")
    parser.add_argument(
        "--output_dir", default="runs/tiny_base", help="folder for state, log, latents and the finished pipeline"
    )
    parser.add_argument("--start_from", help="pipeline folder whose transformer and text encoders to train further")
    steps = [stage.steps for stage in STAGES]
    parser.add_argument(
        "--steps", type=whole(0), nargs=len(STAGES), default=steps, help="steps of each stage (default: %(default)s)"
    )
    parser.add_argument("--scenes", type=whole(1), default=6000, help="scenes per stage (default: %(default)s)")
    parser.add_argument("--learning_rate", type=real(0), default=1e-3, help="peak value (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="default: %(default)s")
    args = parser.parse_args(words)
    return exit_status("examples.shapes.make.train_base", lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Train to the end and save the FLUX folder `model` in fp16.

    An interrupted run continues from the state in --output_dir.
    """
    pipeline = start_from(args.start_from) if args.start_from else build_pipeline(args.seed)
    pipeline.vae = AutoencoderKL.from_pretrained(args.vae).eval().to(memory_format=torch.channels_last)
    pools = [encode_pool(pipeline, stage, args.scenes, Path(args.output_dir)) for stage in STAGES]
    ends = np.cumsum(args.steps)
    model = nn.ModuleDict({name: getattr(pipeline, name) for name in ("transformer", "text_encoder", "text_encoder_2")})
    muon = MUON if has_fast_bfloat16("cpu") else ()  # torch's Muon computes in bfloat16 on every machine
    settings = loop.LoopSettings(args.output_dir, sum(args.steps), args.learning_rate, seed=args.seed, muon=muon)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step))
        pool = pools[int(np.searchsorted(ends[:-1], step, side="right"))]
        kind, indices = pool.draw(rng)
        loss = flow_loss(pipeline, pool, kind, indices, rng)
        return loss, {kind: loss.item()}

    loop.run(model, loss_at, settings)
    pipeline.to(torch.float16).save_pretrained(Path(args.output_dir) / "model")
    print(f"saved {args.output_dir}/model")


def start_from(folder: str) -> FluxPipeline:
    """Load a finished pipeline in fp32, with trainable transformer and text encoders."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
        part.train().requires_grad_(True)
    return pipeline


def choose(rng: np.random.Generator, weights: dict):
    """Draw a key with a probability proportional to its weight."""
    keys, shares = list(weights), np.array(list(weights.values()), float)
    return keys[rng.choice(len(keys), p=shares / shares.sum())]


def flow_loss(pipeline: FluxPipeline, pool: Pool, kind: str, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Compute the rectified-flow loss [] of plain FLUX on one batch of equally long captions."""
    length, padded = choose(rng, ONE_FIGURE if kind == "single" else SEVERAL)
    captions = [pool.captions[i] for i in indices]
    grid = pool.stage.size // pixels_per_token(len(pipeline.vae.config.block_out_channels))
    x0 = pool.latents[torch.from_numpy(indices)].float()
    noise, s = torch.randn_like(x0), flow.noise_level(WEIGHTING.sample(len(x0)))
    # MATH: at these lengths the backward pass of the CPU's fused kernel costs twice as much.
    with cpu_autocast(), sdpa_kernel(SDPBackend.MATH):
        embeds, pooled = embed(pipeline, captions, length, padded)
        prediction = pipeline.transformer(
            hidden_states=flow.interpolate(x0, noise, s),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=s,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, grid, grid, "cpu", torch.float32),
            txt_ids=torch.zeros(embeds.shape[1], 3),
        ).sample
    return flow.loss(prediction, flow.velocity(x0, noise), torch.ones(len(x0)))


def embed(pipeline: FluxPipeline, captions: list[str], length: int, padded: bool) -> tuple[Tensor, Tensor]:
    """Compute T5 embeddings [B, T, D] and pooled CLIP vectors [B, P], with gradients.

    Without `padded`, all captions must have the same number of tokens.
    """
    tokens = pipeline.tokenizer_2(captions, padding="max_length", max_length=length, return_tensors="pt")
    embeds = pipeline.text_encoder_2(tokens.input_ids)[0]
    if not padded:
        embeds = embeds[:, : int(tokens.attention_mask[0].sum())]
    words = pipeline.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return embeds, pipeline.text_encoder(words.input_ids).pooler_output


def encode_pool(pipeline: FluxPipeline, stage: Stage, n_scenes: int, folder: Path) -> Pool:
    """Render and encode the training scenes of a stage, or read its latents in `folder`."""
    scenes = []
    for kind, share in stage.kinds.items():
        data = ShapesDataset("train", max(1, round(share * n_scenes)), size=stage.size, **SCENES[kind])
        scenes += [(kind, data.scene(index)) for index in tqdm(range(len(data)), desc=f"{stage.size} px {kind}")]
    captions = [scene.caption for _, scene in scenes]
    path = folder / f"latents_{stage.size}.safetensors"
    if not path.exists():
        latents = encode_scenes(pipeline.vae, [scene for _, scene in scenes])
        with atomic_write(path) as temporary:
            save_file({"latents": latents}, temporary)
    groups = defaultdict(list)
    lengths = [len(ids) for ids in pipeline.tokenizer_2(captions).input_ids]
    for index, ((kind, _), length) in enumerate(zip(scenes, lengths, strict=True)):
        groups[kind, length].append(index)
    indices = {key: np.array(of_key) for key, of_key in groups.items()}
    return Pool(stage, load_file(path)["latents"], captions, indices)


def encode_scenes(vae: AutoencoderKL, scenes: list[Scene]) -> Tensor:
    """Render and encode scenes; return posterior means, float16 [n, I, 64]."""
    parts = []
    for start in tqdm(range(0, len(scenes), 16), desc="encoding"):
        images = torch.cat([as_image(scene.render()[0]) for scene in scenes[start : start + 16]])
        with cpu_autocast():
            posterior = encode_images(images, vae)
        parts.append(posterior.mean.half())
    return torch.cat(parts)


if __name__ == "__main__":
    run_command(main)
