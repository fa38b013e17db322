"""Cases of the connector, the projectors and the changes of a grid."""

from __future__ import annotations

import torch

from tests.parity_xsam.second import plain
from tests.parity_xsam.second.book import Book, numbered

FILE = "connector_projector"


def branch_weights(book: Book, channels: int, hidden: int, scale: float) -> plain.Weights:
    """Draw the weights of a branch."""
    last = round(channels * scale)
    shapes = {0: (hidden, channels, 1, 1), 2: (hidden, hidden, 3, 3), 4: (last, hidden, 1, 1)}
    weights = {}
    for layer, shape in shapes.items():
        weights[f"model.{layer}.weight"] = book.normal(*shape, scale=(shape[1] * shape[2] ** 2) ** -0.5)
        weights[f"model.{layer + 1}.weight"] = 1 + book.normal(shape[0], scale=0.2)
        weights[f"model.{layer + 1}.bias"] = book.normal(shape[0], scale=0.2)
    return weights


def projector_weights(book: Book, channels: int, width: int, depth: int = 2) -> plain.Weights:
    """Draw the weights of a projector."""
    weights = {}
    for layer in range(depth):
        given = channels if not layer else width
        weights[f"model.{2 * layer}.weight"] = book.normal(width, given, scale=given**-0.5)
        weights[f"model.{2 * layer}.bias"] = book.normal(width, scale=0.2)
    return weights


def prefixed(prefix: str, weights: plain.Weights) -> plain.Weights:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def add_shuffles(book: Book) -> None:
    for name, shape, scale in (
        ("down_half", (3, 6, 2, 5), 0.5),
        ("down_quarter", (1, 4, 8, 2), 0.25),
        ("up_2", (2, 3, 5, 12), 2),
        ("up_3", (1, 2, 3, 18), 3),
        ("identity", (1, 5, 2, 3), 1),
    ):
        x = book.normal(*shape)
        about = {"scale_factor": scale, "data_format": "channels_last"}
        book.add(FILE, f"pixel_shuffle_{name}", about, {"input": x, "output": plain.shuffle(x, scale)})
    x = book.normal(2, 4, 6, 3)
    tensors = {"input": x.permute(0, 3, 1, 2), "output": plain.shuffle(x, 0.5).permute(0, 3, 1, 2)}
    book.add(FILE, "pixel_shuffle_channels_first_down", {"scale_factor": 0.5, "data_format": "channels_first"}, tensors)
    for name, shape in (("odd_height", (2, 5, 4, 3)), ("odd_both", (1, 1, 7, 2)), ("even", (1, 2, 6, 1))):
        x = book.normal(*shape)
        book.add(FILE, f"pad_{name}", {}, {"input": x, "output": plain.pad_even(x)})


def add_branches(book: Book) -> None:
    for scale in (4, 2, 1, 0.5):
        channels, hidden = 16 * book.between(1, 2), book.between(3, 9)
        weights, name = branch_weights(book, channels, hidden, scale), f"connector_layer_scale{scale}_weights"
        book.add(FILE, name, None, weights)
        about = {"in_channels": channels, "hidden_channels": hidden, "scale_factor": scale, "weights": name}
        for case, height, width in (("even", 4, 10), ("odd", 7, 3), ("row", 1, 5)):
            x = book.normal(book.between(1, 3), height, width, channels)
            out = plain.branch(x, weights, scale)
            book.add(FILE, f"connector_layer_scale{scale}_{case}", about, {"input": x, "output": out})
    channels, hidden, scales = 8 * book.between(1, 3), book.between(5, 11), [2, 1, 0.5]
    every = [branch_weights(book, channels, hidden, scale) for scale in scales]
    inputs = [book.normal(1, 6, 10, channels) for _ in scales]
    tensors = numbered("input", inputs) | numbered(
        "output", [plain.branch(*one) for one in zip(inputs, every, scales, strict=True)]
    )
    for number, weights in enumerate(every):
        tensors |= prefixed(f"weights/model.{number}.", weights)
    book.add(FILE, "connector", {"scale_factor": scales}, tensors)


def add_projectors(book: Book) -> None:
    for name, shape, width, ratio, depth in (
        ("visual_projector", (3, 10, 14), 22, 1, 2),
        ("seg_projector", (1, 10, 10, 12), 18, 0.5, 2),
        ("seg_projector_nonsquare", (2, 2, 8, 6), 7, 0.5, 2),
        ("llm_projector", (1, 13, 28), 20, 1, 2),
        ("depth_1_ratio_1_map", (2, 3, 2, 5), 9, 1, 1),
        ("depth_4_ratio_1", (1, 6, 8), 11, 1, 4),
    ):
        x = book.normal(*shape)
        weights = projector_weights(book, round(shape[-1] / ratio**2), width, depth)
        about = {"visual_hidden_size": shape[-1], "llm_hidden_size": width, "depth": depth, "downsample_ratio": ratio}
        tensors = {"input": x, "output": plain.project(x, weights, ratio)}
        book.add(FILE, name, about, tensors | prefixed("weights/", weights))


@torch.no_grad()
def add(book: Book) -> None:
    """Add the cases."""
    add_shuffles(book)
    add_branches(book)
    add_projectors(book)
