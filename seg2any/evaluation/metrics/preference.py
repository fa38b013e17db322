"""Scores of what people prefer, from packages that this project does not need: adapters, nothing more.

Their packages pin old versions of transformers, so an environment of their own may be needed; images that are there
can be measured from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

import numpy as np
import torch
from PIL import Image

from seg2any.evaluation.metrics.item import Item, layout_of
from seg2any.evaluation.metrics.result import Result, mean
from seg2any.system.errors import UserError

Preference = Callable[[Image.Image, str], float]  # image and caption -> score, higher is better


def image_reward(name: str, device: torch.device | str) -> Preference:
    """ImageReward (arXiv 2304.05977); `name` is what its package calls the weights, or their file."""
    package = _package("ImageReward", "ImageReward", "image-reward")
    model = package.load(name, device=str(device))
    return lambda image, caption: model.score(caption, image)


def _package(what: str, module: str, distribution: str):
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what}: package {distribution} cannot be imported ({error}); `pip install {distribution}`, or leave the "
            "metric out"
        ) from None


def preference_score(name: str, items: Iterable[Item], score: Preference, source: str = "generated") -> Result:
    """Mean score of images and their global captions. Raises UserError for a sample without a global caption."""
    scores: dict[str, list[float]] = {}
    for item in items:
        caption = layout_of(item, name).caption
        if caption is None:
            raise UserError(f"{name}: sample {item.key!r} has no global caption; leave the metric out")
        scores.setdefault(item.key, []).append(float(score(Image.fromarray(item.image), caption)))
    return mean(name, {key: float(np.mean(values)) for key, values in scores.items()}, source=source)
