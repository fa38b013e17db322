"""DINOv2 ViT-L/14, the network of FDD (arXiv 2306.04675): images squashed to 224 pixels, class token as feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Model

from seg2any.evaluation.metrics.semantic import normalised
from seg2any.evaluation.metrics.weights import judge, pretrained_model

WHAT = "DINOv2 of FDD"
SOURCE = "facebook/dinov2-large"
SIDE = 224


class Dinov2Network:
    """Images -> normalised class tokens float32 [B, D]. `name` is a folder or an id on the hub."""

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu"):
        self.model = judge(pretrained_model(Dinov2Model, name, WHAT, SOURCE), device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        squashed = (Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images)
        pixels = torch.cat([normalised(np.asarray(image)) for image in squashed])
        return self.model(pixel_values=pixels.to(self.device)).pooler_output.float().cpu().numpy()
