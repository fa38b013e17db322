"""Mask2Former (arXiv 2112.01527) for semantic classes, the judge of ADE20K.

Mask logits are resized to the image's size before the sigmoid, as mmsegmentation does; transformers' post-processing
would resize them to 384 x 384 first.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerModel, Mask2FormerPreTrainedModel

from seg2any.evaluation.judges.label_map import rescaled
from seg2any.system.pretrained import for_inference, imagenet_normalised, pretrained_model

WHAT = "Mask2Former judge of ADE20K"
SOURCE = "facebook/mask2former-swin-large-ade-semantic"
MULTIPLE = 32  # sides are padded to it, as Swin's patches and the pixel decoder need


def class_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Combine the class and mask logits of Q queries into scores [B, K, *size].

    Class logits [B, Q, K + 1], of which the last is "nothing"; mask logits [B, Q, h, w].
    """
    masks = F.interpolate(mask_logits, size, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], masks)


class Mask2FormerForSemantics(Mask2FormerPreTrainedModel):
    """transformers' model for segmentation without its loss, which needs SciPy; same weights."""

    _keys_to_ignore_on_load_unexpected = [r"^criterion\."]

    def __init__(self, config: Mask2FormerConfig):
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits [B, Q, K + 1] and mask logits [B, Q, H/4, W/4] of the last layer."""
        output = self.model(pixel_values=pixel_values, output_hidden_states=True)
        queries = output.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(queries), output.masks_queries_logits[-1]


class Mask2FormerJudge:
    """Mask2Former as a label judge. `name` is a folder or a hub id."""

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu"):
        self.model = for_inference(pretrained_model(Mask2FormerForSemantics, name, WHAT, SOURCE), device)
        self.classes = self.model.config.num_labels
        self.device = device

    @torch.inference_mode()
    def labels(self, image: np.ndarray) -> np.ndarray:
        """Classify every pixel: uint8 [H, W, 3] -> int64 [H, W]."""
        pixels = imagenet_normalised(rescaled(image))
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (0, -width % MULTIPLE, 0, -height % MULTIPLE)).to(self.device)
        scores = class_scores(*self.model(padded), padded.shape[-2:])
        scores = F.interpolate(scores[..., :height, :width], image.shape[:2], mode="bilinear", align_corners=False)
        return scores[0].argmax(0).cpu().numpy()
