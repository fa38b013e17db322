"""A small random network of X-SAM: stock modules under the published names, in float64, one thing at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Phi3Config, Phi3ForCausalLM, SamVisionConfig, SiglipVisionConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder, Mask2FormerTransformerModule
from transformers.models.sam.modeling_sam import SamVisionEncoder
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from tests.parity_xsam.second import plain
from tests.parity_xsam.second.book import Book
from tests.parity_xsam.second.connector import branch_weights, projector_weights

SCALES = [4, 2, 1, 0.5]  # of which the last three are used


def sizes_of(book: Book) -> dict:
    """Draw the sizes of a network, named as recorded."""
    patch, cells, heads, layers = 4 * book.between(1, 2), 2 * book.between(3, 5), book.between(2, 3), book.between(4, 5)
    small, width = 7 * book.between(1, 2), 8 * book.between(3, 5)
    return {
        "connector_hidden": book.between(5, 14),
        "connector_scale": SCALES,
        "seg_select_layers": [1, *range(layers - 2, layers + 1)],
        "max_new_tokens": 20,
        "sam": {
            "global_attn_indexes": [layers // 2, layers - 1],
            "hidden_size": 8 * heads,
            "image_size": patch * cells,
            "mlp_ratio": 2.0,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_pos_feats": 4 * heads,
            "output_channels": 6,
            "patch_size": patch,
            "window_size": book.between(2, 4),
        },
        "siglip": {
            "hidden_size": 18,
            "image_size": small * book.between(2, 4),
            "intermediate_size": book.between(20, 40),
            "num_attention_heads": 3,
            "num_hidden_layers": book.between(2, 3),
            "patch_size": small,
        },
        "phi3": {
            "attention_dropout": 0.0,
            "embd_pdrop": 0.0,
            "hidden_act": "silu",
            "hidden_size": width,
            "intermediate_size": book.between(30, 60),
            "max_position_embeddings": 4096,
            "num_attention_heads": 4,
            "num_hidden_layers": book.between(1, 2),
            "num_key_value_heads": 2,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 2047,
            "tie_word_embeddings": False,
        },
        "mask2former": {
            "decoder_layers": book.between(3, 5),
            "dim_feedforward": book.between(30, 70),
            "dropout": 0.0,
            "encoder_feedforward_dim": book.between(30, 70),
            "encoder_layers": 1,
            "feature_size": 32,
            "hidden_dim": 32,
            "mask_feature_size": 32,
            "num_attention_heads": 4,
            "num_labels": book.between(3, 6),
            "num_queries": book.between(4, 6),
            "train_num_points": book.between(20, 40),
        },
    }


def filled(book: Book, module: nn.Module) -> nn.Module:
    """Draw all parameters of a module, and make it float64."""
    module = module.double().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() > 1:
                scale = 0.3 if "embed" in name or "rel_pos" in name else weight[0].numel() ** -0.5
                weight.copy_(book.normal(*weight.shape, scale=scale))
            else:
                weight.copy_(book.normal(*weight.shape, scale=0.1) + name.endswith("weight"))
    return module


class Segmentor:
    """The pixel decoder and the decoder, and the head if it is a linear one."""

    def __init__(self, book: Book, config: dict, channels: list[int], closed: bool):
        config = Mask2FormerConfig(**config)
        self.pixel_decoder = filled(book, Mask2FormerPixelDecoder(config, feature_channels=channels))
        self.decoder = filled(book, Mask2FormerTransformerModule(config.feature_size, config))
        kinds = config.num_labels + 1
        self.head = filled(book, nn.Linear(config.hidden_dim, kinds)) if closed else None
        self.logit_scale = torch.tensor([book.between(30, 38) / 10], dtype=torch.float32).double()

    def pixels(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Decode the maps [1, C, h, w] of a picture: levels coarse to fine, and features of masks."""
        found = self.pixel_decoder(list(maps), output_hidden_states=False, output_attentions=False, return_dict=True)
        return list(found.multi_scale_features), found.mask_features

    def row(self, levels: list[Tensor], features: Tensor, seg: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Decode one row: queries [Q, D] and mask logits [Q, h, w] of each layer; seg [1, D] goes on the queries."""
        held = self.decoder.queries_features.weight
        asked = held if seg is None else held + seg
        parameters = {"queries_features.weight": asked}
        found = torch.func.functional_call(self.decoder, parameters, (levels, features))
        queries = [one[:, 0] for one in found.intermediate_hidden_states]
        return queries, [one[0] for one in found.masks_queries_logits]

    def classes(self, queries: Tensor, conditions: Tensor | None, present: Tensor | None) -> Tensor:
        """Compute class logits [Q, K] of a row."""
        if self.head is not None:
            return self.head(queries)
        present = None if present is None else present[None]
        return plain.cosines(queries[None], conditions[None], present, self.logit_scale)[0]

    def weights(self) -> dict[str, Tensor]:
        """Name all weights as published below the segmentor."""
        named = {"pixel_decoder.": self.pixel_decoder, "decoder.": self.decoder}
        named |= {} if self.head is None else {"class_predictor.": self.head}
        found = {prefix + name: x for prefix, module in named.items() for name, x in module.named_parameters()}
        return found | ({"logit_scale": self.logit_scale} if self.head is None else {})


class Network:
    """The whole model, or the segmentor with a linear head alone."""

    def __init__(self, book: Book, sizes: dict, tokens: int, closed: bool = False):
        sam, self.sizes = SamVisionConfig(**sizes["sam"], attn_implementation="eager"), sizes
        width, inner, wide = sam.hidden_size, sizes["mask2former"]["hidden_dim"], sizes["phi3"]["hidden_size"]
        self.sam = filled(book, SamVisionEncoder(sam))
        channels = [round(width / scale) for scale in SCALES[1:]]
        self.segmentor = Segmentor(book, sizes["mask2former"], channels, closed)
        self.plain = {
            f"seg_connector.model.{number}.": branch_weights(book, width, sizes["connector_hidden"], scale)
            for number, scale in enumerate(SCALES[1:])
        }
        self.place = book.normal(2, sam.num_pos_feats)
        self.llm = self.siglip = None
        if not closed:
            siglip = SiglipVisionConfig(**sizes["siglip"], attn_implementation="eager")
            self.siglip = filled(book, SiglipVisionModel(siglip))
            own = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "attn_implementation": "eager"}
            self.llm = filled(book, Phi3ForCausalLM(Phi3Config(**sizes["phi3"], vocab_size=tokens, **own)))
            self.plain |= {
                "visual_projector.": projector_weights(book, siglip.hidden_size, wide),
                "seg_projector.": projector_weights(book, 4 * width, wide),
                "llm_projector.": projector_weights(book, wide, inner),
                "bg_embeds.": {"weight": book.normal(1, inner)},
            }
        for weight in self.weights().values():
            weight.requires_grad_()

    def weights(self) -> dict[str, Tensor]:
        """Name all weights as published."""
        named = {"segmentor.encoder.": self.sam}
        if self.llm is not None:
            named |= {"llm.": self.llm, "visual_encoder.vision_model.": self.siglip}
        found = {prefix + name: x for prefix, module in named.items() for name, x in module.named_parameters()}
        found |= {f"segmentor.{name}": x for name, x in self.segmentor.weights().items()}
        return found | {prefix + name: x for prefix, own in self.plain.items() for name, x in own.items()}

    def state(self) -> dict[str, Tensor]:
        return self.weights() | {"segmentor.shared_image_embedding.positional_embedding": self.place}

    def sam_states(self, picture: Tensor) -> list[Tensor]:
        """Encode one picture [3, S, S]: states [1, h, w, C]."""
        return list(self.sam(picture[None], output_hidden_states=True).hidden_states)

    def maps(self, states: list[Tensor]) -> list[Tensor]:
        layers = self.sizes["seg_select_layers"][-3:]
        return [
            plain.branch(states[layer], self.plain[f"seg_connector.model.{number}."], scale)
            for number, (layer, scale) in enumerate(zip(layers, SCALES[1:], strict=True))
        ]

    def tokens(self, picture: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the tokens [n, D] of one picture [3, V, V], and those [m, D] of SAM's grid."""
        visual = self.siglip(picture[None], output_hidden_states=True).hidden_states[-2]
        return (
            plain.project(visual, self.plain["visual_projector."])[0],
            plain.project(states[-2], self.plain["seg_projector."], 0.5)[0],
        )

    def read(self, embeddings: Tensor) -> Tensor:
        """Return the last states [L, D] of one conversation."""
        return self.llm.model(inputs_embeds=embeddings[None], use_cache=False).last_hidden_state[0]

    def projected(self, states: Tensor) -> Tensor:
        return plain.project(states[None], self.plain["llm_projector."])[0]
