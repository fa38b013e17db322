"""Train the embedded text-to-image base:  python -m examples.shapes.make.train_base --vae runs/tiny_vae/vae

Global captions only: the base never sees a mask. The text encoders learn with the transformer. A curriculum helps words
to find their pixels: first small images of one to three figures, at a third of the price of a whole scene and with
figures of the same size as there, then whole scenes.
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
from seg2any.system.console import exit_status, real, whole
from seg2any.system.files import atomic_write
from seg2any.system.interrupts import run_command
from seg2any.system.precision import cpu_autocast, has_fast_bfloat16


@dataclass(frozen=True)
class Stage:
    """A part of the training: edge of its images in pixels, steps, images a step, and how often a step draws each kind
    of scene."""

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
# How T5 is run, as (length, with its padding rows) and how often: the embeddings depend on the length, and inference
# uses all three (a region's caption, a global caption beside regions, plain FLUX).
ONE_FIGURE = {(REGION_TOKENS, False): 0.6, (GLOBAL_TOKENS, False): 0.3, (GLOBAL_TOKENS, True): 0.1}
SEVERAL = {(GLOBAL_TOKENS, False): 0.85, (GLOBAL_TOKENS, True): 0.15}
MUON = ("transformer_blocks.", "encoder.block.", "encoder.layers.")
# More of the noisiest levels than uniform: only there does the caption decide what is drawn.
WEIGHTING = flow.TimestepWeighting("logit_normal", logit_mean=-0.8, logit_std=1.3)


@dataclass(frozen=True)
class Pool:
    """Encoded scenes of a stage: latents float16 [n, I, 64], captions, groups of equal kind and caption length."""

    stage: Stage
    latents: Tensor
    captions: list[str]
    groups: dict[tuple[str, int], np.ndarray]

    def draw(self, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """Kind and indices of one batch; all its captions have the same number of tokens, so none is padded."""
        kind = choose(rng, self.stage.kinds)
        groups = {key: len(indices) for key, indices in self.groups.items() if key[0] == kind}
        indices = self.groups[choose(rng, groups)]
        return kind, rng.choice(indices, self.stage.batch_size, replace=len(indices) < self.stage.batch_size)


def main(words: list[str] | None = None) -> int:
    """Exit status: 0 trained to the end, 1 out of memory, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="runs/tiny_vae/vae", help="what train_vae left (default: %(default)s)")
    parser.add_argument("--output_dir", default="runs/tiny_base", help="state, log, latents and the finished pipeline")
    parser.add_argument(
        "--start_from", help="a pipeline folder whose transformer and text encoders are trained further"
    )
    steps = [stage.steps for stage in STAGES]
    parser.add_argument(
        "--steps", type=whole(0), nargs=len(STAGES), default=steps, help="of each stage (default: %(default)s)"
    )
    parser.add_argument("--scenes", type=whole(1), default=6000, help="of each stage (default: %(default)s)")
    parser.add_argument("--learning_rate", type=real(0), default=1e-3, help="at its highest (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="default: %(default)s")
    args = parser.parse_args(words)
    return exit_status("examples.shapes.make.train_base", lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Train to the end, or go on from the state in --output_dir; leaves a finished FLUX folder `model`, in fp16."""
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
    """A finished pipeline in fp32, ready to be trained further."""
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
        part.train().requires_grad_(True)
    return pipeline


def choose(rng: np.random.Generator, weights: dict):
    """One key, as often as its weight says."""
    keys, shares = list(weights), np.array(list(weights.values()), float)
    return keys[rng.choice(len(keys), p=shares / shares.sum())]


def flow_loss(pipeline: FluxPipeline, pool: Pool, kind: str, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
    """The rectified-flow loss [] (seg2any.diffusion.flow) of plain FLUX on one batch of equal caption lengths."""
    length, padded = choose(rng, ONE_FIGURE if kind == "single" else SEVERAL)
    captions = [pool.captions[i] for i in indices]
    grid = pool.stage.size // pixels_per_token(len(pipeline.vae.config.block_out_channels))
    x0 = pool.latents[torch.from_numpy(indices)].float()
    noise, s = torch.randn_like(x0), flow.noise_level(WEIGHTING.sample(len(x0)))
    # Plain products: at these lengths the backward pass of a CPU's fused kernel costs twice as much.
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
    """T5 rows [B, T, D] and pooled CLIP [B, P], with gradients. Without `padded` all captions must be equally long."""
    tokens = pipeline.tokenizer_2(captions, padding="max_length", max_length=length, return_tensors="pt")
    embeds = pipeline.text_encoder_2(tokens.input_ids)[0]
    if not padded:
        embeds = embeds[:, : int(tokens.attention_mask[0].sum())]
    words = pipeline.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return embeds, pipeline.text_encoder(words.input_ids).pooler_output


def encode_pool(pipeline: FluxPipeline, stage: Stage, n_scenes: int, folder: Path) -> Pool:
    """Render and encode the training scenes of a stage, or read what an earlier run encoded with the same VAE."""
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
    """Posterior means float16 [n, I, 64] of the rendered scenes."""
    parts = []
    for start in tqdm(range(0, len(scenes), 16), desc="encoding"):
        images = np.stack([scene.render()[0] for scene in scenes[start : start + 16]])
        with cpu_autocast():
            posterior = encode_images(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, vae)
        parts.append(posterior.mean.half())
    return torch.cat(parts)


if __name__ == "__main__":
    run_command(main)
