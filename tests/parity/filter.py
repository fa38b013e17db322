"""Golden token filter: which condition tokens the published code keeps, and where it is wrong to drop them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from seg2any.contour import kept_tokens


def cases(root: Path) -> dict[str, Callable[[], None]]:
    """One check per recorded batch, and one per edge case of the published test for emptiness."""
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
    total, patch = len(tensors["ids_in"]), 16
    assert images[0].size == total * patch**2
    for b, image in enumerate(images):
        kept = np.flatnonzero(kept_tokens(image, patch))
        assert kept.tolist() == case["kept"][b]
        assert len(kept) == case["cond_seq_lens"][b] == case["valid_token_num"][b]
        assert tensors["hidden_out"].shape[1] - len(kept) == case["pad_seq_lens"][b]
        np.testing.assert_array_equal(tensors["hidden_in"][b][kept], tensors["hidden_out"][b][: len(kept)])
        grid = (image.shape[0] // patch, image.shape[1] // patch)
        rows, columns = np.unravel_index(kept, grid)
        positions = np.stack([np.zeros_like(rows), rows, columns], axis=1) * case["s"]
        np.testing.assert_array_equal(positions, tensors["ids_out"][b][: len(kept)])
        assert not tensors["hidden_out"][b][len(kept) :].any()
        assert not tensors["ids_out"][b][len(kept) :].any()


def check_edge(condition: np.ndarray, case: dict) -> None:
    """Ours keeps what the published code keeps, and also the tokens that it drops because their signed sum is 0."""
    signed = condition[:, 0] if condition.min() < 0 else condition[:, 0] * 2 - 1
    lengths = []
    for image in signed:
        patches = image.reshape(image.shape[0] // 16, 16, -1, 16)
        holds_any = (patches > -1).any(axis=(1, 3))
        published = np.where(patches > -1, patches, 0).sum(axis=(1, 3)) != 0
        np.testing.assert_array_equal(kept_tokens(to_uint8(image), 16), holds_any)
        assert (holds_any | ~published).all()
        lengths.append(int(published.sum()))
        if len(signed) == 1 and "kept" in case:
            assert np.flatnonzero(published).tolist() == case["kept"]
    assert lengths == case["cond_seq_lens"]


def check_cancelling_pairs(case: dict) -> None:
    """Pairs of grey values that make the published code drop a token: ours keeps it."""
    assert case["count"] >= len(case["examples"]) > 0
    for pair in case["examples"]:
        image = np.zeros((16, 32), dtype=np.uint8)
        image[3, 4:6] = pair
        assert kept_tokens(image, 16).tolist() == [[True, False]]


def to_uint8(signed: np.ndarray) -> np.ndarray:
    """float [..] in [-1, 1] -> uint8; 0.0, which no 8-bit image holds, becomes 128."""
    return np.floor((signed.astype(np.float64) * 0.5 + 0.5) * 255 + 0.5).astype(np.uint8)
