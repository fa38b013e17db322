"""The pictures of the document: one line per scene, one column per row."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from seg2any.evaluation.ablation.measure import SHOWN, Ablation
from seg2any.evaluation.ablation.rows import Row
from seg2any.layout.draw import overlay_picture
from seg2any.layout.images import load_image

SIDE, GAP, HEAD = 112, 4, 16  # pixels
COLOURS = 128
# Rows without training that are shown; trained ones all are.
ROWS = ("hard", "base", "place", "none-bare", "hard-no-contour", "hard-unfiltered", "gamma-0.2", "aia-0-7")


def panel(ablation: Ablation, rows: Sequence[Row]) -> Image.Image:
    """Draw masks, rendered truth and the rows' images; a missing image leaves its place empty."""
    names = [row.name for row in rows if row.name in ROWS or row.adapter is not None]
    scenes = [(kind, sample) for kind, of_kind in ablation.scenes.items() for sample in of_kind.samples[:SHOWN]]
    lines = []
    for kind, sample in scenes:
        paths = [ablation.picture(kind, name, sample.layout.name) for name in names]
        made = [load_image(path) if path.is_file() else None for path in paths]
        lines.append([overlay_picture(sample.layout, sample.layout.size), Image.fromarray(sample.image), *made])
    return _grid(["masks", "rendered", *names], lines)


def _grid(heads: Sequence[str], lines: Sequence[Sequence[Image.Image | None]]) -> Image.Image:
    step = SIDE + GAP
    picture = Image.new("RGB", (len(heads) * step - GAP, len(lines) * step - GAP + HEAD), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    for column, head in enumerate(heads):
        draw.text((column * step + SIDE / 2, HEAD / 2), head, "black", font, anchor="mm")
        for line, images in enumerate(lines):
            if (image := images[column]) is not None:
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                picture.paste(small, (column * step, HEAD + line * step))
    return picture.quantize(COLOURS, dither=Image.Dither.NONE)
