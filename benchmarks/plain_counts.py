"""Count tokens by a plain implementation that `seg2any.data.regions` is compared with.

It is written from the description of the published method: every mask is decoded in full, resized as floats, outlined
and resized again, and every caption is tokenised by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from seg2any.layout.rle import decode_rle

try:
    from pycocotools.mask import decode as coco_decode
except ImportError:
    coco_decode = None

PATCH = 16
DECODER = "own" if coco_decode is None else "pycocotools"


def count_json(path: Path, captions: dict[int, str], caption: str, side: int, cond_side: int, tokenizer) -> list[int]:
    """Count the tokens of an SA-1B json, [condition, text].

    captions  captions of regions by annotation id; regions without one are not counted
    """
    annotations = [one for one in json.loads(path.read_text())["annotations"] if one["id"] in captions]
    masks = np.stack([decode(str(path), one["segmentation"]) for one in annotations])
    texts = [caption, *(captions[one["id"]] for one in annotations)]
    return [condition_tokens(masks, side, cond_side), text_tokens(texts, tokenizer)]


def count_labels(path: Path, captions: dict[int, str], background: int, side: int, tokenizer) -> list[int]:
    """Count the tokens of a label map, [condition, text].

    side  side of the image and of the condition image, in pixels
    """
    labels = np.array(Image.open(path))
    values = [value for value in np.unique(labels).tolist() if value != background]
    masks = np.stack([labels == value for value in values])
    return [condition_tokens(masks, side, side), text_tokens([captions[value] for value in values], tokenizer)]


def condition_tokens(masks: np.ndarray, side: int, cond_side: int) -> int:
    """Count the condition tokens of masks [N, H, W] on a square image of `side` pixels."""
    floats = torch.from_numpy(masks)[None].float()
    resized = torch.nn.functional.interpolate(floats, size=(side, side), mode="nearest-exact")[0]
    contour = np.zeros((side, side, 3), np.uint8)
    for mask in resized.numpy().astype(np.uint8):
        outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(contour, outlines, -1, (255, 255, 255), thickness=1)
    small = Image.fromarray(contour).resize((cond_side, cond_side), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)
    patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    return int((patches != -1).any(0).flatten(2).any(-1).sum())


def text_tokens(texts: Sequence[str], tokenizer: Callable) -> int:
    """Count the tokens of all texts, tokenised one by one."""
    return sum(int(tokenizer(text, return_tensors="pt").input_ids.shape[1]) for text in texts)


def decode(where: str, segmentation: dict) -> np.ndarray:
    """Decode run lengths into a mask [H, W], by pycocotools where it is installed."""
    return decode_rle(where, segmentation) if coco_decode is None else coco_decode(segmentation)
