"""Save tiny random versions of all evaluation judges in the real formats."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2Model,
    Sam2VisionConfig,
    Sam3Config,
    Sam3Model,
    SwinConfig,
)

from examples.shapes.make.build import build_clip_tokenizer
from seg2any.evaluation.judges.deeplab import DeepLabV3
from seg2any.evaluation.judges.mask2former import Mask2FormerForSemantics


class Inception(torch.nn.Module):
    """The one attribute that is read from NVIDIA's file."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 7, stride=7), torch.nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def save_judges(folder: Path) -> dict[str, Path]:
    """Save every judge; return flag of `python -m seg2any.evaluation.runners` -> value."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    folders = ("clip", "cmmd_clip", "dinov2", "dinov3", "eomt", "mask2former", "sam2", "sam3")
    paths = {name: folder / name for name in folders}
    paths |= {"inception": folder / "inception.pt", "deeplab": folder / "deeplab.pth"}
    torch.jit.script(Inception()).save(str(paths["inception"]))
    torch.save({"meta": {"epoch": 1}, "state_dict": _deeplab().state_dict()}, paths["deeplab"])
    Mask2FormerForSemantics(tiny_mask2former(150)).save_pretrained(paths["mask2former"])
    tiny_sam2().save_pretrained(paths["sam2"])
    dino = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(dino).save_pretrained(paths["dinov2"])
    tiny_dinov3().save_pretrained(paths["dinov3"])
    tiny_eomt(150).save_pretrained(paths["eomt"])
    save_sam3(paths["sam3"])
    save_clip(paths["clip"])
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=4)
    CLIPVisionModelWithProjection(vision).save_pretrained(paths["cmmd_clip"])
    return paths


def _deeplab() -> DeepLabV3:
    model = DeepLabV3(171, (1, 1, 1, 1), width=4, channels=8)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 0.1)
    return model


def tiny_mask2former(num_labels: int) -> Mask2FormerConfig:
    stages = {"depths": [1] * 4, "num_heads": [1] * 4, "out_features": [f"stage{n}" for n in (1, 2, 3, 4)]}
    narrow = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
    return Mask2FormerConfig(
        backbone_config=SwinConfig(embed_dim=8, window_size=4, **stages),
        **narrow,
        **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 16),
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        num_labels=num_labels,
    )


def tiny_sam2() -> Sam2Model:
    """Build a SAM 2 of 64 x 64 pixels."""
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def tiny_dinov3() -> DINOv3ViTModel:
    narrow = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return DINOv3ViTModel(DINOv3ViTConfig(**narrow, num_register_tokens=1))


def tiny_eomt(num_labels: int) -> EomtForUniversalSegmentation:
    """Build an EoMT that reads squares of 32 pixels."""
    narrow = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 1, "num_blocks": 1}
    config = EomtConfig(**narrow, image_size=32, num_queries=5, num_upscale_blocks=1, num_labels=num_labels)
    return EomtForUniversalSegmentation(config)


def save_sam3(folder: Path) -> None:
    """Save a SAM 3 of 56 x 56 pixels with its tokenizer."""
    tokenizer = build_clip_tokenizer()
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    layers = {"num_layers": 1, **narrow}
    backbone = {"model_type": "sam3_vit_model", **narrow, "num_hidden_layers": 2, "global_attn_indexes": [1]}
    config = Sam3Config(
        vision_config={
            "backbone_config": {**backbone, "image_size": 56, "pretrain_image_size": 28, "window_size": 2},
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            "model_type": "clip_text_model",
            **narrow,
            "vocab_size": len(tokenizer),
            "projection_dim": 8,
            "num_hidden_layers": 1,
            "max_position_embeddings": 12,
            "eos_token_id": tokenizer.eos_token_id,
        },
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 6},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    model = Sam3Model(config)
    for weight in model.parameters():
        weight.data.mul_(3)  # makes instances differ
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_clip(folder: Path) -> None:
    """Save a tiny CLIP with the published config.

    Its end token is 2, which transformers takes to mean "the token with the highest id".
    """
    tokenizer = build_clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": len(tokenizer), "eos_token_id": 2},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
