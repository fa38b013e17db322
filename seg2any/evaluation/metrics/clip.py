"""CLIP (arXiv 2103.00020): how well images fit their captions, and the embeddings of CMMD."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast, CLIPVisionModelWithProjection

from seg2any.evaluation.metrics.features import batches
from seg2any.evaluation.metrics.item import Item, layout_of
from seg2any.evaluation.metrics.result import Result, mean
from seg2any.evaluation.metrics.weights import judge, pretrained_model, pretrained_processor
from seg2any.system.errors import UserError

WHAT = "CLIP of the CLIP score"
SOURCE = "openai/clip-vit-base-patch16"
CMMD_SOURCE = "openai/clip-vit-large-patch14-336"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """Unit vectors float32 [B, D] of images and of captions. `name` is a folder or an id on the hub."""

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu"):
        self.model = judge(pretrained_model(CLIPModel, name, WHAT, SOURCE), device)
        self.tokenizer = pretrained_processor(CLIPTokenizerFast, name, WHAT, SOURCE)
        self.processor = pretrained_processor(CLIPImageProcessorPil, name, WHAT, SOURCE)
        self.device = device
        self.tokens = self.model.config.text_config.max_position_embeddings  # 77

    @torch.inference_mode()
    def of_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images uint8 [H, W, 3] -> float32 [n, D] of length 1."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device)
        return _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def of_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Captions that are too long lose words, not their end token, at which CLIP reads the sentence."""
        return self._of_tokens(
            self.tokenizer(list(captions), padding=True, truncation=True, max_length=self.tokens, return_tensors="pt")
        )

    def of_captions_as_published(self, captions: Sequence[str]) -> np.ndarray:
        """As torchmetrics cuts them: a batch with a caption that is too long is cut off behind the last position.

        Such a caption loses its end token. CLIP then reads it at the token with the highest number, which is the start
        token, before any word: all captions that are too long have the same vector.
        """
        encoded = self.tokenizer(list(captions), padding=True, return_tensors="pt", verbose=False)
        return self._of_tokens({name: values[:, : self.tokens] for name, values in encoded.items()})

    @torch.inference_mode()
    def _of_tokens(self, encoded: dict[str, torch.Tensor]) -> np.ndarray:
        inputs = {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return _unit(self.model.get_text_features(**inputs).pooler_output)


def clip_score(items: Iterable[Item], clip: Clip, source: str = "generated") -> list[Result]:
    """100 times the mean cosine of image and global caption, at least 0: with captions cut so that they keep their end,
    and as published. `extra` says how many captions were too long.

    The published number is of group 0. Raises UserError for a sample without a global caption.
    """
    whole: dict[str, list[float]] = {}
    published: dict[str, list[float]] = {}
    too_long = set()
    for batch in batches(items):
        captions = [_caption(item) for item in batch]
        images = clip.of_images([item.image for item in batch])
        for scores, texts in (
            (whole, clip.of_captions(captions)),
            (published, clip.of_captions_as_published(captions)),
        ):
            for item, cosine in zip(batch, (images * texts).sum(1), strict=True):
                scores.setdefault(item.key, []).append(100 * float(cosine))
        lengths = map(len, clip.tokenizer(captions, verbose=False)["input_ids"])
        too_long |= {item.key for item, length in zip(batch, lengths, strict=True) if length > clip.tokens}
    results = (
        mean(name, {key: float(np.mean(values)) for key, values in scores.items()}, source=source)
        for name, scores in (("CLIP score", whole), ("CLIP score, captions cut as published", published))
    )
    return [
        replace(one, value=max(one.value, 0.0), least=0.0, extra={"captions_too_long": len(too_long)})
        for one in results
    ]


class CmmdNetwork:
    """The embedding of CMMD: unit vectors of the largest centred square, at the model's size."""

    def __init__(self, name: str = CMMD_SOURCE, device: torch.device | str = "cpu"):
        self.model = judge(pretrained_model(CLIPVisionModelWithProjection, name, "CLIP of CMMD", CMMD_SOURCE), device)
        self.side = self.model.config.image_size
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([centred_square(image, self.side) for image in images]))
        pixels = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        return _unit(self.model(pixel_values=pixels.permute(0, 3, 1, 2).to(self.device)).image_embeds)


def centred_square(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [side, side, 3]: cropped first, then resized (PIL bicubic)."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cropped = Image.fromarray(image[top : top + short, left : left + short])
    return np.asarray(cropped.resize((side, side), Image.Resampling.BICUBIC))


def _caption(item: Item) -> str:
    caption = layout_of(item, "CLIP score").caption
    if caption is None:
        raise UserError(
            f"CLIP score: sample {item.key!r} has no global caption; leave the metric out for this data set"
        )
    return caption


def _unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
