"""SAM 2 (arXiv 2408.00714) and SAM 3 without a prompt: regions under a grid of points.

    grid of points --> three masks each --> sure and stable ones --> without those that cover the same box

The numbers are those of SAM 2's published mask generator; crops and the removal of small islands are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, Sam2Model, Sam3TrackerModel

from seg2any.layout import Layout
from seg2any.segment.regions import boxes_of
from seg2any.segment.segmenter import Prompt
from seg2any.system.errors import UserError
from seg2any.system.pretrained import for_inference, imagenet_normalised, pretrained_model, pretrained_processor

WHAT = "SAM, for all regions"
SOURCE = "facebook/sam2.1-hiera-large"
POINTS = 64  # per decoder call


@dataclass(frozen=True)
class GridSettings:
    """Settings of the search.

    per_side   points of the grid along each side
    sure       least IoU that the model estimates for a mask
    stable     least IoU of a mask with itself, cut `offset` above and below the usual level of the logits
    same_box   IoU of the boxes from which two masks are the same
    """

    per_side: int = 32
    sure: float = 0.8
    stable: float = 0.95
    offset: float = 1.0
    same_box: float = 0.7


def half_normalised(image: np.ndarray) -> Tensor:
    """Scale uint8 [H, W, 3] to -1..1 -> float32 [1, 3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


# Beginning of the config's model_type -> network and its normalisation of images.
FAMILIES: Mapping[str, tuple[type, Callable[[np.ndarray], Tensor]]] = {
    "sam2": (Sam2Model, imagenet_normalised),
    "sam3": (Sam3TrackerModel, half_normalised),
}


class AutomaticSam:
    """SAM 2 or SAM 3, whichever the folder or hub id `name` holds.

    Found masks have the size of the image and may overlap; `scores` are the model's own estimates of the IoU. Raises
    UserError for another network.
    """

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu", settings: GridSettings | None = None):
        kind = pretrained_processor(AutoConfig, name, WHAT, SOURCE).model_type
        family = next((family for begun, family in FAMILIES.items() if kind.startswith(begun)), None)
        if family is None:
            raise UserError(f"{WHAT}: {name} is a {kind}; give {SOURCE} or facebook/sam3")
        self.model = for_inference(pretrained_model(family[0], name, WHAT, SOURCE), device)
        self.normalised, self.device, self.settings = family[1], device, settings or GridSettings()
        self.name, self.side = f"{kind} ({name})", self.model.prompt_encoder.input_image_size

    @torch.inference_mode()
    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find all regions of an image uint8 [H, W, 3], the surest first.

        Raises UserError unless the prompt is empty.
        """
        prompt.check(WHAT, ())
        squared = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BICUBIC)
        embeddings = self.model.get_image_embeddings(self.normalised(np.asarray(squared)).to(self.device))
        found = list(self._candidates(embeddings))
        logits, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = scores.argsort(descending=True, stable=True)
        kept = order[different(boxes_of(logits[order] > 0).long().cpu().numpy(), self.settings.same_box)]
        masks = [self._enlarged(logits[number], image.shape[:2]) for number in kept.tolist()]
        return Layout(
            np.array(masks, dtype=bool).reshape(-1, *image.shape[:2]),
            tuple(f"region {number}" for number in range(1, len(masks) + 1)),
            scores=scores[kept].float().clamp(0, 1).cpu().numpy(),
            source=self.name,
            overlap="share",
            notes=() if masks else ("no mask is sure and stable",),
        )

    def _candidates(self, embeddings: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits [n, h, w] and scores [n] of the masks that are sure and stable."""
        settings = self.settings
        steps = (torch.arange(settings.per_side) + 0.5) / settings.per_side * self.side
        grid = torch.cartesian_prod(steps, steps)
        for points in grid.to(self.device).split(POINTS):
            output = self.model(image_embeddings=embeddings, input_points=points[None, :, None], multimask_output=True)
            logits, scores = output.pred_masks[0].flatten(0, 1), output.iou_scores[0].flatten()
            inner, outer = ((logits > level).sum((1, 2)) for level in (settings.offset, -settings.offset))
            good = (scores >= settings.sure) & (inner >= settings.stable * outer) & (logits > 0).any(-1).any(-1)
            yield logits[good], scores[good]

    @staticmethod
    def _enlarged(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
        large = F.interpolate(logits[None, None].float(), size, mode="bilinear", align_corners=False)
        return (large[0, 0] > 0).cpu().numpy()


def different(boxes: np.ndarray, most: float) -> list[int]:
    """Return the numbers of boxes [N, 4] whose IoU with each earlier one that is kept is at most `most`."""
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for number, box in enumerate(boxes):
        others = boxes[kept]
        sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
        both = sides.clip(0).prod(1)
        if (both <= most * (areas[kept] + areas[number] - both)).all():
            kept.append(number)
    return kept
