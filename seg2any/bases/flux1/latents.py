"""Images and packed latents of FLUX's VAE.

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
    """Return the edge of the image patch behind one token: a VAE of `n_levels` halves the image between them."""
    return 2 * 2 ** (n_levels - 1)  # and packing halves it once more


@torch.no_grad()
def encode_images(images: Tensor, vae: AutoencoderKL) -> Posterior:
    """Encode float [B, 3, H, W] in [-1, 1] -> Posterior [B, I, 4C], on the device of the VAE."""
    posterior = vae.encode(images.to(get_module_execution_device(vae), vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    return Posterior(pack((posterior.mean - shift) * scale), pack(posterior.std * scale))


@torch.no_grad()
def decode_latents(tokens: Tensor, grid: tuple[int, int], vae: AutoencoderKL) -> Tensor:
    """Decode [B, h*w, 4C] -> images [B, 3, H, W], about [-1, 1], on the device of the VAE.

    Raises UserError for NaN and infinity, which everything after this would turn black without a word.
    """
    latents = unpack(tokens, grid) / vae.config.scaling_factor + vae.config.shift_factor
    images = vae.decode(latents.to(get_module_execution_device(vae), vae.dtype)).sample
    if not images.isfinite().all():
        raise UserError(
            "an image came out as NaN: float16 may overflow, load the model in bfloat16 or float32; if it is, weights "
            "of the model or of an adapter are damaged"
        )
    return images
