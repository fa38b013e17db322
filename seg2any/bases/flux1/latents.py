"""Images and packed latents: one token per 2 x 2 latent pixels, as FLUX's transformer takes them.

Shapes: B batch, C latent channels, H W pixels, h w token grid (H / pixels_per_token), I = h w tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from seg2any.system.errors import UserError


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the VAE says about an image, q(z | x): packed and scaled `mean` and `std`, each [..., I, 4C].

    Kept instead of a sample, so that a cache can serve every training step with fresh noise.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """[..., I, 4C], for standard normal noise of that shape (see `packed_noise`)."""
        return self.mean + self.std * noise.to(self.mean)

    def __getitem__(self, index) -> Posterior:
        return Posterior(self.mean[index], self.std[index])

    def cpu(self) -> Posterior:
        """The same on the CPU."""
        return Posterior(self.mean.cpu(), self.std.cpu())


def pixels_per_token(vae: AutoencoderKL) -> int:
    """Edge of the image patch behind one token: the VAE's factor times 2 for packing, 16 for FLUX."""
    return 2 * 2 ** (len(vae.config.block_out_channels) - 1)


def pack(latents: Tensor) -> Tensor:
    """[B, C, 2h, 2w] -> [B, h*w, 4C]."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h*w, 4C] -> [B, C, 2h, 2w]."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), 2)


@torch.no_grad()
def encode_images(images: Tensor, vae: AutoencoderKL) -> Posterior:
    """float [B, 3, H, W] in [-1, 1] -> Posterior [B, I, 4C] where the VAE is. H, W: multiples of `pixels_per_token`."""
    posterior = vae.encode(images.to(get_module_execution_device(vae), vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    return Posterior(pack((posterior.mean - shift) * scale), pack(posterior.std * scale))


@torch.no_grad()
def decode_latents(tokens: Tensor, grid: tuple[int, int], vae: AutoencoderKL) -> Tensor:
    """[B, h*w, 4C] -> images [B, 3, H, W], about [-1, 1], where the VAE is.

    Raises UserError for NaN and infinity, which everything after this would make black without a word.
    """
    latents = unpack(tokens, grid) / vae.config.scaling_factor + vae.config.shift_factor
    images = vae.decode(latents.to(get_module_execution_device(vae), vae.dtype)).sample
    if not images.isfinite().all():
        raise UserError(
            "an image came out as NaN: float16 may overflow, load the model in bfloat16 or float32; if it is, weights "
            "of the model or of an adapter are damaged"
        )
    return images
