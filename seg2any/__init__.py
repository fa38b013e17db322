"""Seg2Any: segmentation masks and captions in, an image out (arXiv 2506.00596)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seg2any.generate.pipeline import Seg2AnyPipeline
    from seg2any.layout import Layout

__all__ = ["Layout", "Seg2AnyPipeline"]


def __getattr__(name: str):
    """Import on first use: numpy takes tenths of a second, torch and diffusers take seconds."""
    if name == "Layout":
        from seg2any.layout import Layout

        return Layout
    if name == "Seg2AnyPipeline":
        from seg2any.generate.pipeline import Seg2AnyPipeline

        return Seg2AnyPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
