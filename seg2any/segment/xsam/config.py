"""Describe an X-SAM model: the configurations of its parts, and how they are joined."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import Mask2FormerConfig, PreTrainedConfig, SamVisionConfig, SiglipVisionConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto import AutoConfig

SAM_L = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "global_attn_indexes": [5, 11, 17, 23],
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
PHI3_MINI = {"vocab_size": 32014, "sliding_window": 2047}


@strict
class XSamSegmentorConfig(PreTrainedConfig):
    """The segmentor alone, with a closed list of classes (the published stage 1).

    sam_config         of the encoder
    mask_config        of Mask2Former's pixel decoder and transformer; num_labels is the number of classes
    connector_layers   hidden states of the encoder that are read, 0 being its embeddings: fine to coarse
    connector_scales   of the maps made from them, relative to the encoder's grid
    connector_channels of the maps inside the connector
    """

    model_type = "xsam_segmentor"
    sub_configs_defaults = {
        "sam_config": SubConfigSpec(config_class=SamVisionConfig, init_kwargs=SAM_L),
        "mask_config": SubConfigSpec(config_class=Mask2FormerConfig, init_kwargs={"num_queries": 200}),
    }

    sam_config: dict | PreTrainedConfig | None = None
    mask_config: dict | PreTrainedConfig | None = None
    connector_layers: list[int] | tuple[int, ...] = (12, 18, 24)
    connector_scales: list[int | float] | tuple[int | float, ...] = (2, 1, 0.5)
    connector_channels: int = 512


@strict
class XSamConfig(XSamSegmentorConfig):
    """The whole model (the published stage 3), as `XSamSegmentorConfig` and more.

    siglip_config    of the encoder whose tokens tell the language model what is where
    text_config      of any causal language model of transformers, by its model_type
    visual_layer     hidden state of both encoders that the language model sees
    chat             the form of its conversations: a key of `conversation.CHATS`
    max_length       tokens of a conversation, before pictures are put in
    seg_token_id, phrase_start_id, phrase_end_id  numbers of <SEG>, <p> and </p>
    """

    model_type = "xsam"
    sub_configs_defaults = {
        **XSamSegmentorConfig.sub_configs_defaults,
        "siglip_config": SubConfigSpec(config_class=SiglipVisionConfig, init_kwargs=SIGLIP_SO400M),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="phi3", init_kwargs=PHI3_MINI),
    }

    siglip_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    visual_layer: int = -2
    chat: str = "phi3"
    max_length: int = 2319
    seg_token_id: int = 32011
    phrase_start_id: int = 32012
    phrase_end_id: int = 32013
    tie_word_embeddings: bool = False
