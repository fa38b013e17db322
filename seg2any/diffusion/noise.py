"""Draw the noise of every image from its own CPU generator.

So an image does not depend on the batch it is made in.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from seg2any.bases.packing import pack
from seg2any.layout import Layout
from seg2any.system.errors import UserError, shown


def packed_noise(grid: tuple[int, int], channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard normal noise [1, h*w, 4*channels], fp32, on the CPU.

    The numbers are drawn in the order of the unpacked latents. So a CPU generator gives the noise that diffusers' own
    pipeline draws for one image, on every device and in every precision.
    """
    device = generator.device if generator else None
    return pack(torch.randn(1, channels, 2 * grid[0], 2 * grid[1], generator=generator, device=device)).cpu()


def initial_noise(
    grid: tuple[int, int], channels: int, generators: Sequence[torch.Generator], given: Tensor | None = None
) -> Tensor:
    """Draw the initial latents [images, h*w, 4*channels], or check and return those `given`.

    generators  one per image

    Raises UserError for given latents of another shape.
    """
    if given is None:
        return torch.cat([packed_noise(grid, channels, generator) for generator in generators])
    shape = (len(generators), grid[0] * grid[1], 4 * channels)
    if tuple(given.shape) != shape:
        raise UserError(f"latents: the shape is {list(given.shape)}; give (images, tokens, channels) = {list(shape)}")
    return given


def image_generators(
    layouts: Sequence[Layout],
    per_layout: int,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[torch.Generator]:
    """Return a generator for each image: `per_layout` images of the first layout, and so on.

    seeds      one per image; None: the layout's seed for its first image, seed + 1 for the next and so on; a layout
               without a seed gets one from torch's global generator
    generator  instead of seeds: one per image, or a single one that all images draw from in turn

    Raises UserError if both are given, if their number differs from that of the images, or for an invalid seed.
    """
    count = len(layouts) * per_layout
    if not isinstance(per_layout, int) or per_layout < 1:
        raise UserError(f"num_images_per_prompt is {per_layout!r}; give a whole number of at least 1")
    if seeds is not None and generator is not None:
        raise UserError("seeds, generator: both are given, but the noise has one source; give one of them")
    if isinstance(generator, torch.Generator):
        return [generator] * count
    if isinstance(seeds, int):
        raise UserError(f"seeds: {seeds} is one number; give a list with one seed per image")
    if generator is None:
        seeds = _own_seeds(layouts, per_layout) if seeds is None else seeds
        generator = [torch.Generator().manual_seed(_checked(seed)) for seed in seeds]
    if len(generator) != count:
        raise UserError(f"{len(generator)} seeds or generators for {count} images; give one per image")
    return list(generator)


def _checked(seed: object) -> int:
    try:
        number = operator.index(seed)  # an integer of Python, numpy or torch
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise UserError(f"seed: {shown(seed)} is out of range; give a whole number of at least 0 and below 2**64")
    return number


def _own_seeds(layouts: Sequence[Layout], per_layout: int) -> list[int]:
    firsts = [torch.randint(2**62, ()).item() if layout.seed is None else layout.seed for layout in layouts]
    return [first + number for first in firsts for number in range(per_layout)]
