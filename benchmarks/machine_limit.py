"""Compute only what every scheme has to: a step's matrix products and its attention without a mask.

No step can be quicker that computes all pairs of tokens with the kernels of torch. It leaves out norms, modulation,
RoPE, GELU, adapters, sums and copies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F


def machine_limit(
    n_double: int, n_single: int, n_heads: int, head_dim: int, rows: tuple[int, int], like: torch.Tensor
) -> Callable[[], None]:
    """Return a function that computes the products and the attention of all blocks once.

    rows  tokens of text, and of image and condition together
    like  a tensor with the batch, device and dtype of a step
    """
    width, batch = n_heads * head_dim, len(like)
    wide = 4 * width

    def product(n_rows: int, n_in: int, n_out: int) -> Callable[[], torch.Tensor]:
        x, weight = like.new_ones(batch, n_rows, n_in), like.new_ones(n_out, n_in) / n_in
        return lambda: F.linear(x, weight)

    double = [product(n, *shape) for n in rows for shape in [*[(width, width)] * 4, (width, wide), (wide, width)] if n]
    single = [product(sum(rows), *shape) for shape in [*[(width, width)] * 3, (width, wide), (width + wide, width)]]
    query, key, value = (torch.randn_like(like.new_empty(batch, n_heads, sum(rows), head_dim)) for _ in range(3))

    def compute() -> None:
        for each, count in ((double, n_double), (single, n_single)):
            for _ in range(count):
                for multiply in each:
                    multiply()
                F.scaled_dot_product_attention(query, key, value)

    return compute
