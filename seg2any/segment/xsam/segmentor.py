"""Mask2Former on SAM's encoder, whose queries a <SEG> token steers and whose classes are phrases or a closed list.

Shape suffixes: B pictures, R rows (a prediction each), Q queries, K classes with the background, D width, h w maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Mask2FormerConfig, SamVisionConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)
from transformers.models.sam.modeling_sam import SamPositionalEmbedding, SamVisionEncoder

LEAST = -1e9  # class logit of a condition that a row does not have
LARGEST = 500.0  # of a class logit, as published
FIRST_SCALE = 1 / 0.07


@dataclass(frozen=True)
class Conditions:
    """The conditions that a segmentor looks for, a row for each prediction.

    embeddings  [R, K, D] of the classes, the background last
    seg         [R, 1, D] added to the queries
    present     bool [R, K], or None where every row has all classes
    repeats     number of rows of each picture, in order
    """

    embeddings: Tensor
    seg: Tensor
    present: Tensor | None
    repeats: tuple[int, ...]

    def with_repeats(self, repeats: Sequence[int]) -> Conditions:
        """Return these conditions for pictures with so many rows each."""
        return replace(self, repeats=tuple(repeats))


@dataclass(frozen=True)
class Predictions:
    """The logits of each layer of the decoder, the last one being the answer.

    classes  logits [R, Q, K] of each layer
    masks    logits [R, Q, h, w] of each layer
    """

    classes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]

    def answer(self, side: int) -> tuple[Tensor, Tensor]:
        """Return the class logits [R, Q, K] and mask logits [R, Q, side, side] of the last layer."""
        masks = F.interpolate(self.masks[-1].float(), (side, side), mode="bilinear", align_corners=False)
        return self.classes[-1].float(), masks


@dataclass(frozen=True)
class Pixels:
    """The pixel decoder's maps: `levels` [B, D, h, w] coarse to fine, and `masks` [B, D, h, w]."""

    levels: tuple[Tensor, ...]
    masks: Tensor

    def repeated(self, repeats: Sequence[int]) -> Pixels:
        """Repeat each picture's maps for its rows."""
        if all(count == 1 for count in repeats):
            return self
        counts = torch.tensor(repeats, device=self.masks.device)
        return Pixels(
            tuple(one.repeat_interleave(counts, 0) for one in self.levels), self.masks.repeat_interleave(counts, 0)
        )


class ClosedHead(nn.Linear):
    """Logits of a closed list of classes."""

    def forward(self, queries: Tensor, conditions: Conditions | None) -> Tensor:
        """Compute logits [R, Q, K]."""
        return super().forward(queries)


class CosineHead(nn.Module):
    """Logits of classes that are given as embeddings."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([FIRST_SCALE]).log())

    def forward(self, queries: Tensor, conditions: Conditions) -> Tensor:
        """Compute logits [R, Q, K]."""
        return cosine_logits(queries, conditions.embeddings, conditions.present, self.logit_scale)


def cosine_logits(queries: Tensor, embeddings: Tensor, present: Tensor | None, logit_scale: Tensor) -> Tensor:
    """Scale the cosines of queries [R, Q, D] and classes [R, K, D] to logits [R, Q, K]; LEAST where none is present."""
    cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(embeddings.float(), dim=-1).mT
    logits = (logit_scale.float().exp() * cosines).clamp(-LARGEST, LARGEST)
    return logits if present is None else logits.masked_fill(~present[:, None], LEAST)


class QueryDecoder(Mask2FormerTransformerModule):
    """Mask2Former's transformer, with a vector for each row that is added to all of its queries."""

    def forward(self, pixels: Pixels, seg: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the queries [R, Q, D] and mask logits [R, Q, h, w] before the first layer and after each one.

        seg  [R, 1, D], added to what the queries hold but not to their positions
        """
        rows = len(pixels.masks)
        places = [self.position_embedder(one.shape, one.device, one.dtype) for one in pixels.levels]
        features = [
            (project(one) + self.level_embed.weight[number][:, None, None]).flatten(2).permute(2, 0, 1)
            for number, (project, one) in enumerate(zip(self.input_projections, pixels.levels, strict=True))
        ]
        queries = self.queries_features.weight[:, None].repeat(1, rows, 1)
        found = self.decoder(
            inputs_embeds=queries if seg is None else queries + seg.transpose(0, 1),
            multi_stage_positional_embeddings=[one.flatten(2).permute(2, 0, 1) for one in places],
            pixel_embeddings=pixels.masks,
            encoder_hidden_states=features,
            query_position_embeddings=self.queries_embedder.weight[:, None].repeat(1, rows, 1),
            feature_size_list=[one.shape[-2:] for one in pixels.levels],
            return_dict=True,
        )
        return tuple(one.transpose(0, 1) for one in found.intermediate_hidden_states), found.masks_queries_logits


class Segmentor(Mask2FormerPreTrainedModel):
    """SAM's encoder, Mask2Former's pixel decoder and transformer, and a head for the classes.

    `shared_image_embedding` is in the published weights but has no use.
    """

    _supports_sdpa = True

    def __init__(self, sam: SamVisionConfig, config: Mask2FormerConfig, channels: Sequence[int], head: type[nn.Module]):
        super().__init__(config)
        self.encoder = SamVisionEncoder(sam)
        self.shared_image_embedding = SamPositionalEmbedding(sam)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        self.decoder = QueryDecoder(config.feature_size, config)
        classes = config.num_labels + 1
        self.class_predictor = ClosedHead(config.hidden_dim, classes) if head is ClosedHead else head()
        self.side = sam.image_size

    def states(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures [B, 3, side, side]: the embeddings and each layer's states [B, h, w, C]."""
        return self.encoder(pictures, output_hidden_states=True).hidden_states

    def pixels(self, maps: Sequence[Tensor]) -> Pixels:
        """Decode the connector's maps, fine to coarse."""
        found = self.pixel_decoder(list(maps), output_hidden_states=False, output_attentions=False, return_dict=True)
        return Pixels(found.multi_scale_features, found.mask_features)

    def forward(self, maps: Sequence[Tensor], conditions: Conditions | None = None) -> Predictions:
        """Predict classes and masks from the connector's maps; `conditions` are for the open head."""
        pixels, seg = self.pixels(maps), None
        if conditions is not None:
            pixels, seg = pixels.repeated(conditions.repeats), conditions.seg
        queries, masks = self.decoder(pixels, seg)
        return Predictions(tuple(self.class_predictor(one, conditions) for one in queries), masks)
