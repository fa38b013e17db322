"""Draw visual prompts, points, boxes or masks, as masks in SAM's square."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seg2any.segment.segmenter import Prompt
from seg2any.segment.xsam.pictures import Frame, seg_masks
from seg2any.system.errors import UserError

RADIUS = 1 / 100  # of a point's disc, as a share of the square's edge
INSIDE, OUTSIDE = 1, 0


def drawn(prompt: Prompt, frame: Frame) -> Tensor:
    """Draw each region of a prompt that holds points, boxes or masks: bool [N, S, S], none empty.

    Raises UserError for a point outside of a region, which the model cannot be told, and for a mask without a pixel.
    """
    if prompt.points is not None:
        found = [_discs(points, frame) for points in prompt.points]
    elif prompt.boxes is not None:
        found = [_box(box, frame) for box in prompt.boxes]
    else:
        whole = Frame(prompt.masks.shape[1:], frame.scaled, frame.side)
        found = list(seg_masks(prompt.masks, whole))
    for number, mask in enumerate(found, start=1):
        if not mask.any():
            raise UserError(f"prompt: the mask of region {number} has no pixel; leave it out")
    return torch.stack(found)


def _discs(points: np.ndarray, frame: Frame) -> Tensor:
    """Draw discs at points [P, 3] of one region."""
    if (points[:, 2] == OUTSIDE).any():
        raise UserError("prompt: X-SAM cannot be told a point outside of a region; give points inside")
    mask = torch.zeros(frame.side, frame.side, dtype=torch.bool)
    radius = max(1.0, RADIUS * frame.side)
    rows, columns = torch.arange(frame.scaled[0])[:, None], torch.arange(frame.scaled[1])[None]
    for x, y, label in points:
        if label == INSIDE:
            place = (min(y * frame.scaled[0], frame.scaled[0] - 1), min(x * frame.scaled[1], frame.scaled[1] - 1))
            # Only where the disc is: a scribble has dozens of points.
            down, right = (slice(max(0, int(at - radius)), int(at + radius) + 2) for at in place)
            near = (rows[down] - place[0]) ** 2 + (columns[:, right] - place[1]) ** 2 <= radius**2
            mask[: frame.scaled[0], : frame.scaled[1]][down, right] |= near
    return mask


def _box(box: np.ndarray, frame: Frame) -> Tensor:
    """Fill a box [4] of shares; the thinnest has a pixel."""
    mask = torch.zeros(frame.side, frame.side, dtype=torch.bool)
    height, width = frame.scaled
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(int(np.ceil(box[2] * width)), left + 1), max(int(np.ceil(box[3] * height)), top + 1)
    mask[top:bottom, left:right] = True
    return mask
