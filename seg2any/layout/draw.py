"""Draw layouts for people: overlays, legends, contours, and panels with the image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seg2any.layout import Layout
from seg2any.layout.contour import condition_image, outline, resize_masks

GOLDEN_RATIO = 0.618034
MARGIN = 8
Color = tuple[int, int, int]


def display_colors(count: int) -> list[Color]:
    """Choose `count` bright colours; neighbours in the list are far apart in hue."""
    hues = ((0.02 + n * GOLDEN_RATIO) % 1 for n in range(count))
    return [_rgb(hue, 0.75 if n % 2 else 0.9, 0.95 if n % 3 else 0.8) for n, hue in enumerate(hues)]


def colors_of(layout: Layout) -> Sequence[Color]:
    """Return the colours in which the regions were drawn, else bright ones."""
    return display_colors(len(layout.captions)) if layout.colors is None else layout.colors


def contour_picture(layout: Layout, size: tuple[int, int]) -> Image.Image:
    """Draw the condition image at `size` (H, W), white lines on black, RGB."""
    return Image.fromarray(condition_image(layout.visible, size)).convert("RGB")


def overlay_picture(layout: Layout, size: tuple[int, int], image: Image.Image | None = None) -> Image.Image:
    """Draw coloured and numbered regions over `image` or grey, RGB of `size` (H, W).

    Where regions share pixels, later ones lie on top.
    """
    height, width = size
    base = Image.new("RGB", (width, height), (96, 96, 96)) if image is None else image.convert("RGB")
    pixels = np.asarray(base.resize((width, height))).astype(np.float32)
    masks = resize_masks(layout.visible, size)
    colors = colors_of(layout)
    for mask, color in zip(masks, colors, strict=True):
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(color)
    for mask, color in zip(masks, colors, strict=True):
        pixels[outline(mask[None]) > 0] = color
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    _draw_numbers(picture, masks)
    return picture


def legend(layout: Layout, width: int) -> Image.Image:
    """Draw the global caption and every region's colour, number and caption.

    The picture is `width` pixels wide.
    """
    font = _font(max(11, min(20, width // 40)))
    line_height = font.size + 5
    swatch = line_height * 2
    entries: list[tuple[str, Color | None, str]] = [("", None, layout.caption)] if layout.caption else []
    colors = colors_of(layout)
    entries += [(str(n), color, text) for n, (color, text) in enumerate(zip(colors, layout.captions, strict=True), 1)]
    wrapped = [
        (number, color, _wrap(text, font, width - 3 * MARGIN - (swatch if color else -MARGIN)))
        for number, color, text in entries
    ]
    height = sum(len(lines) for *_, lines in wrapped) * line_height + 2 * MARGIN
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    y = MARGIN
    for number, color, lines in wrapped:
        if color:
            draw.rectangle((MARGIN, y, MARGIN + swatch, y + line_height - 3), fill=color, outline="grey")
            ink = "black" if _brightness(color) > 0.4 else "white"
            draw.text((MARGIN + swatch / 2, y + line_height / 2 - 1), number, ink, font, anchor="mm")
        for line in lines:
            draw.text((2 * MARGIN + swatch if color else MARGIN, y), line, "black", font)
            y += line_height
    return picture


def overlay_with_legend(layout: Layout, size: tuple[int, int], image: Image.Image | None = None) -> Image.Image:
    """Draw an overlay over `image` or grey, at least 256 pixels wide, above its legend."""
    enlarged = max(1, -(-256 // size[1]))
    picture = overlay_picture(layout, (size[0] * enlarged, size[1] * enlarged), image)
    return _below(picture, legend(layout, picture.width))


def panel(layout: Layout, image: Image.Image) -> Image.Image:
    """Draw contour, overlay and image in a row, with the legend below."""
    size = (image.height, image.width)
    pictures = beside([contour_picture(layout, size), overlay_picture(layout, size), image.convert("RGB")])
    return _below(pictures, legend(layout, pictures.width))


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Paste pictures of equal height in a row, with white gaps."""
    width = sum(picture.width for picture in pictures) + MARGIN * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    x = 0
    for picture in pictures:
        row.paste(picture, (x, 0))
        x += picture.width + MARGIN
    return row


def _below(top: Image.Image, bottom: Image.Image) -> Image.Image:
    picture = Image.new("RGB", (top.width, top.height + bottom.height), "white")
    picture.paste(top, (0, 0))
    picture.paste(bottom, (0, top.height))
    return picture


def _draw_numbers(picture: Image.Image, masks: np.ndarray) -> None:
    """Draw each number at the widest place of its region's visible part."""
    draw = ImageDraw.Draw(picture)
    font = _font(max(10, min(picture.size) // 24))
    covered = np.zeros(masks.shape[1:], dtype=bool)
    for number, mask in reversed(list(enumerate(masks, start=1))):
        visible = np.pad(mask & ~covered, 1).astype(np.uint8)
        covered |= mask
        if visible.any():
            depth = cv2.distanceTransform(visible, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            draw.text((x, y), str(number), "white", font, anchor="mm", stroke_width=1, stroke_fill="black")


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break text into lines of at most `width` pixels; a word longer than the line overflows."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _brightness(color: Color) -> float:
    """Return how bright a colour looks, from 0 for black to 1 for white."""
    return (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255


def _rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue
