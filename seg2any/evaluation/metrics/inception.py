"""The Inception network of FID, with the resizing of clean-fid (arXiv 2104.11222): numbers comparable with "clean"
FID of other papers, and with no other kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seg2any.evaluation.metrics.weights import weights_file
from seg2any.system.errors import UserError

WHAT = "Inception of FID"
SOURCE = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
SIDE = 299


def clean_resize(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [side, side, 3] in 0..255: PIL bicubic on each channel in floating point, not rounded.

    The aspect is not kept.
    """
    channels = (
        Image.fromarray(image[..., channel].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        for channel in range(3)
    )
    return np.stack([np.asarray(channel) for channel in channels], -1).clip(0, 255)


class InceptionNetwork:
    """Images -> pooled features float32 [B, 2048]. `path` is the TorchScript file of SOURCE.

    Raises UserError if it is missing or is not that network.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.device, path = device, weights_file(path, WHAT, SOURCE)
        try:
            self.layers = torch.jit.load(path, map_location="cpu").layers.eval().to(device)
        except (RuntimeError, AttributeError, ValueError):
            raise UserError(f"{WHAT}: {path} is not that TorchScript file; download {SOURCE} again") from None

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack([clean_resize(image) for image in images])).permute(0, 3, 1, 2)
        return self.layers((pixels.to(self.device) - 128) / 128).flatten(1).cpu().numpy()
