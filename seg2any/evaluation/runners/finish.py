"""The end of every evaluation: a JSON file, pictures of some samples, and a page with both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.report.page import write_page
from seg2any.evaluation.report.pictures import Shown, extremes, folder_of, save_pictures, side_by_side
from seg2any.evaluation.report.results import Run, write_run

SHOWN = 6  # worst samples with pictures, and as many best ones


@dataclass(frozen=True, eq=False)
class Gallery:
    """Functions that make the pictures of a sample.

    item    key -> its first generated image
    photo   key -> the real image uint8 [H, W, 3], or None
    seen    item -> where the judge sees its regions, bool [N, H, W], or None
    """

    item: Callable[[str], Item]
    photo: Callable[[str], np.ndarray | None]
    seen: Callable[[Item], np.ndarray | None]

    def pictures(self, key: str) -> dict[str, Image.Image]:
        """Draw the pictures of a sample, by title."""
        item = self.item(key)
        return side_by_side(item, self.seen(item), self.photo(key))


def finish(run: Run, path: Path, ranked_by: str, gallery: Gallery) -> Path:
    """Write the JSON file `path`, pictures beside it, and a page, whose path is returned.

    The pictures are of the worst and the best samples by the row called `ranked_by`, if it has values per sample.
    """
    write_run(run, path)
    save_pictures(folder_of(path), _chosen(run, ranked_by, gallery))
    page = path.with_suffix(".html")
    write_page([path], page)
    return page


def _chosen(run: Run, ranked_by: str, gallery: Gallery) -> list[tuple[Shown, dict[str, Image.Image]]]:
    better = next((row.better for row in run.rows if row.label == ranked_by), "higher")
    chosen = extremes(run.per_sample.get(ranked_by, {}), better, SHOWN)
    shown = []
    for place, key, value in tqdm(chosen, "pictures", leave=False):
        layout = gallery.item(key).layout
        sample = Shown(key, place, ranked_by, value, layout.caption, layout.captions, {})
        shown.append((sample, gallery.pictures(key)))
    return shown


def shown_table(run: Run) -> str:
    """Format the run for printing, one line per number."""
    width = max(len(row.label) for row in run.rows)
    lines = [f"{'':<{width}}  {'value':>10}  {'95 % interval':^23} {'samples':>8}"]
    for row in run.rows:
        bounds = "" if row.low is None else f"[{row.low:.4f}, {row.high:.4f}]"
        lines.append(f"{row.label:<{width}}  {row.value:>10.4f}  {bounds:^23} {row.n:>8}")
    return "\n".join(lines)
