"""Benchmarks of X-SAM: referring, reasoning, panoptic, open vocabulary and grounded captions, and scenes of `shapes`.

Prints each number with its 95 % interval, and the published one beside it, marked as such.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from seg2any.evaluation.program import add_machine_flags, measured_status
from seg2any.system.arguments import Parser
from seg2any.system.console import whole
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command

PROGRAM = "seg2any.evaluation.words"
PANOPTIC = ("coco_panoptic", "ade_panoptic")
REFERRING = ("refcoco", "refcoco+", "refcocog")
NEEDED = {  # benchmark -> flags it cannot do without
    **dict.fromkeys(REFERRING, ("images", "annotations")),
    "reasoning": ("images",),
    "grounded": ("images", "annotations", "captions"),
    **dict.fromkeys(PANOPTIC, ("images", "annotations", "labels")),
    "shapes": (),
}
EXAMPLES = """\
examples:
    python -m seg2any.evaluation.words shapes --model runs/xsam/checkpoint-5000/xsam
    python -m seg2any.evaluation.words refcoco --model my_xsam --images train2014 --annotations finetune_refcoco_val.json
    python -m seg2any.evaluation.words coco_panoptic --model my_xsam --images val2017 --annotations panoptic_val2017.json --labels panoptic_val2017
"""  # noqa: E501


def main(arguments: Sequence[str] | None = None, program: str = f"python -m {PROGRAM}") -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = Parser(prog=program, description=__doc__.split("\n\n")[0], epilog=EXAMPLES)
    parser.add_argument("benchmark", choices=tuple(NEEDED), help="what to measure")
    parser.add_argument("--model", required=True, help="folder of an X-SAM model")
    parser.add_argument("--images", type=user_path, help="folder of the photos")
    parser.add_argument("--annotations", type=user_path, help="JSON of phrases, masks or segments")
    parser.add_argument("--labels", type=user_path, help="folder of the label pictures of a panoptic set")
    parser.add_argument("--captions", type=user_path, help="JSON of grounded captions")
    parser.add_argument("--limit", type=whole(1), help="largest number of photos (default: all; 200 scenes)")
    parser.add_argument("--output", type=user_path, default="result/words", help="folder (default: %(default)s)")
    add_machine_flags(parser)
    given = parser.parse_args(arguments)
    missing = [f"--{name}" for name in NEEDED[given.benchmark] if getattr(given, name) is None]
    if missing:
        parser.error(f"{given.benchmark} needs {' and '.join(missing)}; see --help")
    return measured_status(PROGRAM, lambda: run(given))


def run(given: Namespace) -> None:
    """Load the model, measure, print and write a JSON file. Raises UserError."""
    from seg2any.evaluation.report.results import make_run, write_run  # late, as the others: --help must not wait
    from seg2any.evaluation.runners.finish import shown_table
    from seg2any.evaluation.words.published import beside
    from seg2any.segment.xsam.folder import open_speaker
    from seg2any.segment.xsam.segmenter import XSamSegmenter
    from seg2any.system.device import choose_device
    from seg2any.system.precision import choose_dtype

    device = choose_device(given.device)
    speaker = open_speaker(given.model, device, choose_dtype(given.weight_dtype, device))
    results = measured(given, XSamSegmenter(speaker, Path(given.model).name))
    settings = {"model": Path(given.model).name, "limit": given.limit, "answers": "the model's own"}
    found = make_run(given.benchmark, results, settings, {}, device)
    path = given.output / f"{given.benchmark}.json"
    write_run(found, path)
    print(shown_table(found), *beside(given.benchmark), f"numbers: {path}", sep="\n")


def measured(given: Namespace, segmenter) -> list:
    """Measure one benchmark with an X-SAM segmenter."""
    from itertools import islice

    from tqdm import tqdm

    from seg2any.evaluation.words import measure, sets
    from seg2any.evaluation.words.xsam import XSamPanoptic

    def limited(photos):
        return tqdm(islice(photos, given.limit), "photos", leave=False)

    name = given.benchmark
    if name == "shapes":
        return measured_scenes(given.limit or 200, segmenter)
    if name in REFERRING:
        return measure.measure_phrases(limited(sets.read_refcoco(given.images, given.annotations)), segmenter)
    if name == "reasoning":
        return measure.measure_phrases(limited(sets.read_reasoning(given.images)), segmenter)
    if name == "grounded":
        photos = sets.read_grounded(given.images, given.annotations, given.captions)
        return measure.measure_grounded(limited(photos), segmenter)
    categories = sets.read_categories(given.annotations)
    photos = sets.read_panoptic(given.images, given.annotations, given.labels)
    return measure.measure_panoptic(limited(photos), XSamPanoptic(segmenter), categories)


def measured_scenes(count: int, segmenter) -> list:
    """Measure phrases, categories and descriptions of scenes, and phrases by keywords and colours beside them."""
    from seg2any.evaluation.words import measure
    from seg2any.evaluation.words.keywords import KeywordSegmenter
    from seg2any.evaluation.words.scenes import CATEGORIES, read_scenes
    from seg2any.evaluation.words.xsam import XSamPanoptic

    results = measure.measure_phrases(read_scenes(count), segmenter)
    results += measure.measure_phrases(read_scenes(count), KeywordSegmenter(), "keywords and colours")
    results += measure.measure_panoptic(read_scenes(count), XSamPanoptic(segmenter), CATEGORIES)
    return results + measure.measure_grounded((one for one in read_scenes(count) if one.told), segmenter)


if __name__ == "__main__":
    run_command(main)
