"""Open-vocabulary and unsupervised mIoU of the attention probe on a label set (Seg4Diff, arXiv 2509.18096).

present  each photo is asked for the classes that its label map holds, as published
all      each photo is asked for all classes of the set
none     regions without names, paired one to one with those of the label map, background included
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from seg2any.evaluation.program import add_machine_flags, measured_status
from seg2any.system.arguments import Parser
from seg2any.system.console import real, whole
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write, user_path
from seg2any.system.interrupts import run_command
from seg2any.system.shipped import input_path, model_name

PROGRAM = "seg2any.evaluation.segmentation"
SETS = ("voc20", "coco_object", "pc59", "ade150", "cityscapes")
CLASSES = ("present", "all", "none")
EXAMPLES = """\
examples:
    python -m seg2any.evaluation.segmentation voc20 --data data/VOCdevkit/VOC2012
    python -m seg2any.evaluation.segmentation ade150 --data data/ADEChallengeData2016 --classes all --limit 100
"""


def main(arguments: Sequence[str] | None = None, program: str = f"python -m {PROGRAM}") -> int:
    """Run the command line.

    Exit status: 0 measured, 1 out of memory, 2 wrong input, 130 interrupted.
    """
    parser = Parser(prog=program, description=__doc__, epilog=EXAMPLES)
    parser.add_argument("set", choices=SETS, help="the label set")
    parser.add_argument("--data", type=input_path, required=True, help="its folder, as its publisher leaves it")
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=["present"], help="default: present")
    parser.add_argument("--limit", type=whole(1), help="photos (default: all)")
    parser.add_argument("--output", type=user_path, help="write the numbers to this file, too (default: none)")
    parser.add_argument("--base", choices=("flux1", "sd3"), default="flux1", help="default: flux1")
    parser.add_argument("--model", type=model_name, default="black-forest-labs/FLUX.1-dev", help="default: %(default)s")
    parser.add_argument("--lora", type=input_path, help="adapters whose attention learned masks; of sd3: a file")
    parser.add_argument("--blocks", nargs="+", type=whole(0), help="read attention here (default: the published ones)")
    parser.add_argument("--side", type=whole(1), help="images count as about SIDE x SIDE pixels (default: 1024)")
    parser.add_argument("--noise_level", type=real(0, 1), help="0 to 1 (default: of step 21 of 28)")
    parser.add_argument("--text_tokens", type=whole(2, 512), default=512, help="read at a time (default: 512)")
    add_machine_flags(parser)
    given = parser.parse_args(arguments)
    return measured_status(PROGRAM, lambda: run(given))


def run(given: Namespace) -> None:
    """Measure the photos of a set and print a line for each way to ask. Raises UserError."""
    from tqdm import tqdm  # late, as the others: --help must not wait for them

    from seg2any.data.pictures import read_stored_photo
    from seg2any.evaluation.labels.open_sets import OPEN_SETS
    from seg2any.evaluation.metrics.bootstrap import interval
    from seg2any.evaluation.metrics.semantic import pooled_confusions

    chosen = OPEN_SETS[given.set]
    pairs = chosen.pairs(given.data)[: given.limit]
    segmenter = _segmenter(given)
    counts: dict[str, dict[str, np.ndarray]] = {way: {} for way in given.classes}
    for photo, path in tqdm(pairs, "photos", leave=False):
        image, labels = read_stored_photo(photo), chosen.read(path)
        if image.shape[:2] != labels.shape:
            raise UserError(f"{path}: is {labels.shape[::-1]}, its photo {image.shape[1::-1]}; unpack both again")
        for way, of_photo in counts.items():
            if (matrix := confusion_of(segmenter, image, labels, chosen.names, way)) is not None:
                of_photo[photo.stem] = matrix
    numbers = {}
    for way, of_photo in counts.items():
        if not of_photo:
            raise UserError(f"{given.data}: no photo has a class of {given.set}; --data names another set's folder")
        names = [*chosen.names, *(["background"] if way == "none" else [])]
        result = pooled_confusions(f"mIoU {way}", of_photo, names)
        low, high = interval(result)
        numbers[way] = {"mIoU": result.value, "low": low, "high": high, "photos": len(of_photo), **result.extra}
        print(f"{given.set} {way:<8} mIoU {result.value:.3f} [{low:.3f}, {high:.3f}]  {len(of_photo)} photos")
    if "present" in numbers:
        print(f"published for FLUX.1-dev, not measured here: {chosen.published / 100:.3f} (present)")
    if given.output is not None:
        with atomic_write(given.output) as temporary:
            temporary.write_text(json.dumps({"set": given.set, **numbers}, indent=2, allow_nan=True) + "\n")


def _segmenter(given: Namespace):
    """Load the model and build its probe. Raises UserError for a model whose blocks nobody knows."""
    from seg2any.bases.sd3.open import open_sd3
    from seg2any.evaluation.shapes.sources import open_session
    from seg2any.segment.attention import AttentionSegmenter
    from seg2any.segment.mask_head import read_head, read_learned
    from seg2any.segment.probe import ProbeSettings, completed
    from seg2any.system.device import choose_device
    from seg2any.system.precision import choose_dtype

    device, learned = choose_device(given.device), None
    if given.base == "sd3":
        dtype = choose_dtype(given.weight_dtype, device)
        base, scheduler = open_sd3(given.model, given.lora, dtype, device)
    else:
        session, _ = open_session(given.model, given.lora, given.weight_dtype, device)
        base, scheduler, learned = session.pipeline.base, session.pipeline.scheduler, read_learned(given.lora)
    asked = ProbeSettings(tuple(given.blocks or ()), given.side or 0, given.noise_level, text_tokens=given.text_tokens)
    settings = completed(asked, base, learned)
    return AttentionSegmenter(base, scheduler, settings, head=learned and read_head(given.lora, learned))


def confusion_of(segmenter, image: np.ndarray, labels: np.ndarray, names: Sequence[str], way: str) -> np.ndarray | None:
    """Count the pixels of a photo by wanted and seen class; None if nothing of the set is in it.

    labels  uint8 [H, W]: 0..K-1 for the K names, K for background, IGNORED
    """
    from seg2any.evaluation.metrics.semantic import IGNORED, confusion
    from seg2any.segment.merge import matched_iou
    from seg2any.segment.segmenter import Prompt

    count = len(names)
    present = [number for number in np.unique(labels).tolist() if number < count]
    if not present:
        return None
    seen = np.full(labels.shape, count + 1 if way == "none" else count, dtype=np.int64)
    if way == "none":
        wanted = np.unique(labels[labels != IGNORED]).tolist()
        found = segmenter.segment(image, Prompt()).masks & (labels != IGNORED)
        pair, _ = matched_iou(np.stack([labels == number for number in wanted]), found)
        for number, place in zip(wanted, pair.tolist(), strict=True):
            if place >= 0:
                seen[found[place]] = number
        return confusion(labels, seen, count + 1)
    asked = present if way == "present" else list(range(count))
    masks = segmenter.segment(image, Prompt(categories=[names[number] for number in asked])).masks
    for number, mask in zip(asked, masks, strict=True):
        seen[mask] = number
    return confusion(np.where(labels == count, IGNORED, labels), seen, count)


if __name__ == "__main__":
    run_command(main)
