"""Train the embedded text-to-image base:  python -m seg2any.tiny.train_base --vae runs/tiny_vae/vae

Global captions only: the base never sees a mask. The text encoders learn with the transformer. A curriculum helps
words to find their pixels: scenes with one figure bind colours to nouns, scenes with several come in gradually.
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
from tqdm import tqdm

from seg2any import flow
from seg2any.data.shapes import ShapesDataset
from seg2any.files import atomic_write
from seg2any.latents import encode_images
from seg2any.tiny import loop
from seg2any.tiny.build import GLOBAL_TOKENS, REGION_TOKENS, build_pipeline

GRID = 16  # tokens per edge of a 256 px image
SCENES = {"single": 0.55, "normal": 0.4, "crowded": 0.05}
# How T5 is run, as (length, with its padding rows) and how often: the embeddings depend on the length, and inference
# uses all three (a region's caption, a global caption beside regions, plain FLUX).
TEXT_MODES = {"single": [(REGION_TOKENS, False), (GLOBAL_TOKENS, False), (GLOBAL_TOKENS, True)]}
TEXT_MODES["normal"] = TEXT_MODES["crowded"] = TEXT_MODES["single"][1:]
# More of the noisiest levels than uniform: only there does the caption decide what is drawn.
WEIGHTING = flow.TimestepWeighting("logit_normal", logit_mean=-0.8, logit_std=1.3)
MODE_SHARES = {"single": [0.6, 0.25, 0.15], "normal": [0.8, 0.2], "crowded": [0.8, 0.2]}


@dataclass(frozen=True)
class Pool:
    """Encoded scenes: latents float16 [n, 256, 64], captions, and groups of equal kind and caption length."""

    latents: Tensor
    captions: list[str]
    groups: dict[tuple[str, int], np.ndarray]

    def draw(self, step: int, n: int, singles: float) -> tuple[str, np.ndarray]:
        """Kind and indices of one batch; all its captions have the same number of tokens, so none is padded."""
        rng = np.random.default_rng((11, step))
        kind = "single" if rng.random() < singles else ("normal" if rng.random() < 0.9 else "crowded")
        groups = [indices for (of_kind, _), indices in self.groups.items() if of_kind == kind]
        sizes = np.array([len(indices) for indices in groups])
        indices = groups[rng.choice(len(groups), p=sizes / sizes.sum())]
        return kind, rng.choice(indices, size=n, replace=len(indices) < n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="runs/tiny_vae/vae")
    parser.add_argument("--output_dir", default="runs/tiny_base", help="state, log, latents and the finished pipeline")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pipeline = build_pipeline(args.seed)
    pipeline.vae = AutoencoderKL.from_pretrained(args.vae).eval().to(memory_format=torch.channels_last)
    pool = encode_pool(pipeline, args.scenes, Path(args.output_dir))
    model = nn.ModuleDict({name: getattr(pipeline, name) for name in ("transformer", "text_encoder", "text_encoder_2")})
    settings = loop.LoopSettings(args.output_dir, args.steps, args.learning_rate, seed=args.seed)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        done = step / args.steps
        kind, indices = pool.draw(step, args.batch_size, singles=max(0.5, 1 - 1.5 * done))
        loss = flow_loss(pipeline, pool, kind, indices, np.random.default_rng((13, step)))
        return loss, {kind: loss.item()}

    loop.run(model, loss_at, settings)
    pipeline.to(torch.float16).save_pretrained(Path(args.output_dir) / "model")
    print(f"saved {args.output_dir}/model")


def flow_loss(pipeline: FluxPipeline, pool: Pool, kind: str, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
    """The rectified-flow loss (seg2any.flow) of plain FLUX on one batch of equal caption lengths."""
    length, padded = TEXT_MODES[kind][rng.choice(len(TEXT_MODES[kind]), p=MODE_SHARES[kind])]
    captions = [pool.captions[i] for i in indices]
    x0 = pool.latents[torch.from_numpy(indices)].float()
    noise, s = torch.randn_like(x0), flow.noise_level(WEIGHTING.sample(len(x0)))
    with torch.autocast("cpu", torch.bfloat16):
        embeds, pooled = embed(pipeline, captions, length, padded)
        prediction = pipeline.transformer(
            hidden_states=flow.interpolate(x0, noise, s),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=s,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, GRID, GRID, "cpu", torch.float32),
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


def encode_pool(pipeline: FluxPipeline, n_scenes: int, folder: Path) -> Pool:
    """Render and encode the training scenes, or read what an earlier run encoded with the same VAE."""
    datasets = [(kind, ShapesDataset("train", max(1, round(share * n_scenes)), kind)) for kind, share in SCENES.items()]
    scenes = [(kind, data.scene(index)) for kind, data in datasets for index in tqdm(range(len(data)), desc=kind)]
    captions = [scene.caption for _, scene in scenes]
    path = folder / "latents.safetensors"
    if path.exists():
        latents = load_file(path)["latents"]
    else:
        parts = []
        for start in tqdm(range(0, len(scenes), 16), desc="encoding"):
            images = np.stack([scene.render()[0] for _, scene in scenes[start : start + 16]])
            with torch.autocast("cpu", torch.bfloat16):
                posterior = encode_images(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, pipeline.vae)
            parts.append(posterior.mean.half())
        latents = torch.cat(parts)
        with atomic_write(path) as temporary:
            save_file({"latents": latents}, temporary)
    groups = defaultdict(list)
    lengths = [len(ids) for ids in pipeline.tokenizer_2(captions).input_ids]
    for index, ((kind, _), length) in enumerate(zip(scenes, lengths, strict=True)):
        groups[kind, length].append(index)
    return Pool(latents, captions, {key: np.array(indices) for key, indices in groups.items()})


if __name__ == "__main__":
    main()
