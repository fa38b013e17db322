"""Layouts: masks with captions, their files, contours and pictures."""

from seg2any.layout.layout import Layout

__all__ = ["Layout"]
