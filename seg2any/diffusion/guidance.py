"""Guide with a negative prompt: a second prediction per step, with it as every caption.

The captions of the two predictions differ in length, so each prediction has its own condition.
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
from torch import Tensor

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.base import Base, Condition
from seg2any.bases.text import TextKey, encode_texts
from seg2any.diffusion.prepare import EncodedLayout, assemble
from seg2any.system.errors import UserError


@dataclass(frozen=True)
class TrueCFG:
    """Settings of classifier-free guidance with a negative prompt.

    negative_prompt  caption of the image and of every region in the second prediction; "" counts, None turns it off
    scale            w in v = v_neg + w (v - v_neg); a scale of at most 1 turns the second prediction off
    in_one_pass      compute both predictions as one batch of twice the size, same images; None: if it fits into memory

    Raises UserError for several prompts and for a scale that is not a finite number.
    """

    negative_prompt: str | None = None
    scale: float = 1.0
    in_one_pass: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.negative_prompt, (str, NoneType)):
            raise UserError("negative_prompt is not a string; give one string, which applies to all images of a call")
        if not (isinstance(self.scale, Real) and math.isfinite(self.scale)):
            raise UserError(f"true_cfg_scale is {self.scale!r}; give a finite number")
        if self.scale > 1 and self.negative_prompt is None:
            _warn("true_cfg_scale does nothing without negative_prompt; give a negative_prompt, '' counts")
        if self.scale <= 1 and self.negative_prompt is not None:
            _warn(f"negative_prompt does nothing at true_cfg_scale {self.scale}; give a true_cfg_scale above 1")

    @property
    def is_on(self) -> bool:
        """Tell whether there is a second prediction."""
        return self.negative_prompt is not None and self.scale > 1


def conditions_of(
    base: Base,
    samples: Sequence[EncodedLayout],
    settings: ConditionSettings,
    generators: Sequence[torch.Generator],
    true_cfg: TrueCFG,
    known: MutableMapping[TextKey, Tensor],
    fits_doubled: Callable[[int, int], bool],
) -> list[Condition]:
    """Build one condition per forward pass of a step.

    With true CFG: the prompt's and the negative prompt's, separately or as one batch of twice the size.

    generators    one per sample, to draw its condition latents; both predictions share the draw
    known         text embeddings of earlier calls, see `encode_texts`
    fits_doubled  takes (images, tokens per image), tells whether twice as many images fit into memory
    """
    if not true_cfg.is_on:
        return [assemble(samples, settings, generators)]
    negative = _with_caption(true_cfg.negative_prompt, samples, base, settings, known)
    copies = {generator: generator.clone_state() for generator in generators}
    again = [copies[generator] for generator in generators]
    in_one_pass = true_cfg.in_one_pass
    if in_one_pass is None:
        in_one_pass = fits_doubled(len(samples), max(sample.n_tokens for sample in [*samples, *negative]))
    if in_one_pass:
        return [assemble([*samples, *negative], settings, [*generators, *again])]
    return [assemble(samples, settings, generators), assemble(negative, settings, again)]


def _with_caption(
    text: str,
    samples: Sequence[EncodedLayout],
    base: Base,
    settings: ConditionSettings,
    known: MutableMapping[TextKey, Tensor],
) -> list[EncodedLayout]:
    """Replace every caption of the samples by `text`, which also becomes the global caption."""
    prompts = [base.caption_keys(text, [text] * len(sample.masks), settings) for sample in samples]
    texts = encode_texts(prompts, base, known)
    return [dataclasses.replace(sample, text=text) for sample, text in zip(samples, texts, strict=True)]


def steered(predictions: Tensor, n_images: int, scale: float) -> Tensor:
    """Return v_neg + scale (v - v_neg), [n, I, D], for predictions [v | v_neg] [2n, I, D].

    Without a second prediction, [n, I, D] is returned unchanged.
    """
    if len(predictions) == n_images:
        return predictions
    positive, negative = predictions.split(n_images)
    return negative + scale * (positive - negative)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)  # points at the call of the pipeline
