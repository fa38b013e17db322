"""Convert between images and packed latents with FLUX's VAE.

Shapes: B batch, C latent channels, H W pixels, h w token grid (H / pixels_per_token), I = h w tokens.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

from seg2any.bases.base import Posterior
from seg2any.bases.packing import pack, unpack
from seg2any.system.errors import UserError


def pixels_per_token(n_levels: int) -> int:
    """Return the edge in pixels of the image patch behind one token.

    A VAE of `n_levels` halves the image n_levels - 1 times, packing halves it once more.
    """
    return 2 * 2 ** (n_levels - 1)


@torch.no_grad()
def encode_images(images: Tensor, vae: AutoencoderKL) -> Posterior:
    """Encode float [B, 3, H, W] in [-1, 1] -> Posterior [B, I, 4C], on the device of the VAE."""
    posterior = vae.encode(images.to(get_module_execution_device(vae), vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    return Posterior(pack((posterior.mean - shift) * scale), pack(posterior.std * scale))


@torch.no_grad()
def decode_latents(tokens: Tensor, grid: tuple[int, int], vae: AutoencoderKL) -> Tensor:
    """Decode [B, h*w, 4C] -> images [B, 3, H, W], about in [-1, 1], on the VAE's device.

    Raises UserError for NaN and infinity, which an image file would silently show as black.
    """
    images = decode_with_gradients(tokens, grid, vae)
    if not images.isfinite().all():
        raise UserError(
            "decoding: an image came out as NaN; load the model in bfloat16 or float32, because float16 may overflow. "
            "If it is in one of them, check the files of the model and of the adapters"
        )
    return images


def decode_with_gradients(tokens: Tensor, grid: tuple[int, int], vae: AutoencoderKL) -> Tensor:
    """Decode as `decode_latents` does; gradients reach the tokens, and NaN and infinity come through."""
    latents = unpack(tokens, grid) / vae.config.scaling_factor + vae.config.shift_factor
    return vae.decode(latents.to(get_module_execution_device(vae), vae.dtype)).sample
