"""EoMT (arXiv 2503.19108) for semantic classes: a second judge of closed sets, a plain ViT of another family.

As published, an image is scaled until its shorter side is the network's, and is read in squares along its longer side,
whose scores are averaged where they overlap.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForUniversalSegmentation

from seg2any.evaluation.judges.mask2former import class_scores
from seg2any.system.errors import UserError
from seg2any.system.pretrained import for_inference, imagenet_normalised, pretrained_model

WHAT = "EoMT, second judge of classes"
SOURCE = "tue-mps/ade20k_semantic_eomt_large_512"
FAMILY = ("eomt", "eomt_dinov3")


class EomtJudge:
    """EoMT as a label judge, on DINOv2 or DINOv3. `name` is a folder or a hub id.

    Raises UserError for a network of another family.
    """

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu"):
        self.model = for_inference(pretrained_model(AutoModelForUniversalSegmentation, name, WHAT, SOURCE), device)
        config = self.model.config
        if config.model_type not in FAMILY:
            raise UserError(f"{WHAT}: {name} is a {config.model_type}; give an EoMT, such as {SOURCE}")
        self.classes, self.device = config.num_labels, device
        self.side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]

    @torch.inference_mode()
    def labels(self, image: np.ndarray) -> np.ndarray:
        """Classify every pixel: uint8 [H, W, 3] -> int64 [H, W]."""
        height, width = image.shape[:2]
        scale = self.side / min(height, width)
        size = max(self.side, round(height * scale)), max(self.side, round(width * scale))
        pixels = imagenet_normalised(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)).to(self.device)
        scores, counts = torch.zeros(1, self.classes, *size, device=self.device), torch.zeros(size, device=self.device)
        for top, left in windows(size, self.side):
            place = (..., slice(top, top + self.side), slice(left, left + self.side))
            output = self.model(pixel_values=pixels[place])
            scores[place] += class_scores(
                output.class_queries_logits.float(), output.masks_queries_logits.float(), (self.side, self.side)
            )
            counts[place] += 1
        scores = F.interpolate(scores / counts, (height, width), mode="bilinear", align_corners=False)
        return scores[0].argmax(0).cpu().numpy()


def windows(size: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """List top and left of the fewest squares that cover (H, W), both at least `side`, at equal distances."""
    starts = []
    for edge in size:
        count = math.ceil(edge / side)
        starts.append([round(number * (edge - side) / max(count - 1, 1)) for number in range(count)])
    return [(top, left) for top in starts[0] for left in starts[1]]
