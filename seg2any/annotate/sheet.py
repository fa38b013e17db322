"""Draw the histograms and the contact sheet of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seg2any.data.sacap_1m import SACap1MDataset
from seg2any.layout.draw import overlay_with_legend

WIDTH, HEIGHT, MARGIN, TEXT = 360, 200, 24, 14
BINS = 24
ROW = 4  # samples beside each other
TILE = 320  # pixels of a sample's width


def histograms(values: Mapping[str, Sequence[float]]) -> Image.Image:
    """Draw a histogram of each list of numbers, two beside each other."""
    pictures = [_histogram(name, np.asarray(numbers, float)) for name, numbers in values.items()]
    rows = -(-len(pictures) // 2)
    whole = Image.new("RGB", (2 * WIDTH, rows * HEIGHT), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % 2 * WIDTH, number // 2 * HEIGHT))
    return whole


def _histogram(name: str, numbers: np.ndarray) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    counts, edges = np.histogram(numbers, BINS)
    bottom, width = HEIGHT - MARGIN, (WIDTH - 2 * MARGIN) / BINS
    for number, count in enumerate(counts):
        height = (bottom - MARGIN - TEXT) * count / counts.max()
        left = MARGIN + number * width
        if count:
            draw.rectangle((left, bottom - height, left + width - 2, bottom), fill=(70, 110, 180))
    draw.line((MARGIN, bottom, WIDTH - MARGIN, bottom), fill="black")
    draw.text((WIDTH / 2, 4), f"{name} ({len(numbers):,})", "black", font, anchor="ma")
    draw.text((MARGIN, bottom + 4), f"{edges[0]:.4g}", "black", font)
    draw.text((WIDTH - MARGIN, bottom + 4), f"{edges[-1]:.4g}", "black", font, anchor="ra")
    return picture


def contact_sheet(table: Path, raw: Path, most: int) -> Image.Image:
    """Draw samples of a set, evenly spread over it, as training reads them, each above its captions."""
    data = SACap1MDataset(table, raw)
    numbers = np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).round().astype(int))
    tiles = [_tile(data, int(number)) for number in numbers]
    rows = [tiles[start : start + ROW] for start in range(0, len(tiles), ROW)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (ROW * TILE, sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for number, tile in enumerate(row):
            sheet.paste(tile, (number * TILE, top))
        top += height
    return sheet


def _tile(data: SACap1MDataset, number: int) -> Image.Image:
    sample = data[number]
    height, width = sample.image.shape[:2]
    size = max(1, round(height * TILE / width)), TILE
    return overlay_with_legend(sample.layout, size, Image.fromarray(sample.image))
