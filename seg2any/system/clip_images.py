"""Embed images by the vision part of a CLIP (arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from seg2any.system.pretrained import for_inference, pretrained_model

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training, RGB, 0..1


class ClipImages:
    """Unit vectors float32 [B, D] of images, which are cropped to their largest centred square.

    name    a folder or a hub id
    what    the network's part, and `source` its hub id, for messages
    """

    def __init__(self, name: str, what: str, source: str, device: torch.device | str = "cpu"):
        self.model = for_inference(pretrained_model(CLIPVisionModelWithProjection, name, what, source), device)
        self.side = self.model.config.image_size
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([centred_square(image, self.side) for image in images]))
        pixels = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        return unit(self.model(pixel_values=pixels.permute(0, 3, 1, 2).to(self.device)).image_embeds)


def unit(vectors: torch.Tensor) -> np.ndarray:
    """Scale vectors [n, D] to length 1, as float32."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def centred_square(image: np.ndarray, side: int) -> np.ndarray:
    """Crop uint8 [H, W, 3] to its largest centred square and resize it to `side` (PIL bicubic)."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cropped = Image.fromarray(image[top : top + short, left : left + short])
    return np.asarray(cropped.resize((side, side), Image.Resampling.BICUBIC))
