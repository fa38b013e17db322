"""Turn images into feature vectors, for distances between sets of images (FID, FDD, CMMD)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Model, DINOv3ViTModel

from seg2any.system.clip_images import ClipImages
from seg2any.system.errors import UserError
from seg2any.system.pretrained import for_inference, imagenet_normalised, pretrained_model, weights_file
from seg2any.system.weights import file_digest

INCEPTION_SOURCE = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
INCEPTION_DIGEST = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
DIGEST_VARIABLE = "INCEPTION_SHA256"
DINOV2_SOURCE = "facebook/dinov2-large"
DINOV3_SOURCE = "facebook/dinov3-vitl16-pretrain-lvd1689m"
CMMD_SOURCE = "openai/clip-vit-large-patch14-336"
INCEPTION_SIDE, DINO_SIDE = 299, 224  # pixels


class InceptionNetwork:
    """Inception of FID with clean-fid's resizing (arXiv 2104.11222): float32 [B, 2048].

    Numbers compare with "clean" FID of other papers, and with no other kind. `path` is the TorchScript file of
    INCEPTION_SOURCE. Raises UserError if the file is missing or is another one: TorchScript is code, which is run only
    if its sha256 is known or stands in the environment, INCEPTION_SHA256.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.device, path = device, weights_file(path, "Inception of FID", INCEPTION_SOURCE)
        if (digest := file_digest(path)) not in (INCEPTION_DIGEST, os.environ.get(DIGEST_VARIABLE)):
            raise UserError(
                f"Inception of FID: {path} has the sha256 {digest}, and TorchScript is code, of which only the "
                f"known file is run; download {INCEPTION_SOURCE}, or set {DIGEST_VARIABLE} if you made this file"
            )
        try:
            self.layers = torch.jit.load(path, map_location="cpu").layers.eval().to(device)
        except (RuntimeError, AttributeError, ValueError):
            raise UserError(
                f"Inception of FID: {path} is not the expected TorchScript file; download {INCEPTION_SOURCE} again"
            ) from None

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([clean_resize(image) for image in images])).permute(0, 3, 1, 2)
        return self.layers((pixels.to(self.device) - 128) / 128).flatten(1).cpu().numpy()


def clean_resize(image: np.ndarray, side: int = INCEPTION_SIDE) -> np.ndarray:
    """Stretch uint8 [H, W, 3] to float32 [side, side, 3] in 0..255.

    PIL bicubic on each channel in floating point, without rounding.
    """
    channels = (
        Image.fromarray(image[..., channel].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        for channel in range(3)
    )
    return np.stack([np.asarray(channel) for channel in channels], -1).clip(0, 255)


class DinoNetwork:
    """A DINO of a Frechet distance: normalised class tokens float32 [B, D] of images stretched to 224 pixels."""

    def __init__(self, cls: type, name: str, what: str, source: str, device: torch.device | str):
        self.model = for_inference(pretrained_model(cls, name, what, source), device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        size = DINO_SIDE, DINO_SIDE
        stretched = (Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in images)
        pixels = torch.cat([imagenet_normalised(np.asarray(image)) for image in stretched])
        return self.model(pixel_values=pixels.to(self.device)).pooler_output.float().cpu().numpy()


class Dinov2Network(DinoNetwork):
    """DINOv2 ViT-L/14 of FDD (arXiv 2306.04675). `name` is a folder or a hub id."""

    def __init__(self, name: str = DINOV2_SOURCE, device: torch.device | str = "cpu"):
        super().__init__(Dinov2Model, name, "DINOv2 of FDD", DINOV2_SOURCE, device)


class Dinov3Network(DinoNetwork):
    """DINOv3 ViT-L/16 (arXiv 2508.10104), whose distances compare with no other's. `name` is a folder or a hub id."""

    def __init__(self, name: str = DINOV3_SOURCE, device: torch.device | str = "cpu"):
        super().__init__(DINOv3ViTModel, name, "DINOv3 of the Frechet distance", DINOV3_SOURCE, device)


class CmmdNetwork(ClipImages):
    """CLIP of CMMD (arXiv 2401.09603). `name` is a folder or a hub id."""

    def __init__(self, name: str = CMMD_SOURCE, device: torch.device | str = "cpu"):
        super().__init__(name, "CLIP of CMMD", CMMD_SOURCE, device)
