"""Class-agnostic mIoU: does Segment Anything 2 (arXiv 2408.00714) find each region where its mask is?

As published, the prompt is the region itself, as box and as mask: the number says whether the image has an outline
there, and even an empty image reaches some of it. So it always comes with what real images reach and with two floors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Sam2Model

from seg2any.evaluation.metrics.item import EMPTY, GENERATED, REAL, SHUFFLED, Item, grey, layout_of, shuffled
from seg2any.evaluation.metrics.regions import FoundRegions, region_overlap
from seg2any.evaluation.metrics.result import Result
from seg2any.evaluation.metrics.semantic import normalised
from seg2any.evaluation.metrics.weights import judge, pretrained_model
from seg2any.layout.contour import resize_masks

NAME = "class-agnostic mIoU"
WHAT = "SAM 2.1 judge"
SOURCE = "facebook/sam2.1-hiera-large"
REGIONS = 16  # decoded at a time


class Sam2Judge:
    """Finds regions from themselves as prompt. `name` is a folder or an id on the hub."""

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu"):
        self.model = judge(pretrained_model(Sam2Model, name, WHAT, SOURCE), device)
        self.device = device
        prompts = self.model.prompt_encoder
        self.side, self.prompt_size = prompts.input_image_size, prompts.mask_input_size  # 1024, (256, 256)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Image uint8 [H, W, 3] and wanted bool [N, h, w] -> found bool [N, side, side]. No mask may be empty.

        The image is encoded once for all of its regions.
        """
        squared = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BICUBIC)
        embeddings = self.model.get_image_embeddings(normalised(np.asarray(squared)).to(self.device))
        corners = torch.from_numpy(boxes(masks) * self.side).float().to(self.device)
        # 0 and 1 where SAM expects logits: "undecided" and "a bit inside". So it was published.
        prompts = torch.from_numpy(resize_masks(masks, self.prompt_size)).float().to(self.device)
        found = [
            self._decode(embeddings, corners[start : start + REGIONS], prompts[start : start + REGIONS])
            for start in range(0, len(masks), REGIONS)
        ]
        return np.concatenate(found) if found else np.zeros((0, self.side, self.side), bool)

    def _decode(self, embeddings: list[torch.Tensor], corners: torch.Tensor, prompts: torch.Tensor) -> np.ndarray:
        count = len(corners)
        # Mask prompts work for one region per image only, so the image's embedding is repeated for each region.
        output = self.model(
            image_embeddings=[level.expand(count, -1, -1, -1) for level in embeddings],
            input_boxes=corners[:, None],
            input_masks=prompts[:, None],
            multimask_output=False,
        )
        logits = output.pred_masks.reshape(count, 1, *output.pred_masks.shape[-2:])
        logits = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
        return (logits[:, 0] > 0).cpu().numpy()


def boxes(masks: np.ndarray) -> np.ndarray:
    """bool [N, H, W], none empty -> float64 [N, 4]: left, top, right, bottom as shares of the mask's sides.

    As published, right and bottom are the last pixel inside, not the first outside.
    """
    height, width = masks.shape[1:]
    rows, columns = masks.any(2), masks.any(1)
    left, top = columns.argmax(1), rows.argmax(1)
    right, bottom = width - 1 - columns[:, ::-1].argmax(1), height - 1 - rows[:, ::-1].argmax(1)
    return np.stack([left / width, top / height, right / width, bottom / height], 1)


def class_agnostic_iou(
    generated: Callable[[], Iterable[Item]], real: Callable[[], Iterable[Item]], judge: Sam2Judge
) -> list[Result]:
    """The overlap of regions in generated images, in real ones (ceiling), in grey ones and in images of other samples
    (floors; the last of several samples only). Both arguments start anew whenever they are called; their items have
    layouts."""

    def measured(source: str, items: Iterable[Item]) -> list[Result]:
        return region_overlap(NAME, _found(items, judge), source)

    results = measured(GENERATED, generated())
    several = len(results[0].per_sample) > 1
    results += measured(REAL, real()) + measured(EMPTY, grey(generated()))
    return results + (measured(SHUFFLED, shuffled(generated())) if several else [])


def _found(items: Iterable[Item], judge: Sam2Judge) -> Iterator[FoundRegions]:
    for item in items:
        masks = layout_of(item, NAME).masks
        wanted = resize_masks(masks, (judge.side, judge.side))
        kept = wanted.any((1, 2))
        yield FoundRegions(item.key, wanted[kept], judge(item.image, masks[kept]))
