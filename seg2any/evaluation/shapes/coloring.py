"""Instances painted by adapters, measured on unseen rendered scenes beside what needs no training.

Prints the mIoU from one point, by phrases, and the regions that are found without any prompt, with 95 % intervals.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seg2any.evaluation.program import add_machine_flags, measured_status
from seg2any.evaluation.shapes.options import SCENES
from seg2any.system.arguments import Parser
from seg2any.system.console import whole
from seg2any.system.interrupts import run_command
from seg2any.system.shipped import input_path, model_name

if TYPE_CHECKING:
    from seg2any.data.dataset import Sample
    from seg2any.data.shapes_draw import Figure
    from seg2any.generate.pipeline import Seg2AnyPipeline
    from seg2any.segment.segmenter import Segmenter

PROGRAM = "seg2any.evaluation.shapes.coloring"
COUNTED = 0.5  # IoU from which a region counts as found
EXAMPLES = """\
examples:
    python -m seg2any.evaluation.shapes.coloring --lora runs/shapes_coloring/checkpoint-2000 --limit 8
"""


def main(arguments: Sequence[str] | None = None, program: str = f"python -m {PROGRAM}") -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = Parser(prog=program, description=__doc__.split("\n\n")[1], epilog=EXAMPLES)
    parser.add_argument(
        "--model", type=model_name, default="examples/shapes/model", help="FLUX pipeline folder (default: %(default)s)"
    )
    parser.add_argument("--lora", type=input_path, required=True, help="folder of adapters of task coloring")
    parser.add_argument("--kind", choices=tuple(SCENES), default="normal", help="default: %(default)s")
    parser.add_argument("--limit", type=whole(1), help="scenes (default: all of the kind)")
    add_machine_flags(parser)
    given = parser.parse_args(arguments)
    return measured_status(PROGRAM, lambda: run(given))


def run(given: Namespace) -> None:
    """Measure all scenes and print a line for each number. Raises UserError."""
    from tqdm import tqdm  # late, as the others: --help must not wait for them

    from seg2any.data.shapes import ShapesDataset
    from seg2any.evaluation.metrics.bootstrap import interval
    from seg2any.evaluation.metrics.result import RegionMean
    from seg2any.evaluation.shapes.sources import open_session
    from seg2any.generate.model import read_adapter_card
    from seg2any.segment.coloring.painter import Painter, check_painting
    from seg2any.segment.coloring.segmenter import Choices, ColoringSegmenter
    from seg2any.system.device import choose_device

    card = check_painting(read_adapter_card(given.lora))
    device = choose_device(given.device)
    session, _ = open_session(given.model, given.lora, given.weight_dtype, device)
    segmenter = ColoringSegmenter(Painter(session.pipeline.base, card), Choices(entries=card.legend_entries))
    others = without_training() | probe(open_session(given.model, None, given.weight_dtype, device)[0].pipeline)
    scenes = ShapesDataset("test", SCENES[given.kind], given.kind)
    means: dict[str, RegionMean] = {}
    for index in tqdm(range(min(given.limit or len(scenes), len(scenes))), "scenes", leave=False):
        sample, figures = scenes[index], scenes.scene(index).figures
        for name, values in measured(segmenter, others, sample, figures).items():
            for value in values:
                means.setdefault(name, RegionMean()).add(sample.layout.name or str(index), value)
    for name, mean in means.items():
        result = mean.result(name, "rendered scenes")
        low, high = interval(result)
        print(f"{name:<54} {result.value:.3f} [{low:.3f}, {high:.3f}]  {result.extra['regions']} regions")


def measured(
    segmenter: Segmenter, others: Mapping[str, Segmenter], sample: Sample, figures: Sequence[Figure]
) -> Mapping[str, Sequence[float]]:
    """Return by name of a number what each region of a scene adds to it.

    others  segmenters that are asked by points only
    """
    from seg2any.data.shapes import held_out
    from seg2any.evaluation.cycle.again import by_phrases, by_points, find_again
    from seg2any.segment.merge import matched_iou
    from seg2any.segment.segmenter import Prompt

    image, layout = sample.image, sample.layout
    question = by_points(layout)
    found: dict[str, Sequence[float]] = {"one point, mIoU": find_again(image, question, segmenter).iou}
    for name, one in others.items():
        found[f"one point, mIoU of {name}"] = find_again(image, question, one).iou
    groups = {
        "on combinations never seen": [held_out(figure) for figure in figures],
        "on patterned figures": [figure.pattern != "plain" for figure in figures],
    }
    everywhere = tuple(found)
    for group, members in groups.items():
        kept = np.array(members)[layout.visible.any((1, 2))]
        for name in everywhere:
            found[f"{name} {group}"] = np.asarray(found[name])[kept]
    found["phrases, mIoU"] = find_again(image, by_phrases(layout), segmenter).iou
    regions = segmenter.segment(image, Prompt()).masks
    truth = layout.visible[layout.visible.any((1, 2))]
    overlap = matched_iou(truth, regions)[1] if len(regions) else np.zeros(len(truth))
    hits = overlap >= COUNTED
    found["without a prompt, recall"] = hits
    found["without a prompt, precision"] = np.arange(len(regions)) < hits.sum()
    return found


def without_training() -> dict[str, Segmenter]:
    """Return segmenters for points that know nothing but the photo."""
    from seg2any.segment.coloring.segmenter import ColoringSegmenter
    from seg2any.segment.watershed import WatershedSegmenter

    return {"a colour threshold on the photo": ColoringSegmenter(PhotoItself()), "watershed": WatershedSegmenter()}


def probe(pipe: Seg2AnyPipeline) -> dict[str, Segmenter]:
    """Return the attention of the model without adapters as a segmenter for points, if its blocks are known."""
    from seg2any.evaluation.shapes.masks import TEXT_TOKENS
    from seg2any.segment.at_points import AtPoints
    from seg2any.segment.attention import AttentionSegmenter
    from seg2any.segment.probe import ProbeSettings

    if (known := pipe.base.probing) is None:
        return {}
    settings = ProbeSettings(known.blocks, known.side, text_tokens=TEXT_TOKENS)
    everything = AttentionSegmenter(pipe.base, pipe.scheduler, settings)
    return {"the attention probe": AtPoints(everything)}


class PhotoItself:
    """A painter that paints nothing: the photo's own colours are compared."""

    def colors(self, image: np.ndarray, words: str = "") -> np.ndarray:
        """Return the photo."""
        return image


if __name__ == "__main__":
    run_command(main)
