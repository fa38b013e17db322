"""Compare kept condition tokens with the golden ones where the published filter is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks.scenes import SampleTokens
from seg2any.attention.tokens import layout_tokens
from seg2any.layout.contour import kept_tokens

PATCH = 16  # pixels per token of the recorded images


def cases(root: Path) -> dict[str, Callable[[], None]]:
    """List one check per recorded batch, and one per recorded edge case of the filter."""
    folder = root / "filter"
    if not folder.is_dir():
        return {}
    edges = load_file(folder / "edge.safetensors") if (folder / "edge.safetensors").exists() else {}
    found: dict[str, Callable[[], None]] = {}
    for name, case in json.loads((folder / "index.json").read_text())["cases"].items():
        if (folder / f"{name}.safetensors").exists():
            found[f"filter/{name}"] = partial(check_batch, folder / f"{name}.safetensors", case)
        elif name in edges:
            found[f"filter/{name}"] = partial(check_edge, edges[name], case)
        elif "count" in case and "examples" in case:
            found[f"filter/{name}"] = partial(check_cancelling_pairs, case)
    return found


def check_batch(file: Path, case: dict) -> None:
    tensors = load_file(file)
    images = to_uint8(tensors["cond_1ch"][:, 0])
    kept = [kept_tokens(image, PATCH) for image in images]
    assert [np.flatnonzero(item).tolist() for item in kept] == case["kept"]
    assert [int(item.sum()) for item in kept] == case["cond_seq_lens"] == case["valid_token_num"]
    for item, before, after in zip(kept, tensors["hidden_in"], tensors["hidden_out"], strict=True):
        np.testing.assert_array_equal(before[item.flatten()], after[: item.sum()])
        assert not after[item.sum() :].any()

    tokens = layout_tokens([sample_tokens(item) for item in kept], case["s"])
    length = max(case["cond_seq_lens"])  # ours keeps one row of padding where the published batch has no row
    ours = tokens.positions[:, tokens.n_text + tokens.n_image :]
    np.testing.assert_array_equal(ours[:, :length].numpy(), tensors["ids_out"])
    assert tokens.n_cond == max(1, length)
    assert [length - int(item.sum()) for item in kept] == case["pad_seq_lens"]


def sample_tokens(kept: np.ndarray) -> SampleTokens:
    no_regions = np.zeros((0, 1, 1), dtype=bool)
    return SampleTokens(text_lengths=(0,), masks=no_regions, cond_positions=np.argwhere(kept))


def check_edge(condition: np.ndarray, case: dict) -> None:
    """Compare kept tokens with the published ones.

    Ours also keeps tokens whose signed sum is 0, which the published code drops.
    """
    signed = condition[:, 0] if condition.min() < 0 else condition[:, 0] * 2 - 1
    lengths = []
    for image in signed:
        patches = image.reshape(image.shape[0] // PATCH, PATCH, -1, PATCH)
        holds_any = (patches > -1).any(axis=(1, 3))
        published = np.where(patches > -1, patches, 0).sum(axis=(1, 3)) != 0
        np.testing.assert_array_equal(kept_tokens(to_uint8(image), PATCH), holds_any)
        assert (holds_any | ~published).all()
        lengths.append(int(published.sum()))
        if len(signed) == 1 and "kept" in case:
            assert np.flatnonzero(published).tolist() == np.ravel(case["kept"]).tolist()
    assert lengths == case["cond_seq_lens"]


def check_cancelling_pairs(case: dict) -> None:
    """Check pairs of grey values whose token the published code drops and ours keeps."""
    assert case["count"] >= len(case["examples"]) > 0
    for pair in case["examples"]:
        image = np.zeros((PATCH, 2 * PATCH), dtype=np.uint8)
        image[3, 4:6] = pair
        assert kept_tokens(image, PATCH).tolist() == [[True, False]]


def to_uint8(signed: np.ndarray) -> np.ndarray:
    """Convert float [..] in [-1, 1] to uint8.

    0.0, which no 8-bit image can hold, becomes 128.
    """
    return np.floor((signed.astype(np.float64) * 0.5 + 0.5) * 255 + 0.5).astype(np.uint8)
