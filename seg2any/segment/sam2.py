"""Segment Anything 2 (arXiv 2408.00714) as a segmenter: regions from boxes, masks or both."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Sam2Model

from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.segment.segmenter import Prompt
from seg2any.system.pretrained import for_inference, imagenet_normalised, pretrained_model

WHAT = "SAM 2.1"
SOURCE = "facebook/sam2.1-hiera-large"
REGIONS = 16  # regions per decoder call
TAKEN = (("boxes",), ("masks",), ("boxes", "masks"))  # combinations of a prompt's fields


class Sam2Segmenter:
    """SAM 2, prompted with boxes, masks or both. `name` is a folder or a hub id.

    Found masks are [side, side], `side` being the model's input size; `scores` are its own estimates of the IoU.
    """

    def __init__(self, name: str = SOURCE, device: torch.device | str = "cpu"):
        self.model = for_inference(pretrained_model(Sam2Model, name, WHAT, SOURCE), device)
        self.name, self.device = str(name), device
        prompts = self.model.prompt_encoder
        self.side, self.prompt_size = prompts.input_image_size, prompts.mask_input_size  # 1024, (256, 256)

    @torch.inference_mode()
    def segment(self, image: np.ndarray, prompt: Prompt) -> Layout:
        """Find the prompt's N regions in an image uint8 [H, W, 3].

        The image is encoded once for all of them. Raises UserError for a prompt without boxes and masks, or with more.
        """
        prompt.check(WHAT, *TAKEN)
        squared = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BICUBIC)
        embeddings = self.model.get_image_embeddings(imagenet_normalised(np.asarray(squared)).to(self.device))
        inputs = self._inputs(prompt)
        masks, scores = [np.zeros((0, self.side, self.side), bool)], [np.zeros(0, np.float32)]
        for start in range(0, prompt.count, REGIONS):
            part = {name: values[start : start + REGIONS] for name, values in inputs.items()}
            found, confidence = self._decode(embeddings, part)
            masks.append(found)
            scores.append(confidence)
        return Layout(
            np.concatenate(masks),
            prompt.captions(),
            scores=np.concatenate(scores),
            source=f"SAM 2 ({self.name})",
            overlap="share",
        )

    def _inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """Build the model's arguments: boxes [N, 1, 4] in input pixels, masks [N, 1, *prompt_size]."""
        inputs = {}
        if prompt.boxes is not None:
            corners = torch.from_numpy(prompt.boxes * self.side).float().to(self.device)
            inputs["input_boxes"] = corners[:, None]
        if prompt.masks is not None:
            # 0 and 1 where SAM expects logits ("undecided" and "a bit inside"): that is the published evaluation.
            masks = torch.from_numpy(resize_masks(prompt.masks, self.prompt_size)).float().to(self.device)
            inputs["input_masks"] = masks[:, None]
        return inputs

    def _decode(self, embeddings: list[torch.Tensor], inputs: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Decode n regions: masks bool [n, side, side] and scores float32 [n]."""
        count = len(next(iter(inputs.values())))
        # The model takes mask prompts for one region per image, so the embedding is repeated for each region.
        repeated = [level.expand(count, -1, -1, -1) for level in embeddings]
        output = self.model(image_embeddings=repeated, **inputs, multimask_output=False)
        logits = output.pred_masks.reshape(count, 1, *output.pred_masks.shape[-2:])
        logits = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
        scores = output.iou_scores.reshape(count).float().clamp(0, 1)
        return (logits[:, 0] > 0).cpu().numpy(), scores.cpu().numpy()
