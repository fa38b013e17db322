"""Seg2Any: segmentation masks and captions in, an image out (arXiv 2506.00596).

The names below are imported on first use: numpy takes tenths of a second, torch and diffusers take seconds.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seg2any.adapters.card import AdapterCard
    from seg2any.attention.settings import ConditionSettings
    from seg2any.bases.text import TextCache, TruncationWarning, UnknownWordsWarning
    from seg2any.generate.pipeline import Seg2AnyPipeline
    from seg2any.generate.session import ImageOptions, Loading, Session
    from seg2any.layout import Layout
    from seg2any.layout.checks import LayoutError, LayoutWarning
    from seg2any.segment.segmenter import Prompt, Segmenter
    from seg2any.system.errors import UserError
    from seg2any.system.shipped import demo_folder

    __version__: str

__all__ = [
    "AdapterCard",
    "ConditionSettings",
    "ImageOptions",
    "Layout",
    "LayoutError",
    "LayoutWarning",
    "Loading",
    "Prompt",
    "Seg2AnyPipeline",
    "Segmenter",
    "Session",
    "TextCache",
    "TruncationWarning",
    "UnknownWordsWarning",
    "UserError",
    "__version__",
    "demo_folder",
]
HOMES = {
    "seg2any.adapters.card": ("AdapterCard",),
    "seg2any.attention.settings": ("ConditionSettings",),
    "seg2any.bases.text": ("TextCache", "TruncationWarning", "UnknownWordsWarning"),
    "seg2any.generate.pipeline": ("Seg2AnyPipeline",),
    "seg2any.generate.session": ("ImageOptions", "Loading", "Session"),
    "seg2any.layout": ("Layout",),
    "seg2any.layout.checks": ("LayoutError", "LayoutWarning"),
    "seg2any.segment.segmenter": ("Prompt", "Segmenter"),
    "seg2any.system.errors": ("UserError",),
    "seg2any.system.shipped": ("demo_folder",),
}

# diffusers asks transformers for image processors that FLUX does not use; transformers logs which package they lack.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision (not installed)" not in record.getMessage()
)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("seg2any.system.provenance").package_version()
    home = next((module for module, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
