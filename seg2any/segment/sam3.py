"""Segment Anything 3 as a segmenter: every instance of a concept that a short phrase names.

    score of an instance = sigmoid(its logit) * sigmoid(presence), presence being the model's belief that the concept is
    in the image at all

transformers' network is used without its processor, which needs torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTokenizerFast, Sam3Model

from seg2any.layout import Layout
from seg2any.segment.segmenter import Prompt
from seg2any.system.pretrained import for_inference, pretrained_model, pretrained_processor

WHAT = "SAM 3"
SOURCE = "facebook/sam3"
SURE = 0.5  # least score of an instance that counts, as published


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of one phrase in one image, the surest first.

    masks     bool [M, side, side], stretched over the image
    scores    float32 [M] in 0..1
    presence  0..1
    """

    masks: np.ndarray
    scores: np.ndarray
    presence: float


class Sam3Segmenter:
    """SAM 3, prompted with phrases or categories, which mean the same to it. `name` is a folder or a hub id.

    A region is the union of all instances of its phrase whose score is at least `sure`; `scores` are those of the
    surest. Phrases that are too long lose words; they keep the end token.
    """

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu", sure: float = SURE):
        self.model = for_inference(pretrained_model(Sam3Model, name, WHAT, SOURCE), device)
        self.tokenizer = pretrained_processor(CLIPTokenizerFast, name, WHAT, SOURCE)
        self.name, self.device, self.sure = str(name), device, sure
        self.side = self.model.config.image_size
        self.tokens = self.model.config.text_config.max_position_embeddings  # 32

    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the prompt's regions in an image uint8 [H, W, 3]. Raises UserError for other kinds of prompts."""
        prompt.check(WHAT, ("phrases",), ("categories",))
        names = prompt.phrases or prompt.categories or ()
        found = self.instances(image, names)
        empty = np.zeros((self.side, self.side), bool)
        return Layout(
            np.stack([one.masks.any(0) if len(one.masks) else empty for one in found] or [empty])[: len(names)],
            names,
            scores=np.array([one.scores.max(initial=0) for one in found], np.float32),
            source=f"SAM 3 ({self.name})",
            overlap="share",
            notes=() if any(one.masks.any() for one in found) else ("no instance is sure",),
        )

    @torch.inference_mode()
    def instances(self, image: np.ndarray, phrases: Sequence[str]) -> list[Instances]:
        """Find the instances of each phrase; the image is encoded once."""
        if not phrases:
            return []
        squared = np.array(Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(squared).permute(2, 0, 1)[None].float().to(self.device) / 127.5 - 1
        seen = self.model.get_vision_features(pixel_values=pixels)
        return [self._instances_of(phrase, seen) for phrase in phrases]

    def _instances_of(self, phrase: str, seen: object) -> Instances:
        words = self.tokenizer(
            phrase, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        texts = {name: words[name].to(self.device) for name in ("input_ids", "attention_mask")}
        output = self.model(vision_embeds=seen, **texts)
        presence = output.presence_logits.float().sigmoid().reshape(())
        scores = output.pred_logits[0].float().sigmoid() * presence
        order = scores.argsort(descending=True, stable=True)
        kept = order[scores[order] >= self.sure]
        logits = output.pred_masks[0, kept].float()
        if len(kept):
            logits = F.interpolate(logits[None], (self.side, self.side), mode="bilinear", align_corners=False)[0]
        masks = (logits > 0).cpu().numpy().reshape(len(kept), self.side, self.side)
        return Instances(masks, scores[kept].cpu().numpy(), float(presence))
