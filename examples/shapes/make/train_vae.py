"""Train the embedded VAE on rendered scenes:  python -m examples.shapes.make.train_vae --output_dir runs/tiny_vae

The geometry is FLUX's (factor 8, 16 channels). The KL term is strong: a small transformer has no
capacity for latents whose every digit matters. Crops first, whole images for the last fifth. `--start_from`
goes on from a finished vae/ folder; `--decoder_only` with it keeps the latents, so that a base trained on them stays
valid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from examples.shapes.make import loop
from examples.shapes.make.build import build_vae
from seg2any.data.shapes import ShapesDataset
from seg2any.layout.contour import outline
from seg2any.system.console import exit_status, real, whole
from seg2any.system.interrupts import run_command
from seg2any.system.precision import cpu_autocast

KL_WEIGHT = 3e-3
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0  # L1 alone starts slowly
MIX = {"normal": 0.6, "crowded": 0.2, "thin": 0.2}
CONTOURS = 8  # every eighth scene's contour map is a training image too: the adapters' condition passes the encoder


def main(words: list[str] | None = None) -> int:
    """Exit status: 0 trained to the end, 1 out of memory, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/tiny_vae", help="state, log and the finished vae/ folder")
    parser.add_argument("--steps", type=whole(1), default=4800, help="default: %(default)s")
    parser.add_argument("--scenes", type=whole(1), default=2400, help="rendered once, kept in memory: 0.2 MB each")
    parser.add_argument(
        "--batch_size", type=whole(4), default=8, help="crops of 128 px; of images a quarter (default: %(default)s)"
    )
    parser.add_argument("--learning_rate", type=real(0), default=5e-4, help="at its highest (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="default: %(default)s")
    parser.add_argument("--kl_weight", type=real(0), default=KL_WEIGHT, help="of the mean KL in nats per latent number")
    parser.add_argument("--start_from", help="a finished vae/ folder to go on from")
    parser.add_argument("--decoder_only", action="store_true", help="with --start_from: latents stay as they are")
    args = parser.parse_args(words)
    if args.decoder_only and not args.start_from:
        parser.error("--decoder_only needs --start_from FOLDER")
    return exit_status("examples.shapes.make.train_vae", lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Train to the end, or go on from the state in --output_dir; leaves a finished `vae` folder, in fp32."""
    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(args.start_from) if args.start_from else build_vae()
    vae.to(torch.float32, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(not args.decoder_only)
    images = render(args.scenes)
    settings = loop.LoopSettings(args.output_dir, args.steps, args.learning_rate, clip=10.0, seed=args.seed)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        late = step >= 0.8 * args.steps
        batch = crops(images, args.batch_size // 4 if late else args.batch_size, 256 if late else 128, step)
        return reconstruction_loss(vae, batch, args.kl_weight)

    loop.run(vae, loss_at, settings)
    if not args.decoder_only:
        shift, scale = latent_statistics(vae, images[:256])
        vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    vae.save_pretrained(Path(args.output_dir) / "vae")
    print(f"saved {args.output_dir}/vae")


def render(n_scenes: int) -> np.ndarray:
    """uint8 [n, 256, 256, 3] of the training split: scenes, then contour maps."""
    images, contours = [], []
    for kind, share in MIX.items():
        data = ShapesDataset("train", max(1, round(share * n_scenes)), kind)
        for index in tqdm(range(len(data)), desc=f"rendering {kind}"):
            sample = data[index]
            images.append(sample.image)
            if index % CONTOURS == 0:
                contours.append(np.repeat(outline(sample.layout.masks)[..., None], 3, axis=-1))
    return np.stack(images + contours)


def crops(images: np.ndarray, n: int, size: int, step: int) -> Tensor:
    """Random flipped squares float32 [n, 3, size, size] in [-1, 1]."""
    rng = np.random.default_rng((7, step))
    batch = []
    for index in rng.integers(len(images), size=n):
        top, left = rng.integers(images.shape[1] - size + 1, size=2)
        crop = images[index, top : top + size, left : left + size]
        batch.append(crop[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])])
    pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
    """L1 and squared error of pixels [B, 3, H, W], L1 of their differences (edges decide the IoU), and the mean KL per
    latent: their weighted sum [], and parts of it to log."""
    with cpu_autocast():
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.sample()).sample.float()
    error = output - pixels
    l1 = error.abs().mean()
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = l1 + SQUARE_WEIGHT * error.square().mean() + EDGE_WEIGHT * edges + kl_weight * kl
    return loss, {"l1": l1.item(), "edges": edges.item(), "kl": kl.item()}


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, images: np.ndarray) -> tuple[float, float]:
    """Shift and scale that give latents mean 0 and standard deviation 1: z' = (z - shift) * scale."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(16)])
    return float(latents.mean()), float(1 / latents.std())


if __name__ == "__main__":
    run_command(main)
