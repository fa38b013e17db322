"""The trust that segmenters deserve in the `shapes` world, beside the judge that knows how figures are drawn.

Masks -> image -> masks: finds the regions of unseen scenes again in rendered images, whose masks are true, and in the
images that the model made, and prints how far each segmenter's IoU lies from the judge's.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seg2any.evaluation.program import add_machine_flags, measured_status
from seg2any.evaluation.shapes.options import SCENES
from seg2any.system.arguments import Parser
from seg2any.system.console import whole
from seg2any.system.interrupts import run_command
from seg2any.system.shipped import input_path, model_name

if TYPE_CHECKING:
    import torch

    from seg2any.layout import Layout
    from seg2any.segment.segmenter import Segmenter

PROGRAM = "seg2any.evaluation.shapes.segmenters"
JUDGE = "the judge"
EXAMPLES = """\
examples:
    python -m seg2any.evaluation.shapes.segmenters --output result/shapes --limit 8
"""
MOST = 40  # scenes: a segmenter takes seconds for each
Find = Callable[[np.ndarray, "Layout"], np.ndarray]  # image, layout -> IoU of each caption's region


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = Parser(prog=f"python -m {PROGRAM}", description=__doc__.split("\n\n")[1], epilog=EXAMPLES)
    parser.add_argument(
        "--model", type=model_name, default="examples/shapes/model", help="FLUX pipeline folder (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=input_path, default="result/shapes", help="of seg2any.evaluation.shapes (default: %(default)s)"
    )
    parser.add_argument("--limit", type=whole(1), default=MOST, help="scenes at most (default: %(default)s)")
    parser.add_argument("--coloring", type=input_path, help="adapters of task coloring to measure, too (default: none)")
    parser.add_argument(
        "--xsam", type=input_path, default="examples/shapes/xsam", help="X-SAM to measure, too (default: %(default)s)"
    )
    add_machine_flags(parser)
    given = parser.parse_args(arguments)
    return measured_status(PROGRAM, lambda: run(given))


def run(given: Namespace) -> None:
    """Measure every segmenter on the images that were made, and print a line for each. Raises UserError."""
    from itertools import islice

    from tqdm import tqdm  # late, as the others: --help must not wait for them

    from seg2any.data.shapes import ShapesDataset
    from seg2any.evaluation.generated import Generated
    from seg2any.system.device import choose_device

    scenes = ShapesDataset("test", SCENES["normal"], "normal")
    made = Generated.read(given.output / "normal")
    finds = {JUDGE: by_judge} | segmenters(given, choose_device(given.device))
    values: dict[str, dict[str, list[np.ndarray]]] = {name: {"rendered": [], "made": []} for name in finds}
    for index, image in enumerate(tqdm(islice(made.images(0, scenes), given.limit), "scenes", leave=False)):
        sample = scenes[index]
        for name, find in finds.items():
            values[name]["rendered"].append(find(sample.image, sample.layout))
            values[name]["made"].append(find(image, sample.layout))
    print(table({name: {at: np.concatenate(some) for at, some in own.items()} for name, own in values.items()}))


def segmenters(given: Namespace, device: torch.device) -> Mapping[str, Find]:
    """Open what finds regions by phrases. Raises UserError."""
    from seg2any.evaluation.shapes.sources import open_session
    from seg2any.generate.model import read_adapter_card
    from seg2any.segment.attention import AttentionSegmenter
    from seg2any.segment.coloring.painter import Painter, check_painting
    from seg2any.segment.coloring.segmenter import Choices, ColoringSegmenter
    from seg2any.segment.probe import ProbeSettings
    from seg2any.segment.xsam.folder import open_speaker
    from seg2any.segment.xsam.segmenter import XSamSegmenter
    from seg2any.system.precision import choose_dtype

    found: dict[str, Find] = {}
    pipe = open_session(given.model, None, given.weight_dtype, device)[0].pipeline
    if (known := pipe.base.probing) is not None:
        settings = ProbeSettings(known.blocks, known.side)
        found["attention (Seg4Diff)"] = by_phrases_of(AttentionSegmenter(pipe.base, pipe.scheduler, settings))
    if given.coloring is not None:
        card = check_painting(read_adapter_card(given.coloring))
        base = open_session(given.model, given.coloring, given.weight_dtype, device)[0].pipeline.base
        segmenter = ColoringSegmenter(Painter(base, card), Choices(entries=card.legend_entries))
        found["painted colours (gen2seg)"] = by_phrases_of(segmenter)
    speaker = open_speaker(str(given.xsam), device, choose_dtype(given.weight_dtype, device))
    found["language (X-SAM)"] = by_phrases_of(XSamSegmenter(speaker, given.xsam.name))
    return found


def by_phrases_of(segmenter: Segmenter) -> Find:
    """Ask a segmenter for the captions of a layout."""
    from seg2any.evaluation.cycle.again import by_phrases, find_again

    return lambda image, layout: find_again(image, by_phrases(layout), segmenter).iou


def by_judge(image: np.ndarray, layout: Layout) -> np.ndarray:
    """Compute the IoU of where the judge sees the figures of each caption."""
    from seg2any.evaluation.cycle.again import by_phrases
    from seg2any.evaluation.shapes.drawn import Attributes, drawn_shapes
    from seg2any.evaluation.shapes.judge import visible
    from seg2any.layout.overlap import iou

    question = by_phrases(layout)
    seen = drawn_shapes(image, visible(layout.masks), [Attributes.of(caption) for caption in layout.captions])
    of_caption = [seen[[one == name for one in layout.captions]].any(0) for name in question.captions]
    return np.array([iou(a, b) for a, b in zip(question.masks, of_caption, strict=True)])


def table(values: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Return a line for each segmenter: mean IoU of both kinds of images, and its distance from the judge."""
    lines = [f"{'masks -> image -> masks':<28}{'rendered':>10}{'made':>10}{'off the judge by':>18}{'correlation':>13}"]
    judged = values[JUDGE]["made"]
    for name, own in values.items():
        line = f"{name:<28}{own['rendered'].mean():10.3f}{own['made'].mean():10.3f}"
        if name != JUDGE:
            spread = own["made"].std() > 0 and judged.std() > 0
            correlation = f"{np.corrcoef(own['made'], judged)[0, 1]:13.2f}" if spread else f"{'none':>13}"
            line += f"{np.abs(own['made'] - judged).mean():18.3f}{correlation}"
        lines.append(line)
    return "\n".join(
        [*lines, f"{len(judged)} regions; a segmenter is to be believed as far as it agrees with the judge"]
    )


if __name__ == "__main__":
    run_command(main)
