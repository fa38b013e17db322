"""Cases of the preparation of pictures and masks, by Pillow."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from tests.parity_xsam.second.book import Book

FILE = "image_processing"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resized(pixels: np.ndarray, size: tuple[int, int], method: int) -> np.ndarray:
    """Resize uint8 [H, W] or [H, W, 3] to (height, width)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), method))


def seg_tensors(image: np.ndarray, masks: dict[str, np.ndarray], side: int) -> dict[str, torch.Tensor]:
    """Put a picture of its final size, and masks [N, H, W], into SAM's square."""
    height, width = image.shape[:2]
    square = np.zeros((1, 3, side, side))
    for channel in range(3):
        square[0, channel, :height, :width] = (image[..., channel] / 255 - MEAN[channel]) / STD[channel]
    tensors = {"pixel_values": torch.from_numpy(square), "scaled_sizes": torch.tensor([[height, width]])}
    for name, several in masks.items():
        wide = np.zeros((len(several), side, side), bool)
        wide[:, :height, :width] = several
        tensors[name] = torch.from_numpy(wide)
    return tensors


def visual(image: np.ndarray, side: int) -> torch.Tensor:
    small = resized(image, (side, side), Image.BILINEAR)
    return torch.from_numpy((small / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]


def scaled(edges: tuple[int, int], side: float) -> tuple[int, int]:
    """Scale a size so that its longer edge is `side`, rounded half up."""
    return tuple(int(edge * side / max(edges) + 0.5) for edge in edges)


def add(book: Book) -> None:
    """Add the cases, of one picture."""
    size, side, small = (30, 30), 40, book.between(17, 50)
    while size[0] == size[1] or min(size) * side / max(size) % 1 < 0.6:  # an edge that is rounded up
        size, side = (book.between(21, 70), book.between(21, 70)), book.between(40, 90)
    image = book.rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    given = {
        "mask_labels": np.array([book.blob(*size) for _ in range(3)]),
        "vprompt_masks": np.array([book.blob(*size) for _ in range(2)]),
    }
    for name, value in (("image_rgb", image), ("masks", given["mask_labels"]), ("vprompt", given["vprompt_masks"])):
        book.add(FILE, name, None, {"": value})

    def changed(new: tuple[int, int]) -> tuple[np.ndarray, dict]:
        masks = {
            name: np.array([resized(one.astype(np.uint8), new, Image.NEAREST) for one in several])
            for name, several in given.items()
        }
        return resized(image, new, Image.BILINEAR), masks

    tensors = seg_tensors(*changed(scaled(size, side)), side) | {"original_sizes": torch.tensor([size])}
    book.add(FILE, "segmentation_image", {"image_size": side}, tensors)
    for name, low, high in (("", 1.1, 2), ("_small", 0.2, 0.9)):
        scale = float(book.rng.uniform(low, high))
        picture, masks = changed(scaled(size, side * scale))
        top, left = (max(edge - side, 0) // 2 for edge in picture.shape[:2])
        masks = {"mask_labels": masks["mask_labels"][:, top : top + side, left : left + side]}
        tensors = seg_tensors(picture[top : top + side, left : left + side], masks, side)
        book.add(FILE, f"segmentation_image_scale_jitter{name}", {"scale_drawn": scale}, tensors)
    about = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": small}
    book.add(FILE, "visual_image", about, {"pixel_values": visual(image, small)})
    edge = max(size)
    square = np.full((edge, edge, 3), 127, np.uint8)
    top, left = (edge - size[0]) // 2, (edge - size[1]) // 2
    square[top : top + size[0], left : left + size[1]] = image
    tensors = {"square_rgb": square, "pixel_values": visual(square, small)}
    book.add(FILE, "visual_image_padded_to_square", {"background": [127] * 3}, tensors)
