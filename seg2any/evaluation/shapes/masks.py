"""Masks out of rendered scenes of the `shapes` world, by the attention of a model that makes images.

Prints the mIoU of three ways to ask and of instances by their edges, with 95 % intervals, below what tokens can reach.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from seg2any.evaluation.program import add_machine_flags, measured_status
from seg2any.evaluation.shapes.options import SCENES
from seg2any.system.arguments import Parser
from seg2any.system.console import whole
from seg2any.system.interrupts import run_command
from seg2any.system.shipped import input_path, model_name

PROGRAM = "seg2any.evaluation.shapes.masks"
BACKGROUND = "background"
TEXT_TOKENS = 64  # the names of eight figures fit; 512 would take three times as long
EXAMPLES = """\
examples:
    python -m seg2any.evaluation.shapes.masks --limit 8        a quick look at the model in this repository
    python -m seg2any.evaluation.shapes.masks --model my_model
"""


def main(arguments: Sequence[str] | None = None, program: str = f"python -m {PROGRAM}") -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = Parser(prog=program, description=__doc__.split("\n\n")[1], epilog=EXAMPLES)
    parser.add_argument(
        "--model", type=model_name, default="examples/shapes/model", help="FLUX pipeline folder (default: %(default)s)"
    )
    parser.add_argument("--lora", type=input_path, help="adapters whose attention learned masks (default: none)")
    parser.add_argument("--limit", type=whole(1), default=SCENES["normal"], help="scenes (default: %(default)s)")
    add_machine_flags(parser)
    given = parser.parse_args(arguments)
    return measured_status(PROGRAM, lambda: run(given))


def run(given: Namespace) -> None:
    """Measure all scenes and print a line for each way to ask. Raises UserError."""
    from tqdm import tqdm  # late, as the others: --help must not wait for them

    from seg2any.data.shapes import ShapesDataset
    from seg2any.evaluation.metrics.bootstrap import interval
    from seg2any.evaluation.metrics.result import RegionMean
    from seg2any.evaluation.shapes.sources import open_session
    from seg2any.segment.attention import AttentionSegmenter, Choices
    from seg2any.segment.edges import EdgeSegmenter
    from seg2any.segment.mask_head import read_head, read_learned
    from seg2any.segment.probe import ProbeSettings, completed
    from seg2any.system.device import choose_device

    session, _ = open_session(given.model, given.lora, given.weight_dtype, choose_device(given.device))
    pipe, learned = session.pipeline, read_learned(given.lora)
    settings = completed(ProbeSettings((), 0, text_tokens=TEXT_TOKENS), pipe.base, learned)
    head = learned and read_head(given.lora, learned)
    segmenter = AttentionSegmenter(pipe.base, pipe.scheduler, settings, Choices(BACKGROUND), head)
    parting = pipe.base.probing and pipe.base.probing.parting
    edges = (
        EdgeSegmenter(pipe.base, ProbeSettings(parting, settings.side, text_tokens=TEXT_TOKENS)) if parting else None
    )
    scenes = ShapesDataset("test", SCENES["normal"], "normal")
    means: dict[str, RegionMean] = {}
    for index in tqdm(range(min(given.limit, len(scenes))), "scenes", leave=False):
        sample = scenes[index]
        found = measured(segmenter, sample.image, sample.layout)
        if edges:
            found["instances by their edges"] = by_edges(edges, sample.image, sample.layout)
        for name, values in found.items():
            for value in values:
                means.setdefault(name, RegionMean()).add(sample.layout.name or str(index), value)
    for name, mean in means.items():
        result = mean.result(name, "rendered scenes")
        low, high = interval(result)
        print(f"{name:<34} mIoU {result.value:.3f} [{low:.3f}, {high:.3f}]  {result.extra['regions']} regions")


def measured(segmenter, image: np.ndarray, layout) -> dict[str, np.ndarray]:
    """Return the IoU of every region of a scene for each way to ask; regions of one caption count as one.

    The background counts as a region, but for phrases, whose masks may overlap. Without names, found and true regions
    are paired one to one.
    """
    import torch
    import torch.nn.functional as F

    from seg2any.layout.overlap import iou
    from seg2any.segment.merge import matched_iou
    from seg2any.segment.segmenter import Prompt
    from seg2any.segment.sweep import region_iou

    names = list(dict.fromkeys(layout.captions))
    masks = np.stack([layout.visible[[one == name for one in layout.captions]].any(0) for name in names])
    truth = np.concatenate([masks, ~masks.any(0, keepdims=True)])
    grid = [side // segmenter.base.geometry.pixels_per_token for side in image.shape[:2]]
    reduced = F.adaptive_avg_pool2d(torch.from_numpy(truth)[None].float(), grid)[0]
    by_name = segmenter.segment(image, Prompt(categories=names))
    found = np.concatenate([by_name.masks, by_name.background[None]])
    by_phrase = segmenter.segment(image, Prompt(phrases=names)).masks
    unnamed = segmenter.segment(image, Prompt()).masks
    return {
        "the grid of tokens (ceiling)": region_iou(reduced, torch.from_numpy(truth)),
        "a name for every pixel": np.array([iou(a, b) for a, b in zip(truth, found, strict=True)]),
        "phrases": np.array([iou(a, b) for a, b in zip(masks, by_phrase, strict=True)]),
        "without names": matched_iou(truth, unnamed)[1],
    }


def by_edges(segmenter, image: np.ndarray, layout) -> np.ndarray:
    """Return the IoU of every instance of a scene, and of its background, with the regions found, paired one to one."""
    from seg2any.segment.merge import matched_iou
    from seg2any.segment.segmenter import Prompt

    truth = np.concatenate([layout.visible, layout.background[None]])
    return matched_iou(truth, segmenter.segment(image, Prompt()).masks)[1]


if __name__ == "__main__":
    run_command(main)
