"""Compare masks, outlines, condition images and kept tokens with the golden ones.

They have to be equal byte for byte. Text was counted with FLUX.1's T5 tokenizer, which is not part of the golden data:
those counts are checked only where `golden_root.t5_tokenizer_folder` finds it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from seg2any.data.regions import text_lengths
from seg2any.diffusion.prepare import as_image
from seg2any.layout import Layout
from seg2any.layout.contour import condition_image, kept_tokens, outline, resize_masks
from tests.golden_root import t5_tokenizer_folder
from tests.parity.recorded_data import data_sets, items

T5_TOKENIZER = t5_tokenizer_folder()
WITHOUT_TOKENIZER = "counted with FLUX.1's T5 tokenizer; name its folder with SEG2ANY_T5_TOKENIZER to check"
LENGTHS = "t5_token_len.json"
PATCH = 16  # the reference counts tokens for FLUX.1: VAE factor 8, 2x2 packing


def cases(root: Path) -> dict[str, Callable[[], None]]:
    """List one check per contour case and condition scale, and one per data-set item."""
    folder = root / "contour"
    if not folder.is_dir():
        return {}
    found: dict[str, Callable[[], None]] = {}
    for name, case in json.loads((folder / "index.json").read_text())["cases"].items():
        if not (folder / name).is_dir():
            continue  # the committed subset lacks some cases
        found[f"contour/{name}/outline"] = partial(check_outline, folder / name, case)
        for scale, condition in case["cond"].items():
            found[f"contour/{name}/s{scale}"] = partial(check_condition, folder / name, case, scale, condition)
        if (folder / name / "labels_orig.png").exists():
            found[f"contour/{name}/resize"] = partial(check_resize, folder / name, case)
        if (folder / name / "seg_map.png").exists():
            found[f"contour/{name}/reader"] = partial(check_reader, folder / name, case)
    for data_set in data_sets(root):
        for item in items(data_set):
            found[f"contour/{data_set.name}/{item['idx']}/s{item['s']}"] = partial(check_item, data_set, item)
    if T5_TOKENIZER and (folder / LENGTHS).exists():
        found["contour/t5_token_len"] = partial(check_text, folder / LENGTHS)
    return found


def pending(root: Path) -> dict[str, str]:
    is_unchecked = (root / "contour" / LENGTHS).exists() and not T5_TOKENIZER
    return {"contour/t5_token_len": WITHOUT_TOKENIZER} if is_unchecked else {}


def read_stack(path: Path, count: int) -> np.ndarray:
    """Read bool [N, H, W] from a picture of N masks, one below the other."""
    pixels = np.array(Image.open(path)) != 0
    return pixels.reshape(count, -1, pixels.shape[1])


def check_outline(folder: Path, case: dict) -> None:
    masks = read_stack(folder / "labels.png", case["n"])
    expected = np.array(Image.open(folder / "contour.png").convert("L"))
    np.testing.assert_array_equal(outline(masks), expected)


def check_condition(folder: Path, case: dict, scale: str, condition: dict) -> None:
    masks = read_stack(folder / "labels.png", case["n"])
    image = condition_image(masks, (condition["h"], condition["w"]))
    np.testing.assert_array_equal(image, np.array(Image.open(folder / f"cond_s{scale}.png")))
    signed = as_image(image)[0]
    three = signed.contiguous().numpy()
    assert hashlib.sha256(three.tobytes()).hexdigest() == condition["sha256_fp32"]
    stored = load_file(folder / "cond.safetensors") if (folder / "cond.safetensors").exists() else {}
    if f"cond_s{scale}_1ch" in stored:
        np.testing.assert_array_equal(signed[:1].numpy(), stored[f"cond_s{scale}_1ch"])
    if condition["valid_tokens"] is not None:
        assert kept_tokens(image, PATCH).sum() == condition["valid_tokens"]


def check_resize(folder: Path, case: dict) -> None:
    masks = read_stack(folder / "labels_orig.png", case["n"])
    assert list(masks.shape[1:]) == case["orig_hw"]
    resized = resize_masks(masks, (case["h"], case["w"]))
    np.testing.assert_array_equal(resized, read_stack(folder / "labels.png", case["n"]))
    torch_resized = torch.nn.functional.interpolate(
        torch.from_numpy(masks)[None].float(), size=(case["h"], case["w"]), mode="nearest-exact"
    )
    np.testing.assert_array_equal(resized, torch_resized[0].numpy() != 0)


def check_reader(folder: Path, case: dict) -> None:
    """Compare the readers' regions up to their order, and without snapping.

    The published reader orders regions by colour, ours as the JSON does. Snapping only adds pixels to regions: those of
    soft edges, whose colours are not in the JSON.
    """
    regions = json.loads((folder / "anno.json").read_text())["segments_info"]
    by_color = sorted(range(len(regions)), key=lambda n: regions[n]["color"])
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shutil.copy(folder / "seg_map.png", f"{scratch}/example.png")
        shutil.copy(folder / "anno.json", f"{scratch}/example.json")
        layout = Layout.read(f"{scratch}/example.json", snap_colors=False)
        by_default = Layout.read(f"{scratch}/example.json")
    assert list(layout.captions) == [region["text"] for region in regions]
    assert [layout.captions[n] for n in by_color] == case["regional_captions"]
    assert (layout.caption, layout.seed) == (case["global_caption"], case["seed"])
    np.testing.assert_array_equal(layout.masks[by_color], read_stack(folder / "labels.png", case["n"]))
    assert (by_default.masks | layout.masks == by_default.masks).all()


def check_item(folder: Path, item: dict) -> None:
    """Compare condition images drawn from the masks that the published data set returned."""
    tensors = load_file(folder / "items.safetensors")
    n = item["idx"]
    expected = tensors[f"{n}/s{item['s']}/cond_pixel_values_1ch"]
    image = condition_image(tensors[f"{n}/label"] != 0, expected.shape[1:])
    np.testing.assert_array_equal(as_image(image)[0, :1].numpy(), expected)
    if item.get("token_num"):
        assert kept_tokens(image, PATCH).sum() == item["token_num"]["cond_seq_len"]


def check_text(recorded: Path) -> None:
    texts = json.loads(recorded.read_text())
    assert text_lengths([[one["text"] for one in texts]], t5_tokenizer()) == [[one["len"] for one in texts]]


def t5_tokenizer() -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(T5_TOKENIZER)
