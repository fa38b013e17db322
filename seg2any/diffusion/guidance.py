"""True CFG: a second prediction in every step, of the same masks with a negative prompt as every caption.

The two predictions have texts of different lengths, hence conditions of their own.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import NoneType

import torch
from diffusers import FluxPipeline
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Condition
from seg2any.bases.flux1.text import TextKey, encode_texts
from seg2any.diffusion.prepare import EncodedLayout, assemble, prompt_for
from seg2any.system.errors import UserError


@dataclass(frozen=True)
class TrueCFG:
    """How far to move away from what.

    negative_prompt  of the whole image and of every region, "" is one; None: no second prediction
    scale            how far, counted from the negative prompt: 1 = not at all, and no second prediction
    in_one_pass      both predictions as one batch of twice the size, same images; None: where `fits_doubled` says so

    Raises UserError for several prompts and for a scale that is no number.
    """

    negative_prompt: str | None = None
    scale: float = 1.0
    in_one_pass: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.negative_prompt, (str, NoneType)):
            raise UserError("negative_prompt is one string, for all images of a call; call once per negative prompt")
        if not (isinstance(self.scale, Real) and math.isfinite(self.scale)):
            raise UserError(f"true_cfg_scale is {self.scale!r}; give a finite number")
        if self.scale > 1 and self.negative_prompt is None:
            _warn("true_cfg_scale does nothing without negative_prompt; give one, it may be ''")
        if self.scale <= 1 and self.negative_prompt is not None:
            _warn(f"negative_prompt does nothing at true_cfg_scale {self.scale}; give a true_cfg_scale above 1")

    @property
    def is_on(self) -> bool:
        """Whether a second prediction is made."""
        return self.negative_prompt is not None and self.scale > 1


def conditions_of(
    pipe: FluxPipeline,
    samples: Sequence[EncodedLayout],
    settings: ConditionSettings,
    generators: Sequence[torch.Generator],
    true_cfg: TrueCFG,
    known: MutableMapping[TextKey, Tensor],
    fits_doubled: Callable[[int, int], bool],
) -> list[Condition]:
    """One for each pass of a step: of the samples; with true CFG of the opposed as well, or of both in one batch.

    generators  one per sample, for the sample of its contour, which both predictions share
    known       text embeddings of earlier calls, see `encode_texts`
    fits_doubled  whether a batch of twice so many images, of so many tokens each, should run as one
    """
    if not true_cfg.is_on:
        return [assemble(samples, settings, generators)]
    opposed = _say_to_all(true_cfg.negative_prompt, samples, pipe, settings, known)
    copies = {generator: generator.clone_state() for generator in generators}
    again = [copies[generator] for generator in generators]
    in_one_pass = true_cfg.in_one_pass
    if in_one_pass is None:
        in_one_pass = fits_doubled(len(samples), max(sample.n_tokens for sample in [*samples, *opposed]))
    if in_one_pass:
        return [assemble([*samples, *opposed], settings, [*generators, *again])]
    return [assemble(samples, settings, generators), assemble(opposed, settings, again)]


def _say_to_all(
    text: str,
    samples: Sequence[EncodedLayout],
    pipe: FluxPipeline,
    settings: ConditionSettings,
    known: MutableMapping[TextKey, Tensor],
) -> list[EncodedLayout]:
    """The same samples with `text` as global caption, also of those that have none, and as every region's."""
    prompts = [prompt_for(text, [text] * len(sample.masks), settings) for sample in samples]
    texts = encode_texts(prompts, pipe, known)
    return [dataclasses.replace(sample, text=text) for sample, text in zip(samples, texts, strict=True)]


def steered(predictions: Tensor, n_images: int, scale: float) -> Tensor:
    """[n, I, 4C] as they are; [2n, I, 4C], the wanted and then the opposed, to `scale` times their difference."""
    if len(predictions) == n_images:
        return predictions
    wanted, away = predictions.split(n_images)
    return away + scale * (wanted - away)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)  # where the pipeline is called
