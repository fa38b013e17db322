"""Cases of the vectors of visual prompts."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.parity_xsam.second.book import Book, numbered

FILE = "region_sampler"


def vector(grid: torch.Tensor, mask: np.ndarray, order: list[int] | None, points: int) -> torch.Tensor:
    """Return the greatest of each channel of a grid [h, h, D] over the pixels of a mask [H, W]; differentiable."""
    height, width = mask.shape
    pixels = [(row, column) for row in range(height) for column in range(width) if mask[row, column]]
    if order is not None:
        pixels = [pixels[place] for place in order[:points]]
    return torch.stack([read(grid, row / height, column / width) for row, column in pixels]).amax(0)


def read(grid: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Read a grid [h, w, D] bilinearly at a place of 0..1, 1 being the centre of the last cell."""
    down, right = y * (grid.shape[0] - 1), x * (grid.shape[1] - 1)
    top, left = math.floor(down), math.floor(right)
    found = 0
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if row < grid.shape[0] and column < grid.shape[1]:
            found = found + (1 - abs(down - row)) * (1 - abs(right - column)) * grid[row, column]
    return found


def vectors(book: Book, grid: torch.Tensor, masks: np.ndarray, points: int, draws: list) -> torch.Tensor | None:
    """Return the vectors of a picture's masks, and note what was drawn as (kind, numbers)."""
    found = []
    for mask in masks:
        count, order = int(mask.sum()), None
        if count > points:
            order = book.rng.permutation(count).tolist()
            draws.append(("randperm", order))
        elif count < points:
            draws.append(("randint", book.rng.integers(0, count, points - count).tolist()))
        found.append(vector(grid, mask, order, points))
    return torch.stack(found) if found else None


def named(draws: list) -> dict[str, torch.Tensor]:
    return {f"draw_{number}_{kind}": torch.tensor(values) for number, (kind, values) in enumerate(draws)}


def add_case(book: Book, name: str, masks: list[np.ndarray], side: int, points: int = 256) -> None:
    """Add a batch: masks bool [N, H, W] of each picture, on a grid of so many cells."""
    features, draws = book.normal(len(masks), side * side, book.between(3, 20)), []
    outputs = [
        vectors(book, own.reshape(side, side, -1), several, points, draws)
        for own, several in zip(features, masks, strict=True)
    ]
    about = {"num_sample_point": points, "outputs": [None if one is None else list(one.shape) for one in outputs]}
    tensors = {"features": features} | numbered("masks", masks) | numbered("output", outputs) | named(draws)
    book.add(FILE, name, about | {"draws": [kind for kind, _ in draws]}, tensors)


def add(book: Book) -> None:
    """Add the cases."""

    def blobs(number: int, height: int, width: int) -> np.ndarray:
        return np.array([book.blob(height, width) for _ in range(number)]).reshape(number, height, width)

    exact = np.zeros((1, 23, 40), bool)
    exact.reshape(-1)[book.rng.permutation(23 * 40)[:256]] = True
    corner = np.zeros((2, 31, 31), bool)
    corner[0, -1, -1] = corner[1, 0, 0] = True
    add_case(book, "corners", [corner], book.between(3, 7))
    add_case(book, "256_pixels", [exact], 6)
    add_case(book, "whole_pictures", [np.ones((1, 48, 33), bool), np.ones((2, 20, 41), bool)], 5)
    add_case(book, "three_pictures", [blobs(2, 50, 50), blobs(0, 50, 50), blobs(3, 50, 50)], book.between(4, 9))
    add_case(book, "few_points", [blobs(3, 17, 29), blobs(1, 17, 29)], 2, points=9)
    add_case(book, "one_point", [blobs(2, 12, 9)], 4, points=1)
    book.add(FILE, "all_zero_mask", {"error": "RuntimeError"}, {})
