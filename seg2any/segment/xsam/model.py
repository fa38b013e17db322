"""The X-SAM networks: the segmentor alone with a closed list of classes, and the whole model.

    picture --SAM--> connector --> segmentor ------------------------> masks, classes
          \\--SigLIP, SAM--> projectors --> language model --> <SEG>, phrases --/

Shape suffixes: B conversations, L tokens, D width of the language model, n tokens of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, SiglipVisionModel

from seg2any.segment.xsam.config import XSamConfig, XSamSegmentorConfig
from seg2any.segment.xsam.connector import Connector, Projector
from seg2any.segment.xsam.regions import region_vectors
from seg2any.segment.xsam.segmentor import ClosedHead, CosineHead, Predictions, Segmentor
from seg2any.segment.xsam.spans import Marks
from seg2any.segment.xsam.splice import Spliced, Tokens, splice

FOLD = 2  # pixels of SAM's grid in a token's edge


@dataclass(frozen=True)
class Pictures:
    """Pictures as the encoders take them.

    seg     float [B, 3, S, S] for SAM
    visual  float [B, 3, V, V] for SigLIP
    """

    seg: Tensor
    visual: Tensor


@dataclass(frozen=True)
class Seen:
    """Encoded pictures.

    maps   for the segmentor, fine to coarse
    tokens [B, n, D] of SigLIP, then those of SAM's grid
    grid   [B, m, D], the tokens of SAM's grid alone, which visual prompts are read from
    """

    maps: list[Tensor]
    tokens: Tensor
    grid: Tensor

    def regions_of(self, picture: int, masks: Tensor) -> Tensor:
        """Return the vectors [N, D] of the visual prompts [N, S, S] of a picture."""
        return region_vectors(self.grid[picture], masks)


class XSamSegmentor(PreTrainedModel):
    """The segmentor with a closed list of classes, which needs no language model."""

    config_class = XSamSegmentorConfig
    main_input_name = "pictures"
    _supports_sdpa = True
    _no_split_modules = ("SamVisionLayer",)

    def __init__(self, config: XSamSegmentorConfig):
        super().__init__(config)
        self.seg_connector = connector_of(config)
        self.segmentor = Segmentor(config.sam_config, config.mask_config, self.seg_connector.channels, ClosedHead)
        self.post_init()

    def forward(self, pictures: Tensor) -> Predictions:
        """Predict classes and masks of pictures [B, 3, S, S]."""
        states = self.segmentor.states(pictures.to(self.dtype))
        return self.segmentor(self.seg_connector([states[layer] for layer in self.config.connector_layers]))


class XSam(PreTrainedModel):
    """The whole model. `speaker.Speaker` asks it."""

    config_class = XSamConfig
    main_input_name = "pictures"
    _supports_sdpa = True
    _no_split_modules = ("SamVisionLayer", "SiglipEncoderLayer")

    def __init__(self, config: XSamConfig):
        super().__init__(config)
        width, inner = config.text_config.hidden_size, config.mask_config.hidden_dim
        self.llm = AutoModelForCausalLM.from_config(config.text_config)
        self.visual_encoder = SiglipVisionModel(config.siglip_config)
        self.seg_connector = connector_of(config)
        self.segmentor = Segmentor(config.sam_config, config.mask_config, self.seg_connector.channels, CosineHead)
        self.visual_projector = Projector(config.siglip_config.hidden_size, width)
        self.seg_projector = Projector(config.sam_config.hidden_size, width, FOLD)
        self.llm_projector = Projector(width, inner)
        self.bg_embeds = nn.Embedding(1, inner)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of text tokens."""
        return self.llm.get_input_embeddings()

    @property
    def marks(self) -> Marks:
        """The numbers of the model's own tokens."""
        return Marks(self.config.seg_token_id, self.config.phrase_start_id, self.config.phrase_end_id)

    def see(self, pictures: Pictures) -> Seen:
        """Encode pictures."""
        layer, dtype = self.config.visual_layer, self.bg_embeds.weight.dtype
        visual = self.visual_encoder(pictures.visual.to(dtype), output_hidden_states=True).hidden_states[layer]
        states = self.segmentor.states(pictures.seg.to(dtype))
        grid = self.seg_projector(states[layer])
        maps = self.seg_connector([states[number] for number in self.config.connector_layers])
        return Seen(maps, torch.cat([self.visual_projector(visual), grid], 1), grid)

    def splice(self, tokens: Tokens, seen: Seen | None, regions: Sequence[Tensor | None] | None = None) -> Spliced:
        """Put pictures and regions into conversations; see `splice.splice`."""
        return splice(tokens, self.get_input_embeddings(), () if seen is None else list(seen.tokens), regions)

    def forward(self, spliced: Spliced) -> tuple[Tensor, Tensor]:
        """Read whole conversations: logits of the next token [B, L, V] and projected states [B, L, inner width]."""
        found = self.llm.model(
            inputs_embeds=spliced.embeddings,
            attention_mask=spliced.mask,
            position_ids=spliced.positions,
            use_cache=False,
        )
        states = found.last_hidden_state
        return self.llm.lm_head(states), self.llm_projector(states)


def connector_of(config: XSamSegmentorConfig) -> Connector:
    """Build the connector between SAM's encoder and the pixel decoder."""
    return Connector(config.sam_config.hidden_size, config.connector_channels, config.connector_scales)
