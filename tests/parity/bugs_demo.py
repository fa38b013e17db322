"""Check that defects recorded on the published code are absent.

Each recorded value is wrong; the checks assert the right one.
"""

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

from seg2any.adapters.files import add_adapters
from seg2any.bases.flux1.transformer import Seg2AnyTransformer2DModel
from seg2any.data.aspect import fit
from seg2any.data.dataset import MaskStack, Sample
from seg2any.data.label_maps import ADE20KDataset
from seg2any.data.left_out import LeftOutWarning
from seg2any.data.regions import VANISHED_REGION, count_regions
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.training.checkpoint import Checkpoints
from tests.parity.eval_scripts import launcher_has_its_own_flags, no_function_is_called_with_too_few_arguments

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


def read_two_regions(colours: dict[str, tuple[int, int, int]]) -> Layout:
    """Read a picture of red | blue with the given captions and colours, in the given order."""
    picture = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8).repeat(8, 0).repeat(4, 1)
    segments = [{"color": colour, "text": text} for text, colour in colours.items()]
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(picture).save(Path(folder) / "two.png")
        (Path(folder) / "two.json").write_text(json.dumps({"caption": "two", "segments_info": segments}))
        return Layout.read(str(Path(folder) / "two.json"))


def adapters_are_float32(recorded: str) -> None:
    assert "bfloat16" in recorded, "the published adapters take the base's precision"
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

    with tempfile.TemporaryDirectory() as other, tempfile.TemporaryDirectory() as own:
        saved = Checkpoints(Path(other)).save(7, lambda folder: None, {"step": {"step": 7}})
        path, state = Checkpoints(Path(own)).load(f"{saved}/")
        assert path.samefile(saved) and state == {"step": {"step": 7}}


def open_label_maps(labels: dict[str, int]) -> ADE20KDataset:
    """Open ADE20K label maps of the given names, each filled with one value."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        for name, value in labels.items():
            for root, pixels in (("images", np.zeros((8, 8, 3), np.uint8)), ("segm", np.full((8, 8), value, np.uint8))):
                (Path(folder) / root).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(Path(folder) / root / f"{name}.png")
        return ADE20KDataset(Path(folder) / "images", Path(folder) / "segm")


def a_data_set_without_labels_is_said(recorded: str) -> None:
    assert "Error" in recorded
    try:
        open_label_maps({"a0": 0, "a1": 0})
    except UserError as error:
        assert "none of 2 samples" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("a data set without any label was accepted")


def unlabelled_samples_are_left_out(recorded: str) -> None:
    assert Path(recorded).stem != "a0", "the published data set gives another sample, chosen at random, for a0"
    data = open_label_maps({"a0": 0, "a1": 4, "a2": 5})
    assert [data.key(n) for n in range(len(data))] == ["a1", "a2"]
    assert [one.key for one in data.left_out] == ["a0"]


def a_vanished_region_is_flagged(recorded: list[int]) -> None:
    """Check that the bucket map flags a region of one pixel that vanishes at a lower resolution.

    Its caption stays.
    """
    assert min(recorded) <= 1, "the published region keeps at most a pixel"
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 1, 1], masks[1, 20:60, 20:60] = True, True
    sample = Sample(np.zeros((64, 64, 3), np.uint8), Layout(masks, ("a dot", "a square"), overlap="share"))
    fitted = fit(sample, (16, 16), "stretch").layout
    assert fitted.masks.sum((1, 2)).tolist() == [0, 100] and fitted.captions == ("a dot", "a square")
    assert count_regions(MaskStack(masks), (16, 16), (16, 16)).flags & VANISHED_REGION


CHECKS: dict[str, Callable[[Any], None]] = {
    "LoRA param dtype": adapters_are_float32,
    "infer region order": regions_keep_the_order_of_the_file,
    "infer no matching colour": no_matching_colour_is_said,
    "resume basename": resume_takes_any_path,
    "all unlabeled dataset": a_data_set_without_labels_is_said,
    "ds[0] returns image": unlabelled_samples_are_left_out,
    "1px entity": a_vanished_region_is_flagged,
    "eval.sh accelerate launch": launcher_has_its_own_flags,
    "metric worker": no_function_is_called_with_too_few_arguments,
}


def _recorded(root: Path) -> dict[str, Any]:
    file = root / "bugs_demo.json"
    return {k: v for k, v in json.loads(file.read_text()).items() if k != "versions"} if file.is_file() else {}


def _check_of(defect: str) -> Callable[[Any], None] | None:
    return next((check for words, check in CHECKS.items() if words in defect), None)


def cases(root: Path) -> dict[str, Callable[[], None]]:
    found = {defect: (_check_of(defect), value) for defect, value in _recorded(root).items()}
    return {f"bugs_demo/{defect}": partial(check, value) for defect, (check, value) in found.items() if check}


def pending(root: Path) -> dict[str, str]:
    """List recorded defects that no check here covers."""
    return {f"bugs_demo/{d}": "a new kind of defect" for d in _recorded(root) if not _check_of(d)}
