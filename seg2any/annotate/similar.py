"""Find photos that are nearly the same, by a perceptual hash of 64 bits.

The hash is the sign of the 8 x 8 lowest frequencies of the photo at 32 x 32 grey pixels. Copies of another size, other
compression, light or colour differ in few bits; mirrored, turned or cropped ones in many, so they are not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

SIDE, LOW = 32, 8
BITS = LOW * LOW


def perceptual_hash(image: Image.Image) -> int:
    """Compute the hash of a picture, a number of 64 bits."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    low = cv2.dct(grey)[:LOW, :LOW].ravel()
    low[0] = 0  # the mean, which is brightness
    signs = low > np.median(low)
    return int("".join("1" if one else "0" for one in signs), 2)


def copies(hashes: Sequence[int], distance: int) -> dict[int, int]:
    """Map each picture that resembles an earlier one to the first such that is no copy itself.

    distance  bits that may differ, 0..63

    Pictures are compared only if one of `distance` + 1 pieces of their hashes is the same, which every pair within the
    distance fulfils.
    """
    pieces = min(distance + 1, BITS)
    edges = np.linspace(0, BITS, pieces + 1).astype(int)
    values = np.array(hashes, np.uint64)
    kept: list[dict[int, list[int]]] = [{} for _ in range(pieces)]
    found: dict[int, int] = {}
    for number, value in enumerate(hashes):
        keys = [value >> int(low) & (1 << int(high - low)) - 1 for low, high in zip(edges, edges[1:], strict=False)]
        near = sorted({one for table, key in zip(kept, keys, strict=True) for one in table.get(key, ())})
        if near:
            differ = np.bitwise_count(values[near] ^ values[number])
            if (within := np.flatnonzero(differ <= distance)).size:
                found[number] = near[int(within[0])]
                continue
        for table, key in zip(kept, keys, strict=True):
            table.setdefault(key, []).append(number)
    return found
