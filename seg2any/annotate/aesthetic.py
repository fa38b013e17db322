"""The aesthetics predictor of LAION: a head on the embedding of CLIP ViT-L/14.

Two files are published, and both are read: one linear layer (`sa_0_4_vit_l_14_linear.pth`) and five of them
(`sac+logos+ava1-l14-linearMSE.pth`), which have no activations in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from seg2any.annotate.draft import Draft, Dropped
from seg2any.annotate.rules import Rules
from seg2any.system.clip_images import ClipImages
from seg2any.system.errors import UserError
from seg2any.system.pretrained import state_dict

WHAT = "aesthetics predictor"
HEAD_SOURCE = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
CLIP_SOURCE = "openai/clip-vit-large-patch14"
WEIGHT = re.compile(r"(?:(?:layers|mlp)\.(\d+)\.)?weight")


class Aesthetics:
    """Scores of photos, about 1 to 10.

    head  file of the head's weights; `clip` is a folder or a hub id

    Raises UserError for a file that is missing, or is no such head, or does not fit the CLIP.
    """

    def __init__(self, head: Path, clip: str = CLIP_SOURCE, device: torch.device | str = "cpu"):
        self.clip = ClipImages(clip, f"CLIP of the {WHAT}", CLIP_SOURCE, device)
        self.layers = layers_of(state_dict(head, WHAT, HEAD_SOURCE), head)
        read, given = self.layers[0][0].shape[1], self.clip.model.config.projection_dim
        if read != given:
            raise UserError(f"{WHAT}: {head} reads {read} numbers and {clip} gives {given}; give {CLIP_SOURCE}")

    def __call__(self, images: Sequence[np.ndarray]) -> list[float]:
        """Return the scores of images uint8 [H, W, 3]."""
        vectors = torch.from_numpy(self.clip(images)).double()
        for weight, bias in self.layers:
            vectors = vectors @ weight.T + bias
        return vectors[:, 0].tolist()


def layers_of(tensors: Mapping[str, torch.Tensor], path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Order the linear layers of a head by their numbers. Raises UserError if they do not follow each other."""
    numbered = {int(found[1] or 0): name for name in tensors if (found := WEIGHT.fullmatch(name))}
    names = [numbered[number] for number in sorted(numbered)]
    layers = [(tensors[one].double(), tensors.get(one.replace("weight", "bias"))) for one in names]
    shapes = [weight.shape for weight, bias in layers if bias is not None and weight.ndim == 2]
    follow = all(before[0] == after[1] for before, after in zip(shapes, shapes[1:], strict=False))
    if not shapes or len(shapes) < len(tensors) / 2 or not follow or shapes[-1][0] != 1:
        raise UserError(f"{WHAT}: {path} holds no linear layers that end in one score; download {HEAD_SOURCE}")
    return [(weight, bias.double()) for weight, bias in layers]


def check_aesthetic(draft: Draft, rules: Rules, predictor: Aesthetics) -> None:
    """Score the photo. Raises Dropped below the least score."""
    (score,) = predictor([draft.image])
    draft.aesthetic = round(score, 3)
    if score < rules.min_aesthetic:
        raise Dropped("min_aesthetic", f"scores {score:.2f}")
