"""Train the embedded text-to-image base, one stage of the curriculum at a time.

    python -m examples.shapes.make.train_base texture --vae runs/tiny_vae/vae
    python -m examples.shapes.make.train_base figure --start_from runs/base_texture/model

The base learns from captions only and never sees a mask; the text encoders are trained with it. Patterns and letters
are learned first where they fill the image, then on small and on whole scenes.
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
from examples.shapes.make.build import GLOBAL_TOKENS, REGION_TOKENS, build_pipeline, build_t5_tokenizer
from examples.shapes.make.curriculum import STAGES, Stage, crowd_caption, scenes_of
from seg2any.bases.flux1.latents import encode_images
from seg2any.data.shapes import Scene
from seg2any.data.shapes_draw import Size
from seg2any.diffusion import flow
from seg2any.diffusion.prepare import as_image
from seg2any.system.console import exit_status, real, whole
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, user_path
from seg2any.system.interrupts import run_command
from seg2any.system.precision import cpu_autocast

ONE_FIGURE = ("large", "single")
PADDED = 0.15  # share of the other batches in which T5's rows reach to the full length, as in plain FLUX
MUON = ("attn.", "ff.net", "ff_context.net", "proj_mlp", "encoder.block.", "encoder.layers.")
MUON += tuple(f"single_transformer_blocks.{block}.proj_out" for block in range(5))
MOVED, LARGEST_GRID = 0.5, 40  # 40 tokens are 640 px
ALONE = 0.6  # share of the batches of one figure in which T5 reads its caption alone, and CLIP that of a whole scene


@dataclass(frozen=True)
class Pool:
    """Encoded scenes of a stage in one size.

    grid     (h, w) of the tokens of an image
    latents  float16 [n, I, 64]
    groups   indices of the scenes of each kind and caption length
    """

    stage: Stage
    grid: tuple[int, int]
    latents: Tensor
    scenes: list[Scene]
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
    parser.add_argument("stage", choices=STAGES, help="what to train on")
    parser.add_argument("--vae", help="vae/ folder of train_vae (default: that of --start_from)")
    parser.add_argument(
        "--output_dir",
        type=user_path,
        help="folder for state, log, latents and the finished pipeline (default: runs/base_STAGE)",
    )
    parser.add_argument("--start_from", help="pipeline folder to train further (default: random weights)")
    parser.add_argument("--steps", type=whole(0), help="default: the stage's")
    parser.add_argument("--scenes", type=whole(1), default=6000, help="scenes to keep (default: %(default)s)")
    parser.add_argument("--learning_rate", type=real(0), help="peak value (default: the stage's)")
    parser.add_argument("--final_lr", type=real(0), default=0.1, help="last learning rate, as a share of the peak")
    parser.add_argument("--seed", type=whole(0), default=0, help="default: %(default)s")
    args = parser.parse_args(words)
    return exit_status("examples.shapes.make.train_base", lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Train to the end and save the FLUX folder `model` in fp16.

    An interrupted run continues from the state in --output_dir.
    """
    stage, output = STAGES[args.stage], args.output_dir or Path(f"runs/base_{args.stage}")
    pipeline = start_from(args.start_from) if args.start_from else build_pipeline(args.seed)
    if args.vae:
        pipeline.vae = AutoencoderKL.from_pretrained(args.vae)
    pipeline.vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    sizes = list(dict.fromkeys(stage.sizes))
    pools = {size: encode_pool(pipeline, stage, size, args.scenes, output) for size in sizes}
    model = nn.ModuleDict({name: getattr(pipeline, name) for name in ("transformer", "text_encoder", "text_encoder_2")})
    steps = stage.steps if args.steps is None else args.steps
    settings = loop.LoopSettings(
        str(output),
        steps,
        args.learning_rate or stage.learning_rate,
        final_lr=args.final_lr,
        ema_decay=0.995,
        save_every=100,
        seed=args.seed,
        muon=MUON,
    )

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step))
        pool = pools[stage.sizes[step % len(stage.sizes)]]
        kind, indices = pool.draw(rng)
        loss = flow_loss(pipeline, pool, kind, indices, rng)
        return loss, {kind: loss.item()}

    loop.run(model, loss_at, settings)
    pipeline.to(torch.float16).save_pretrained(output / "model")
    print(f"saved {output}/model")


def start_from(folder: str) -> FluxPipeline:
    """Load a finished pipeline in fp32, with trainable transformer and text encoders. Raises UserError."""
    pipeline = open_base(folder)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
        part.train().requires_grad_(True)
    return pipeline


def open_base(folder: str) -> FluxPipeline:
    """Load a pipeline folder in fp32, with all words of captions. Raises UserError for a folder without one."""
    if not (Path(folder) / "model_index.json").is_file():
        raise UserError(f"{folder}: has no model_index.json; give the folder of a pipeline")
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    add_words(pipeline)
    return pipeline


