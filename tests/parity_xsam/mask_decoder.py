"""Pixel decoder, decoder and heads of the segmentor."""

from __future__ import annotations

import torch
from transformers import Mask2FormerConfig, SamVisionConfig

from seg2any.segment.xsam.segmentor import (
    ClosedHead,
    Conditions,
    CosineHead,
    Segmentor,
    cosine_logits,
)
from tests.parity_xsam.recorded import Case, close, kept, parameters, same, tensors_of

FILE = "mask_decoder"
NAMES = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "encoder_layers",
         "decoder_layers", "num_attention_heads", "dropout", "dim_feedforward", "pre_norm", "common_stride",
         "num_queries", "feature_strides", "num_labels")  # fmt: skip
NO_ENCODER = SamVisionConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=16)


@kept
def segmentor(head: type) -> Segmentor:
    about, weights = parameters()[FILE]["config"], tensors_of(FILE, "weights/")
    mask_config = Mask2FormerConfig(
        **{name: about[name] for name in NAMES if name in about}, activation_function=about["activation"]
    )
    model = Segmentor(NO_ENCODER, mask_config, about["feature_channels"], head)
    if head is CosineHead:
        weights["class_predictor.logit_scale"] = weights["logit_scale"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    parts = ("decoder", "pixel_decoder", "class_predictor")
    assert not [name for name in missing if name.startswith(parts)]
    assert {"logit_scale"} | {name for name in unexpected if name.startswith("class_predictor")} >= set(unexpected)
    return model.eval()


@torch.no_grad()
def decoder_case(case: Case) -> None:
    x, about, blocked = case.x, case.about, []
    closed = "cond_embeddings" not in x
    model = segmentor(ClosedHead if closed else CosineHead)
    images = case.numbered("image_embedding") or [
        one for one in Case(FILE, about["image_embeddings_of"], {}).numbered("image_embedding")
    ]
    repeats = tuple(about["cond_lens"] or [1] * len(images[0]))
    conditions = None
    if not closed:
        present = x["embed_masks"].bool() if "embed_masks" in x else None
        conditions = Conditions(x["cond_embeddings"], x["seg_embeddings"], present, repeats)
    hook = model.decoder.decoder.mask_predictor.register_forward_hook(lambda *found: blocked.append(found[2][1]))
    pixels = model.pixels(images)
    queries, masks = model.decoder(pixels.repeated(repeats), None if closed else conditions.seg)
    hook.remove()
    if "pixel_mask_features" in x:
        close(pixels.masks, x["pixel_mask_features"])
        for mine, recorded in zip(pixels.levels, case.numbered("pixel_multi_scale"), strict=True):
            close(mine, recorded)
    for number, (own, mask) in enumerate(zip(queries, masks, strict=True)):
        close(own, x[f"layer_{number}_queries"])
        close(mask, x[f"layer_{number}_masks"])
        if f"layer_{number}_blocked" in x:
            heads = model.config.num_attention_heads
            same(blocked[number].unflatten(0, (-1, heads))[:, 0], x[f"layer_{number}_blocked"])
    found = model(images, conditions)
    for mine, recorded in zip(found.classes, [*layers(case), x["class_logits"]], strict=True):
        close(mine, recorded, 1e-5)
    if "mask_logits_upsampled" in x:
        close(found.answer(about["image_size"])[1], x["mask_logits_upsampled"])


def layers(case: Case) -> list[torch.Tensor]:
    return [
        case.x[f"aux_{number}_class_logits"] for number in range(len(case.x)) if f"aux_{number}_class_logits" in case.x
    ]


def head_case(case: Case) -> None:
    x = case.x
    found = cosine_logits(x["queries"], x["conditions"], x["embed_masks"].bool(), x["logit_scale"])
    close(found, x["class_logits"])
    close(found.clamp(min=-1e3), x["class_logits"].clamp(min=-1e3))


CHECKS = {"cosine_": head_case, "": decoder_case}
