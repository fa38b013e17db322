"""Train the embedded VAE on rendered scenes.

    python -m examples.shapes.make.train_vae --output_dir runs/tiny_vae

The geometry is FLUX's (factor 8, 16 channels). The KL term is strong, because a small transformer cannot model latents
in which every digit matters. Training uses crops, and whole images for the last fifth of the steps. `--start_from`
continues from a finished vae/ folder; with `--decoder_only` the encoder stays as it is, so that a base trained on its
latents stays valid.
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
from seg2any.diffusion.prepare import as_image
from seg2any.layout.contour import outline
from seg2any.system.console import exit_status, real, whole
from seg2any.system.interrupts import run_command
from seg2any.system.precision import cpu_autocast

KL_WEIGHT = 3e-3
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0  # L1 alone starts slowly
MIX = {"normal": 0.6, "crowded": 0.2, "thin": 0.2}
CONTOURS = 8  # the contour map of every eighth scene is a training image too, because the VAE encodes condition images


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 trained to the end, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", default="runs/tiny_vae", help="folder for state, log and the finished vae/ (%(default)s)"
    )
    parser.add_argument("--steps", type=whole(1), default=4800, help="default: %(default)s")
    parser.add_argument("--scenes", type=whole(1), default=2400, help="scenes to keep in memory, 0.2 MB each")
    parser.add_argument(
        "--batch_size",
        type=whole(4),
        default=8,
        help="crops of 128 px per step (default: %(default)s); a quarter as many images",
    )
    parser.add_argument("--learning_rate", type=real(0), default=5e-4, help="peak value (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="default: %(default)s")
    parser.add_argument(
        "--kl_weight", type=real(0), default=KL_WEIGHT, help="weight of the mean KL, in nats per latent number"
    )
    parser.add_argument("--start_from", help="finished vae/ folder to continue from")
    parser.add_argument("--decoder_only", action="store_true", help="with --start_from: train the decoder only")
    args = parser.parse_args(words)
    if args.decoder_only and not args.start_from:
        parser.error("--decoder_only: --start_from is missing; give the folder of a finished VAE")
    return exit_status("examples.shapes.make.train_vae", lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Train to the end and save the folder `vae` in fp32.

    An interrupted run continues from the state in --output_dir.
    """
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
    """Render scenes of the training split, then contour maps, uint8 [n, 256, 256, 3]."""
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
    """Cut n random squares, randomly flipped, float32 [n, 3, size, size] in [-1, 1]."""
    rng = np.random.default_rng((7, step))
    batch = []
    for index in rng.integers(len(images), size=n):
        top, left = rng.integers(images.shape[1] - size + 1, size=2)
        crop = images[index, top : top + size, left : left + size]
        batch.append(crop[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])])
    return torch.cat([as_image(crop) for crop in batch]).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(vae: AutoencoderKL, pixels: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss [] of pixels [B, 3, H, W], and its parts to log.

    It is a weighted sum of the L1 and squared error, the L1 of differences between neighbouring pixels (edges decide
    the IoU), and the mean KL per latent number.
    """
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
    """Compute shift and scale so that (z - shift) * scale has mean 0 and deviation 1."""
    pixels = torch.cat([as_image(image) for image in images])
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(16)])
    return float(latents.mean()), float(1 / latents.std())


if __name__ == "__main__":
    run_command(main)
