"""Read what callers of the pipeline give: layouts or their files, and captions that replace the layouts' own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from seg2any.layout import Layout
from seg2any.system.errors import UserError, shown

Given = Layout | str | os.PathLike


def read_layouts(given: Given | Iterable[Given], prompt: str | Sequence[str] | None = None) -> list[Layout]:
    """Return the layouts of a call, each given as a layout, its file, or a folder of layouts.

    prompt  replaces the global caption of all layouts; or a list with one caption for each

    Raises UserError for anything else, and LayoutError for files that are no layouts. Warns with LayoutWarning.
    """
    if isinstance(given, (Layout, str, os.PathLike)):
        given = [given]
    elif not isinstance(given, Iterable):
        raise UserError(f"layouts: {shown(given)} is not a Layout; give Layout.read(path)")
    layouts = [layout for one in given for layout in _read(one)]
    if prompt is None:
        return layouts
    prompts = [prompt] * len(layouts) if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or len(prompts) != len(layouts):
        raise UserError(f"prompt is {shown(prompt)}; give one caption, or a list of one per layout ({len(layouts)})")
    return [replace(layout, caption=caption) for layout, caption in zip(layouts, prompts, strict=True)]


def _read(given: object) -> list[Layout]:
    if isinstance(given, Layout):
        return [given]
    if isinstance(given, (str, os.PathLike)):
        return [Layout.read(path) for path in Layout.find(given)]
    raise UserError(f"layouts: {shown(given)} is not a Layout; give Layout.read(path)")
