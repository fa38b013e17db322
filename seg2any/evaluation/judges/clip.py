"""CLIP (arXiv 2103.00020) and ImageReward: judges of how well an image fits a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast

from seg2any.system.clip_images import unit
from seg2any.system.errors import UserError
from seg2any.system.pretrained import for_inference, pretrained_model, pretrained_processor

WHAT = "CLIP of the CLIP score"
SOURCE = "openai/clip-vit-base-patch16"

Preference = Callable[[Image.Image, str], float]  # image and caption -> score, higher is better


class Clip:
    """Unit vectors float32 [B, D] of images and of captions. `name` is a folder or a hub id."""

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu"):
        self.model = for_inference(pretrained_model(CLIPModel, name, WHAT, SOURCE), device)
        self.tokenizer = pretrained_processor(CLIPTokenizerFast, name, WHAT, SOURCE)
        self.processor = pretrained_processor(CLIPImageProcessorPil, name, WHAT, SOURCE)
        self.device = device
        self.tokens = self.model.config.text_config.max_position_embeddings  # 77

    @torch.inference_mode()
    def of_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embed images uint8 [H, W, 3] as float32 [n, D] of length 1."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device)
        return unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def of_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Embed captions; those that are too long lose words.

        They keep the end token, at which CLIP reads the sentence.
        """
        return self._of_tokens(
            self.tokenizer(list(captions), padding=True, truncation=True, max_length=self.tokens, return_tensors="pt")
        )

    def of_captions_as_published(self, captions: Sequence[str]) -> np.ndarray:
        """Embed captions as torchmetrics does, which cuts long ones off behind the last position.

        Such a caption loses its end token. CLIP then reads it at the token with the highest number, which is the start
        token, before any word: all captions that are too long have the same vector.
        """
        encoded = self.tokenizer(list(captions), padding=True, return_tensors="pt", verbose=False)
        return self._of_tokens({name: values[:, : self.tokens] for name, values in encoded.items()})

    @torch.inference_mode()
    def _of_tokens(self, encoded: dict[str, torch.Tensor]) -> np.ndarray:
        inputs = {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return unit(self.model.get_text_features(**inputs).pooler_output)


def image_reward(name: str, device: torch.device | str) -> Preference:
    """Load ImageReward (arXiv 2304.05977), a score of human preference, from its own package.

    `name` is what the package calls the weights, or their file. The package pins old versions of transformers, so it
    may need an environment of its own, from which finished images can be measured. Raises UserError if it cannot be
    imported.
    """
    try:
        package = import_module("ImageReward")
    except ImportError as error:
        raise UserError(
            f"ImageReward: package image-reward cannot be imported ({error}); `pip install image-reward`, or leave the "
            "metric out"
        ) from None
    model = package.load(name, device=str(device))
    return lambda image, caption: model.score(caption, image)
