"""Layouts: masks with captions, the files that hold them, their contours and pictures."""

from seg2any.layout.layout import Layout

__all__ = ["Layout"]
