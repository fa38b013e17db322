"""Compare painted colours with instances: the loss of gen2seg (arXiv 2505.15263).

    pixels of an instance share a colour, which differs from all pixels outside and from every other instance's; the
    background is black

Shape suffixes: B batch, H W pixels, P = H W, N instances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BACKGROUND = 0  # number of the pixels that belong to no instance
MOST_TERMS = 1251  # instances beyond have no term of their own
APART = 300  # the penalty of two equal colours
NEAR = 10  # factor of the penalty of pixels outside, before it is divided by the root of an instance's size
SLICE = 2**24  # squared distances computed at a time: 64 MiB in float32


def coloring_loss(prediction: Tensor, instances: Tensor, partly_labelled: Sequence[bool]) -> Tensor:
    """Average the colouring loss over the images of a batch, a scalar.

    prediction       float [B, 3, H, W], colours in 0..255
    instances        int64 [B, H, W], the number of each pixel's instance; 0 is the background
    partly_labelled  for each image, whether pixels of the background may belong to instances that nobody labelled;
                     then nothing asks them to be black
    """
    images = zip(prediction, instances, partly_labelled, strict=True)
    return torch.stack([_of_image(*image) for image in images]).mean()


def instances_of_colors(labels: Tensor) -> Tensor:
    """Number the instances of colour images, uint8 [B, 3, H, W], in the order of (R, G, B): int64 [B, H, W].

    Black is 0, the background.
    """
    r, g, b = labels.long().unbind(1)
    return (r << 16) + (g << 8) + b


def _of_image(prediction: Tensor, instances: Tensor, partly_labelled: bool) -> Tensor:
    """Return the loss of one image [3, H, W]: the mean over its terms, 0 without any."""
    pixels = prediction.flatten(1).float()
    numbers, owner, sizes = instances.flatten().unique(return_inverse=True, return_counts=True)
    has_background = bool(numbers[0] == BACKGROUND)
    first = 1 if has_background else 0
    counts_background = has_background and not partly_labelled
    stop = min(len(numbers), MOST_TERMS + first - counts_background)
    if stop <= first and not counts_background:
        return pixels.sum() * 0
    rough = _mean_of_each(pixels.detach(), owner, sizes)
    means = rough + _mean_of_each(pixels - rough[:, owner], owner, sizes)  # twice, for the last digits of float32
    if has_background:
        means = torch.cat([torch.zeros_like(means[:, :1]), means[:, 1:]], dim=1)
    spread = _mean_of_each(F.huber_loss(pixels, means[:, owner], reduction="none"), owner, sizes).mean(0)
    begin = 0 if counts_background else first
    total = spread[begin:stop].sum() + _apart_from_pixels(pixels, owner, means, sizes, range(first, stop))
    return (total + _apart_from_each_other(means[:, begin:stop])) / (stop - begin)


def _mean_of_each(x: Tensor, owner: Tensor, sizes: Tensor) -> Tensor:
    """Average x [3, P] over the pixels of each instance: [3, N]."""
    return x.new_zeros(len(x), len(sizes)).index_add(1, owner, x) / sizes


def _apart_from_pixels(pixels: Tensor, owner: Tensor, means: Tensor, sizes: Tensor, own: range) -> Tensor:
    """Sum over instances how near the pixels outside come to their mean colour, the background's pixels included."""
    rows, total = max(1, SLICE // pixels.shape[1]), pixels.new_zeros(())
    keep_little = len(own) > rows
    for start in range(own.start, own.stop, rows):
        part = torch.arange(start, min(start + rows, own.stop), device=pixels.device)
        given = (pixels, owner, means[:, part], sizes[part], part)
        total = total + (checkpoint(_nearness, *given, use_reentrant=False) if keep_little else _nearness(*given))
    return total


def _nearness(pixels: Tensor, owner: Tensor, means: Tensor, sizes: Tensor, numbers: Tensor) -> Tensor:
    """Sum 10 / sqrt(size) * mean of 300 / (1 + distance^2) over the pixels outside, for instances `numbers`."""
    outside = owner != numbers[:, None]
    squares = sum((of_pixels - of_mean[:, None]).square() for of_pixels, of_mean in zip(pixels, means, strict=True))
    near = torch.where(outside, APART / (1 + squares), 0).sum(1) / outside.sum(1).clamp_min(1)
    return (near * NEAR / sizes.sqrt()).sum()


def _apart_from_each_other(means: Tensor) -> Tensor:
    """Average 300 / (1 + distance^2) over the pairs of mean colours [3, N]; 0 without a pair."""
    first, second = torch.triu_indices(means.shape[1], means.shape[1], offset=1, device=means.device)
    if not len(first):
        return means.sum() * 0
    return (APART / (1 + (means[:, first] - means[:, second]).square().sum(0))).mean()
