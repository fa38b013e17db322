"""`python -m seg2any.commands.one_point`: the IoU of regions that one point each asks for (gen2seg's benchmark).

Every region of every layout is asked for by its deepest pixel, with any method of `segment` that takes points.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from seg2any.commands.segment_methods import METHODS, MethodParser, method_in
from seg2any.system.allocator import let_segments_grow
from seg2any.system.console import exit_status, plain_messages, whole
from seg2any.system.errors import UserError
from seg2any.system.interrupts import run_command
from seg2any.system.precision import PRECISIONS
from seg2any.system.shipped import input_path
from seg2any.system.threads import compute_on_idle_cores

PROGRAM = "seg2any.commands.one_point"
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf")), "all": (0, float("inf"))}
METHOD = "coloring"


def main(arguments: Sequence[str], program: str = f"python -m {PROGRAM}") -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    words = [*arguments] if any(word.startswith("--method") for word in arguments) else [*arguments, "--method", METHOD]
    given = parser_of(program, method_in(words)).parse_args(words)
    return exit_status(PROGRAM, lambda: run(given))


def parser_of(program: str, method: str) -> MethodParser:
    """Return the parser of the command line, with the flags of a method."""
    parser = MethodParser(prog=program, description=__doc__.split("\n\n")[1])
    parser.method = method
    parser.add_argument("images", type=input_path, metavar="IMAGES", help="folder of photos")
    parser.add_argument("layouts", type=input_path, metavar="LAYOUTS", help="folder of layouts, or a file of COCO")
    parser.add_argument("--area", nargs="+", choices=tuple(AREAS), default=["all"], help="pixels, as in COCO")
    parser.add_argument("--limit", type=whole(1), help="images (default: all)")
    parser.add_argument("--method", choices=tuple(METHODS), help=f"default: {METHOD}")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best one present)")
    parser.add_argument("--weight_dtype", choices=PRECISIONS, help="default: bf16, on a CPU fp32")
    METHODS[method].load().add_flags(parser.add_argument_group(f"--method {method}"))
    return parser


@plain_messages()
def run(given: Namespace) -> None:
    """Measure all regions and print a line for each area. Raises UserError."""
    method = METHODS[given.method]
    if "points" not in method.takes:
        raise UserError(f"--method {given.method}: {method.lacks}; give one that takes points")
    method.load().check(given, "points")
    let_segments_grow()
    compute_on_idle_cores()
    from tqdm import tqdm  # late, as the others: --help must not wait for them

    from seg2any.commands.segment_folder import machine_of
    from seg2any.evaluation.cycle.again import by_points, find_again
    from seg2any.evaluation.metrics.bootstrap import interval
    from seg2any.evaluation.metrics.result import RegionMean
    from seg2any.system.processes import Process

    pairs = list(known_photos(given.images, given.layouts))[: given.limit]
    segmenter = method.load().open_segmenter(given, machine_of(given, Process.of(os.environ)))
    means = {name: RegionMean() for name in dict.fromkeys(given.area)}
    for number, (image, layout) in enumerate(tqdm(pairs, "images", leave=False)):
        again = find_again(image(), by_points(layout), segmenter)
        for mask, value in zip(again.question.masks, again.iou, strict=True):
            for name, mean in means.items():
                if AREAS[name][0] <= mask.sum() < AREAS[name][1]:
                    mean.add(str(number), value)
    for name, mean in means.items():
        if not mean.sums:
            print(f"one point, {name}: no region has this area")
            continue
        result = mean.result(name, given.layouts.name)
        low, high = interval(result)
        regions = result.extra["regions"]
        print(f"one point, {name}: mIoU {result.value:.3f} [{low:.3f}, {high:.3f}]  {regions} regions")


def known_photos(images: Path, layouts: Path) -> Iterator[tuple]:
    """Yield a function that reads a photo, and its layout at the photo's size. Raises UserError for a lost photo."""
    from dataclasses import replace
    from functools import partial

    from seg2any.data.pictures import check_photo, pictures_by_stem, read_photo
    from seg2any.layout import Layout
    from seg2any.layout.contour import resize_masks

    photos = pictures_by_stem("one point", images)
    for path in Layout.find(layouts):
        layout = Layout.read(path)
        stem = Path(layout.name).stem if layout.name else path.stem
        photo = photos.get(stem) or photos.get(path.stem)
        if photo is None:
            raise UserError(f"{path}: no photo {stem}.* in {images}; add it, or leave the layout out")
        if layout.masks.any():
            masks = resize_masks(layout.visible, check_photo(photo))
            yield partial(read_photo, photo), replace(layout, masks=masks, overlap="share")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
