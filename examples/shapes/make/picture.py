"""Draw docs/demo.png: contours, masks and images of the demo, each with its captions below.

make demo
python -m examples.shapes.make.picture result docs/demo.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from seg2any.layout import Layout
from seg2any.layout.draw import MARGIN, legend, panel
from seg2any.system.console import exit_status
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, user_path
from seg2any.system.interrupts import run_command

MASKS = Path(__file__).parents[1] / "masks"
SHOWN = ("five", "eight", "badges")


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 drawn, 2 wrong input or unwritable file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=user_path, help="folder of the demo's images")
    parser.add_argument("picture", type=user_path, help="PNG to write")
    args = parser.parse_args(words)

    def write() -> None:
        images = [_open(args.images / f"{name}.png") for name in SHOWN]
        with atomic_write(args.picture) as temporary:
            draw(layouts(), images).save(temporary, "PNG", optimize=True)

    return exit_status("examples.shapes.make.picture", write, "start again")


def layouts() -> list[Layout]:
    """Read the layouts that the picture shows, from top to bottom."""
    return [Layout.read(MASKS / f"{name}.png") for name in SHOWN]


def draw(layouts: Sequence[Layout], images: Sequence[Image.Image]) -> Image.Image:
    """Stack the panels of layouts and their images, with gaps."""
    panels = [panel(layout, image) for layout, image in zip(layouts, images, strict=True)]
    height = sum(part.height for part in panels) + MARGIN * (len(panels) - 1)
    picture = Image.new("RGB", (max(part.width for part in panels), height), "white")
    top = 0
    for part in panels:
        picture.paste(part, (0, top))
        top += part.height + MARGIN
    return picture


def cut(picture: Image.Image, layouts: Sequence[Layout]) -> list[Image.Image]:
    """Cut the images out of a picture that `draw` made."""
    images, top = [], 0
    for layout in layouts:
        height, width = layout.size
        left = 2 * (width + MARGIN)
        images.append(picture.crop((left, top, left + width, top + height)))
        top += height + legend(layout, 3 * width + 2 * MARGIN).height + MARGIN
    return images


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); run make demo first") from error


if __name__ == "__main__":
    run_command(main)
