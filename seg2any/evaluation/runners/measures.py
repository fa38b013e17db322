"""All metrics by name.

Every judge is loaded before anything is measured, so missing weights are reported within seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from seg2any.evaluation.judges.clip import Clip, image_reward
from seg2any.evaluation.judges.deeplab import DeepLabJudge
from seg2any.evaluation.judges.features import CmmdNetwork, Dinov2Network, InceptionNetwork
from seg2any.evaluation.judges.label_map import LabelJudge
from seg2any.evaluation.judges.mask2former import Mask2FormerJudge
from seg2any.evaluation.metrics.captions import clip_score, preference_score
from seg2any.evaluation.metrics.distances import cmmd, frechet
from seg2any.evaluation.metrics.item import REAL, SHUFFLED, Item, shuffled
from seg2any.evaluation.metrics.leakage import caption_leak, colour_leak
from seg2any.evaluation.metrics.regions import class_agnostic_iou, find_again, without_empty
from seg2any.evaluation.metrics.result import GENERATED, Result
from seg2any.evaluation.metrics.seam import seam_score
from seg2any.evaluation.metrics.semantic import semantic_iou
from seg2any.evaluation.runners.items import Benchmark
from seg2any.evaluation.vqa.answers import Answers, Judge
from seg2any.evaluation.vqa.endpoint import EndpointJudge
from seg2any.evaluation.vqa.local import LocalJudge
from seg2any.evaluation.vqa.score import region_vqa
from seg2any.layout.contour import resize_masks
from seg2any.segment.sam2 import Sam2Segmenter
from seg2any.system.errors import UserError
from seg2any.system.precision import choose_dtype

CLOSED_SET_JUDGES = {"ade20k": ("mask2former", Mask2FormerJudge), "coco_stuff": ("deeplab", DeepLabJudge)}


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric with its judge loaded.

    results  measures the generated images, with their ceiling and floors
    uses     flags of its judges
    seen     item -> where the judge sees the item's regions, bool [N, H, W]; None if the judge does not see regions
    """

    results: Callable[[Benchmark], list[Result]]
    uses: tuple[str, ...] = ()
    seen: Callable[[Item, Benchmark], np.ndarray] | None = None


def load_measures(
    names: tuple[str, ...], benchmark: Benchmark, judges: Mapping[str, str], device: torch.device
) -> dict[str, Measure]:
    """Load the measures by name.

    Raises UserError with a line for each judge that cannot be loaded.
    """
    loaded, problems = {}, []
    for name in names:
        try:
            loaded[name] = LOADERS[name](benchmark, judges, device)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return loaded


def _miou(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    table = benchmark.table
    if table is None:
        raise UserError("miou: the data set has no classes; measure `regions` instead")
    used, cls = CLOSED_SET_JUDGES[table.data_set]
    judge: LabelJudge = cls(judges[used], device)

    def results(benchmark: Benchmark) -> list[Result]:
        sources = {GENERATED: benchmark.images(), **benchmark.bounds()}
        return [semantic_iou(items, judge, table.names, source) for source, items in sources.items()]

    def seen(item: Item, benchmark: Benchmark) -> np.ndarray:
        classes = judge.labels(item.image)
        return np.stack([classes == wanted for wanted in benchmark.classes(item.key)])

    return Measure(results, (used,), seen)


def _regions(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    segmenter = Sam2Segmenter(judges["sam2"], device)

    def seen(item: Item, benchmark: Benchmark) -> np.ndarray:
        masks, size = item.layout.masks, item.image.shape[:2]
        found = find_again(item.image, without_empty(item.layout), segmenter)
        seen = np.zeros((len(masks), *size), bool)
        seen[masks.any((1, 2))] = resize_masks(found.masks, size)
        return seen & resize_masks(masks, found.size).any((1, 2), keepdims=True)  # only regions that were measured

    return Measure(lambda benchmark: class_agnostic_iou(benchmark.images, benchmark.real, segmenter), ("sam2",), seen)


def _with_bounds(benchmark: Benchmark, groups: list[int] | None = None) -> Iterator[tuple[str, Iterable[Item]]]:
    """Yield generated images, real ones (ceiling), and those of other samples (floor)."""
    yield GENERATED, benchmark.images(groups)
    yield REAL, benchmark.real()
    if benchmark.samples > 1:
        yield SHUFFLED, shuffled(benchmark.images(groups))


def _fid(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    network = InceptionNetwork(judges["inception"], device)
    return Measure(lambda benchmark: frechet("FID", benchmark.real(), benchmark.images(), network), ("inception",))


def _fdd(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    network = Dinov2Network(judges["dinov2"], device)
    return Measure(lambda benchmark: frechet("FDD", benchmark.real(), benchmark.images(), network), ("dinov2",))


def _cmmd(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    network = CmmdNetwork(judges["cmmd_clip"], device)
    return Measure(lambda benchmark: cmmd(benchmark.real(), benchmark.images(), network), ("cmmd_clip",))


def _clip(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    clip = Clip(judges["clip"], device)

    # The published number is of the first image of every sample.
    def results(benchmark: Benchmark) -> list[Result]:
        return [result for source, items in _with_bounds(benchmark, [0]) for result in clip_score(items, clip, source)]

    return Measure(results, ("clip",))


def _seam(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    return Measure(lambda benchmark: [seam_score(benchmark.images()), seam_score(benchmark.real(), REAL)])


def _colour_leak(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    return Measure(lambda benchmark: [*colour_leak(benchmark.images()), *colour_leak(benchmark.real(), REAL)])


def _caption_leak(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    clip = Clip(judges["clip"], device)

    def results(benchmark: Benchmark) -> list[Result]:
        return [caption_leak(items, clip, source) for source, items in _with_bounds(benchmark)]

    return Measure(results, ("clip",))


def _image_reward(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    name, score = "ImageReward", image_reward(judges["image_reward"], device)

    def results(benchmark: Benchmark) -> list[Result]:
        return [preference_score(name, items, score, source) for source, items in _with_bounds(benchmark)]

    return Measure(results, ("image_reward",))


def _vqa(benchmark: Benchmark, judges: Mapping[str, str], device: torch.device) -> Measure:
    judge: Judge
    if judges["vqa"].startswith(("http://", "https://")):
        judge = EndpointJudge(judges["vqa"], judges["vqa_model"])
    else:
        judge = LocalJudge(judges["vqa"], device, choose_dtype(None, device))
    answers = Answers(benchmark.generated.folder / "answers.jsonl", judge)
    return Measure(lambda benchmark: region_vqa(benchmark.images, benchmark.real, answers), ("vqa", "vqa_model"))


Loader = Callable[[Benchmark, Mapping[str, str], torch.device], Measure]
LOADERS: dict[str, Loader] = {
    "miou": _miou,
    "regions": _regions,
    "clip": _clip,
    "fid": _fid,
    "cmmd": _cmmd,
    "fdd": _fdd,
    "seam": _seam,
    "colour_leak": _colour_leak,
    "caption_leak": _caption_leak,
    "vqa": _vqa,
    "image_reward": _image_reward,
}
