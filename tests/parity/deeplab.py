"""Compare the COCO-Stuff segmenter with mmsegmentation's recorded names and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from seg2any.evaluation.judges.deeplab import DeepLabV3, from_mmseg
from seg2any.system.pretrained import imagenet_normalised


def cases(root: Path) -> dict[str, Callable[[], None]]:
    if not (root / "deeplab").is_dir():
        return {}
    keys = json.loads((root / "deeplab" / "keys.json").read_text())
    return {"keys": lambda: check_keys(keys), "case": lambda: check_case(keys, root / "deeplab" / "case.safetensors")}


def n_classes(keys: dict[str, list[int]]) -> int:
    return keys["decode_head.conv_seg.bias"][0]


def check_keys(keys: dict[str, list[int]]) -> None:
    with torch.device("meta"):
        ours = {name: list(value.shape) for name, value in DeepLabV3(n_classes(keys)).state_dict().items()}
    assert ours == keys


def check_case(keys: dict[str, list[int]], path: Path) -> None:
    recorded = load_file(path)
    # A published file also holds the auxiliary head of training.
    weights = dict(recorded_weights(keys)) | {"auxiliary_head.conv_seg.bias": torch.zeros(n_classes(keys))}
    model = from_mmseg(weights).eval()
    with torch.inference_mode():
        logits = model(imagenet_normalised(recorded["input_rgb_u8"][0].permute(1, 2, 0).numpy()))
    scale = recorded["logits_stride8"].abs().max()
    assert (logits[:, :, ::8, ::8] - recorded["logits_stride8"]).abs().max() < 1e-4 * scale
    assert (logits.argmax(1) == recorded["argmax"]).float().mean() > 0.9999


def recorded_weights(keys: dict[str, list[int]]) -> Iterable[tuple[str, torch.Tensor]]:
    """Draw the recording's random weights as its README describes."""
    for seed, name in enumerate(sorted(keys)):
        shape, generator = keys[name], torch.Generator().manual_seed(seed)
        if len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            value = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        elif name.endswith("running_var"):
            value = torch.rand(shape, generator=generator) + 0.5
        elif name.endswith("weight"):
            value = torch.rand(shape, generator=generator) * 0.2 + 0.4
        elif name.endswith("num_batches_tracked"):
            value = torch.tensor(0)
        else:
            value = torch.randn(shape, generator=generator) * 0.1
        yield name, value
