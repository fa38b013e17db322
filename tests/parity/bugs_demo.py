"""Defects recorded on the published code: each recorded value is the wrong one, and ours is asserted to be right."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seg2any.errors import UserError
from seg2any.layout import Layout
from seg2any.models.adapters import add_adapters
from seg2any.models.transformer import Seg2AnyTransformer2DModel
from seg2any.training.checkpoint import Checkpoints

SMALL = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
LATER = {
    "all unlabeled dataset __getitem__": "comes with the data sets",
    "ds[0] returns image": "comes with the data sets",
    "1px entity at resolution 16: label area": "comes with the data sets",
    "eval.sh accelerate launch order": "comes with the evaluation scripts",
    "metric worker()": "comes with the evaluation scripts",
}


def read_two_regions(colours: dict[str, tuple[int, int, int]]) -> Layout:
    """A picture of red | blue, described by these captions and colours in this order."""
    picture = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8).repeat(8, 0).repeat(4, 1)
    segments = [{"color": colour, "text": text} for text, colour in colours.items()]
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(picture).save(Path(folder) / "two.png")
        (Path(folder) / "two.json").write_text(json.dumps({"caption": "two", "segments_info": segments}))
        return Layout.read(str(Path(folder) / "two.json"))


def adapters_are_float32(recorded: str) -> None:
    assert "bfloat16" in recorded
    model = Seg2AnyTransformer2DModel(**SMALL).bfloat16()
    add_adapters(model, rank=2)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}


def regions_keep_the_order_of_the_file(recorded: list[str]) -> None:
    assert recorded == sorted(recorded), "the published order is that of the colours, not of the file"
    red, blue = (255, 0, 0), (0, 0, 255)
    assert read_two_regions({"first": red, "second": blue}).captions == ("first", "second")
    assert read_two_regions({"second": blue, "first": red}).captions == ("second", "first")


def no_matching_colour_is_said(recorded: str) -> None:
    assert recorded.startswith("ValueError")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_two_regions({"a region": (1, 128, 1)})
    except UserError as error:
        assert "two.json" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("a colour that is nowhere in the image was accepted")


def resume_takes_any_path(recorded: str) -> None:
    assert "/" not in recorded, "the published code keeps the basename only"

    class Step:
        def state_dict(self) -> dict[str, Any]:
            return {"step": 7}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with tempfile.TemporaryDirectory() as other, tempfile.TemporaryDirectory() as own:
        saved = Checkpoints(Path(other)).save(7, lambda folder: None, {"step": Step()})
        path, state = Checkpoints(Path(own)).load(f"{saved}/")
        assert path.samefile(saved) and state == {"step": {"step": 7}}


CHECKS: dict[str, Callable[[Any], None]] = {
    "LoRA param dtype when base is bf16": adapters_are_float32,
    "infer region order": regions_keep_the_order_of_the_file,
    "infer no matching colour": no_matching_colour_is_said,
    "resume basename": resume_takes_any_path,
}


def _recorded(root: Path) -> dict[str, Any]:
    file = root / "bugs_demo.json"
    return {k: v for k, v in json.loads(file.read_text()).items() if k != "versions"} if file.is_file() else {}


def cases(root: Path) -> dict[str, Callable[[], None]]:
    return {f"bugs_demo/{key}": partial(CHECKS[key], value) for key, value in _recorded(root).items() if key in CHECKS}


def pending(root: Path) -> dict[str, str]:
    return {f"bugs_demo/{key}": LATER[key] for key in _recorded(root) if key in LATER}
