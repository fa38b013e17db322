"""DeepLabV3-R101-D8, the judge of COCO-Stuff.

Parameters have mmsegmentation's names, so its published weights load as they are. ResNetV1c: a stem of three
convolutions; the last two stages keep the resolution and dilate instead. ASPP head of arXiv 1706.05587. Nothing but
torch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg2any.evaluation.judges.label_map import rescaled
from seg2any.system.errors import UserError
from seg2any.system.pretrained import for_inference, imagenet_normalised, state_dict

WHAT = "DeepLabV3 judge of COCO-Stuff"
_NAME = "deeplabv3_r101-d8_512x512_4x4_320k_coco-stuff164k"
SOURCE = f"https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3/{_NAME}/{_NAME}_20210709_155402-3cbca14d.pth"
STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)
ASPP_DILATIONS = (1, 12, 24, 36)
EXPANSION = 4


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 with a shortcut; the stride is in the 3x3."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int):
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, h, w] to [B, 4 width, h', w']."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNetV1c(nn.Module):
    """Backbone: [B, 3, H, W] -> [B, 32 * width, H / 8, W / 8]."""

    def __init__(self, blocks: tuple[int, ...], width: int):
        super().__init__()
        half = width // 2
        stem = ((3, half, 2), (half, half, 1), (half, width, 1))
        self.stem = nn.Sequential(
            *(
                layer
                for inputs, outputs, stride in stem
                for layer in (nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
            )
        )
        inputs = width
        for stage, (count, stride, dilation) in enumerate(zip(blocks, STRIDES, DILATIONS, strict=True)):
            layers = []
            for index in range(count):
                first = index == 0  # dilates half as much as the others ("contract_dilation")
                dilated = dilation // 2 if first and dilation > 1 else dilation
                layers.append(Bottleneck(inputs, width << stage, stride if first else 1, dilated))
                inputs = EXPANSION * (width << stage)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [B, 3, H, W] to features [B, C, H/8, W/8]."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class ConvModule(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, dilation: int = 1):
        super().__init__()
        padding = dilation * (size // 2)
        self.conv = nn.Conv2d(inputs, outputs, size, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, h, w] to [B, C', h, w]."""
        return F.relu(self.bn(self.conv(x)))


class ASPPHead(nn.Module):
    """Head with atrous spatial pyramid pooling: [B, C, h, w] -> class logits [B, K, h, w]."""

    def __init__(self, inputs: int, channels: int, classes: int):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(inputs, channels, 1))
        self.aspp_modules = nn.ModuleList(
            ConvModule(inputs, channels, 1 if dilation == 1 else 3, dilation) for dilation in ASPP_DILATIONS
        )
        self.bottleneck = ConvModule((len(ASPP_DILATIONS) + 1) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, C, h, w] to class logits [B, K, h, w]."""
        pooled = F.interpolate(self.image_pool(x), x.shape[-2:], mode="bilinear", align_corners=False)
        return self.conv_seg(self.bottleneck(torch.cat([pooled, *(module(x) for module in self.aspp_modules)], 1)))


class DeepLabV3(nn.Module):
    """Backbone and head: normalised images [B, 3, H, W] -> class logits [B, K, H, W]."""

    def __init__(self, classes: int, blocks: tuple[int, ...] = (3, 4, 23, 3), width: int = 64, channels: int = 512):
        super().__init__()
        self.backbone = ResNetV1c(blocks, width)
        self.decode_head = ASPPHead(8 * EXPANSION * width, channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images [B, 3, H, W] to class logits [B, K, H, W]."""
        logits = self.decode_head(self.backbone(x))
        return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)


def from_mmseg(weights: Mapping[str, Tensor]) -> DeepLabV3:
    """Build the model of an mmsegmentation state dict, of any depth and width.

    Its auxiliary head is left out. Raises UserError, naming a parameter, if the weights belong to another architecture.
    """
    weights = {name: value for name, value in weights.items() if not name.startswith("auxiliary_head.")}
    try:
        classes, channels = weights["decode_head.conv_seg.weight"].shape[:2]
        width = weights["backbone.layer1.0.conv1.weight"].shape[0]
        depth = [
            sum(name.startswith(f"backbone.layer{n}.") and name.endswith("conv1.weight") for name in weights)
            for n in (1, 2, 3, 4)
        ]
        model = DeepLabV3(classes, tuple(depth), width, channels)
        model.load_state_dict(weights, strict=True)
    except KeyError as error:
        raise UserError(f"{WHAT}: the weights lack {error}, a part of this architecture; get {SOURCE}") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{WHAT}: the weights belong to another architecture ({reason}); get {SOURCE}") from None
    return model


class DeepLabJudge:
    """DeepLabV3 as a label judge. `path` is the published .pth file."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.model = for_inference(from_mmseg(state_dict(path, WHAT, SOURCE)), device)
        self.classes = self.model.decode_head.conv_seg.out_channels
        self.device = device

    @torch.inference_mode()
    def labels(self, image: np.ndarray) -> np.ndarray:
        """Classify every pixel: uint8 [H, W, 3] -> int64 [H, W]."""
        logits = self.model(imagenet_normalised(rescaled(image)).to(self.device))
        logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
        return logits[0].argmax(0).cpu().numpy()