def add_words(pipeline: FluxPipeline) -> None:
    """Give a pipeline that was made before the article "an" the tokenizer that has it; it starts as "a"."""
    tokenizer, old = build_t5_tokenizer(), len(pipeline.tokenizer_2)
    if len(tokenizer) == old:
        return
    encoder = pipeline.text_encoder_2
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        encoder.shared.weight[old:] = encoder.shared.weight[tokenizer.convert_tokens_to_ids("▁a")]
    pipeline.register_modules(tokenizer_2=tokenizer)


def choose(rng: np.random.Generator, weights: dict):
    """Draw a key with a probability proportional to its weight."""
    keys, shares = list(weights), np.array(list(weights.values()), float)
    return keys[rng.choice(len(keys), p=shares / shares.sum())]


def flow_loss(pipeline: FluxPipeline, pool: Pool, kind: str, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Compute the rectified-flow loss [] of plain FLUX on one batch of equally long captions."""
    scenes = [pool.scenes[i] for i in indices]
    x0 = pool.latents[torch.from_numpy(indices)].float()
    noise, s = torch.randn_like(x0), flow.noise_level(pool.stage.noise.sample(len(x0)))
    # MATH: at these lengths the backward pass of the CPU's fused kernel costs twice as much.
    with cpu_autocast(), sdpa_kernel(SDPBackend.MATH):
        embeds, pooled = embed(pipeline, *read(scenes, kind, rng))
        prediction = pipeline.transformer(
            hidden_states=flow.interpolate(x0, noise, s),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=s,
            img_ids=positions(pool.grid, rng),
            txt_ids=torch.zeros(embeds.shape[1], 3),
        ).sample
    return flow.loss(prediction, flow.velocity(x0, noise), torch.ones(len(x0)))


def positions(grid: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return the positions [I, 3] of a grid (h, w) of tokens, in half of the cases moved down and right.

    So a model that is trained on small images knows how text relates to the far tokens of large ones.
    """
    ids = FluxPipeline._prepare_latent_image_ids(1, *grid, "cpu", torch.float32)
    if rng.random() < MOVED:
        down, right = (float(rng.integers(max(1, LARGEST_GRID - side + 1))) for side in grid)
        ids = ids + torch.tensor([0.0, down, right])
    return ids


def read(scenes: list[Scene], kind: str, rng: np.random.Generator) -> tuple[list[str], list[str], int, bool]:
    """Choose what T5 and CLIP read: captions for T5, captions for CLIP, T5's length, whether it is padded.

    CLIP's vector belongs to the whole image. A base that takes colour and pattern from it cannot follow the captions
    of regions, which only T5 reads; so often CLIP reads the caption of a scene with other figures in it.
    """
    captions = [scene.caption for scene in scenes]
    if kind in ONE_FIGURE and rng.random() < ALONE:
        crowds = [crowd_caption(scene, rng) for scene in scenes]
        return [scene.figures[0].caption for scene in scenes], crowds, REGION_TOKENS, False
    return captions, captions, GLOBAL_TOKENS, rng.random() < PADDED


def embed(
    pipeline: FluxPipeline, captions: list[str], pooled: list[str], length: int, padded: bool
) -> tuple[Tensor, Tensor]:
    """Compute T5 embeddings [B, T, D] of captions and CLIP vectors [B, P] of `pooled`, with gradients.

    Without `padded`, all captions must have the same number of tokens.
    """
    tokens = pipeline.tokenizer_2(captions, padding="max_length", max_length=length, return_tensors="pt")
    embeds = pipeline.text_encoder_2(tokens.input_ids)[0]
    if not padded:
        embeds = embeds[:, : int(tokens.attention_mask[0].sum())]
    words = pipeline.tokenizer(pooled, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return embeds, pipeline.text_encoder(words.input_ids).pooler_output


def encode_pool(pipeline: FluxPipeline, stage: Stage, size: Size, n_scenes: int, folder: Path) -> Pool:
    """Render and encode the training scenes of a stage in one size, or read their latents in `folder`."""
    n_scenes = round(n_scenes * stage.sizes.count(size) / len(stage.sizes))
    total, scenes = sum(stage.kinds.values()), []
    for kind, share in stage.kinds.items():
        scenes += [(kind, scene) for scene in scenes_of(kind, max(1, round(share / total * n_scenes)), size)]
    path = folder / f"latents_{size[0]}x{size[1]}.safetensors"
    if not path.exists():
        latents = encode_scenes(pipeline.vae, [scene for _, scene in scenes])
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file({"latents": latents}, temporary)
    groups = defaultdict(list)
    lengths = [len(ids) for ids in pipeline.tokenizer_2([scene.caption for _, scene in scenes]).input_ids]
    for index, ((kind, _), length) in enumerate(zip(scenes, lengths, strict=True)):
        groups[kind, length].append(index)
    indices = {key: np.array(of_key) for key, of_key in groups.items()}
    grid = (size[0] // 16, size[1] // 16)
    return Pool(stage, grid, load_file(path)["latents"], [scene for _, scene in scenes], indices)


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
