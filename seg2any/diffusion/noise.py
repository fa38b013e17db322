"""Where the noise of an image comes from: a CPU generator of its own, never a stream shared by a batch."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from seg2any.bases.packing import pack
from seg2any.layout import Layout
from seg2any.system.errors import UserError, shown


def packed_noise(grid: tuple[int, int], channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal [1, h*w, 4*channels] in fp32 on the CPU, drawn in the order of the unpacked latents.

    So a CPU generator gives what stock FluxPipeline draws for one image, on every device and in every precision.
    """
    device = generator.device if generator else None
    return pack(torch.randn(1, channels, 2 * grid[0], 2 * grid[1], generator=generator, device=device)).cpu()


def initial_noise(
    grid: tuple[int, int], channels: int, generators: Sequence[torch.Generator], given: Tensor | None = None
) -> Tensor:
    """[images, h*w, 4*channels] where an image starts: one generator for each, or as `given`.

    Raises UserError for given latents of another shape.
    """
    if given is None:
        return torch.cat([packed_noise(grid, channels, generator) for generator in generators])
    shape = (len(generators), grid[0] * grid[1], 4 * channels)
    if tuple(given.shape) != shape:
        raise UserError(f"latents are {list(given.shape)}; these images need {list(shape)} (images, tokens, channels)")
    return given


def image_generators(
    layouts: Sequence[Layout],
    per_layout: int,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[torch.Generator]:
    """One generator for each of `per_layout` images of every layout, layout by layout.

    seeds      one per image; None: a layout's seed for its first image, seed + 1 for the next and so on; a layout
               without a seed gets one from torch's global generator
    generator  instead of seeds: one per image, or one that all images draw from in turn

    Raises UserError if both are given, not as many as there are images, or what is no seed.
    """
    count = len(layouts) * per_layout
    if not isinstance(per_layout, int) or per_layout < 1:
        raise UserError(f"num_images_per_prompt is {per_layout!r}; give a whole number of at least 1")
    if seeds is not None and generator is not None:
        raise UserError("seeds and generator both say where the noise comes from; give one of them")
    if isinstance(generator, torch.Generator):
        return [generator] * count
    if isinstance(seeds, int):
        raise UserError(f"seeds is {seeds}; give a list, one per image")
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
        raise UserError(f"seed {shown(seed)}: give a whole number of at least 0 and below 2**64")
    return number


def _own_seeds(layouts: Sequence[Layout], per_layout: int) -> list[int]:
    firsts = [torch.randint(2**62, ()).item() if layout.seed is None else layout.seed for layout in layouts]
    return [first + number for first in firsts for number in range(per_layout)]
