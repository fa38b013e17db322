"""All metrics by name.

Every judge is loaded before anything is measured, so missing weights are reported within seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from seg2any.evaluation.judges.clip import Clip, image_reward
from seg2any.evaluation.judges.deeplab import DeepLabJudge
from seg2any.evaluation.judges.eomt import EomtJudge
from seg2any.evaluation.judges.features import CmmdNetwork, Dinov2Network, Dinov3Network, InceptionNetwork
from seg2any.evaluation.judges.label_map import LabelJudge
from seg2any.evaluation.judges.mask2former import Mask2FormerJudge
from seg2any.evaluation.judges.segmenters import SegmenterLabels
from seg2any.evaluation.metrics.captions import clip_score, preference_score
from seg2any.evaluation.metrics.distances import cmmd, frechet
from seg2any.evaluation.metrics.item import REAL, SHUFFLED, Item, shuffled
from seg2any.evaluation.metrics.leakage import caption_leak, colour_leak
from seg2any.evaluation.metrics.regions import class_agnostic_iou, find_again, without_empty
from seg2any.evaluation.metrics.result import GENERATED, Result
from seg2any.evaluation.metrics.seam import seam_score
from seg2any.evaluation.metrics.semantic import semantic_iou
from seg2any.evaluation.runners.items import Benchmark
from seg2any.evaluation.runners.language import load_concept, load_language, load_order
from seg2any.evaluation.runners.measure import Loader, Loading, Measure
from seg2any.evaluation.vqa.answers import Answers, Judge
from seg2any.evaluation.vqa.endpoint import EndpointJudge
from seg2any.evaluation.vqa.local import LocalJudge
from seg2any.evaluation.vqa.score import region_vqa
from seg2any.layout.contour import resize_masks
from seg2any.segment.sam2 import Sam2Segmenter
from seg2any.system.errors import UserError
from seg2any.system.precision import choose_dtype

CLOSED_SET_JUDGES = {"ade20k": ("mask2former", Mask2FormerJudge), "coco_stuff": ("deeplab", DeepLabJudge)}


def load_measures(names: tuple[str, ...], about: Loading) -> dict[str, Measure]:
    """Load the measures by name.

    Raises UserError with a line for each judge that cannot be loaded.
    """
    loaded, problems = {}, []
    for name in names:
        try:
            loaded[name] = LOADERS[name](about)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return loaded


def _miou(about: Loading) -> Measure:
    used, cls = CLOSED_SET_JUDGES[about.classes("miou").data_set]
    return _closed_set(about, cls(about.judges[used], about.device), "mIoU", used)


def _miou_eomt(about: Loading) -> Measure:
    about.classes("miou_eomt")
    return _closed_set(about, EomtJudge(about.judges["eomt"], about.device), "mIoU by EoMT", "eomt")


def _miou_segmenter(about: Loading) -> Measure:
    names = about.classes("miou_segmenter").names
    opened = about.segmenter("categories")
    return _closed_set(about, SegmenterLabels(opened.segmenter, names), "mIoU by the segmenter", "segmenter")


def _closed_set(about: Loading, judge: LabelJudge, name: str, used: str) -> Measure:
    names = about.classes(name).names

    def results(benchmark: Benchmark) -> list[Result]:
        sources = {GENERATED: benchmark.images(), **benchmark.bounds()}
        return [semantic_iou(items, judge, names, source, name) for source, items in sources.items()]

    def seen(item: Item, benchmark: Benchmark) -> np.ndarray:
        classes = judge.labels(item.image)
        return np.stack([classes == wanted for wanted in benchmark.classes(item.key)])

    return Measure(results, (used,), seen)


def _regions(about: Loading) -> Measure:
    segmenter = Sam2Segmenter(about.judges["sam2"], about.device)

    def seen(item: Item, benchmark: Benchmark) -> np.ndarray:
        masks, size = item.layout.visible, item.image.shape[:2]
        found = find_again(item.image, without_empty(item.layout), segmenter)
        seen = np.zeros((len(masks), *size), bool)
        seen[masks.any((1, 2))] = resize_masks(found.masks, size)
        return seen & resize_masks(masks, found.size).any((1, 2), keepdims=True)  # only regions that were measured

    return Measure(lambda benchmark: class_agnostic_iou(benchmark.images, benchmark.real, segmenter), ("sam2",), seen)


def _with_bounds(benchmark: Benchmark, groups: list[int] | None = None) -> Iterator[tuple[str, Iterable[Item]]]:
    """Yield generated images, real ones (ceiling), and those of other samples (floor)."""
    yield GENERATED, benchmark.images(groups)
    if benchmark.has_photos:
        yield REAL, benchmark.real()
    if benchmark.samples > 1:
        yield SHUFFLED, shuffled(benchmark.images(groups))


def _fid(about: Loading) -> Measure:
    network = InceptionNetwork(about.judges["inception"], about.device)
    return Measure(lambda benchmark: frechet("FID", benchmark.real(), benchmark.images(), network), ("inception",))


def _fdd(about: Loading) -> Measure:
    network = Dinov2Network(about.judges["dinov2"], about.device)
    return Measure(lambda benchmark: frechet("FDD", benchmark.real(), benchmark.images(), network), ("dinov2",))


def _fdd_dinov3(about: Loading) -> Measure:
    network = Dinov3Network(about.judges["dinov3"], about.device)
    return Measure(
        lambda benchmark: frechet("FDD by DINOv3", benchmark.real(), benchmark.images(), network), ("dinov3",)
    )


def _cmmd(about: Loading) -> Measure:
    network = CmmdNetwork(about.judges["cmmd_clip"], about.device)
    return Measure(lambda benchmark: cmmd(benchmark.real(), benchmark.images(), network), ("cmmd_clip",))


def _clip(about: Loading) -> Measure:
    clip = Clip(about.judges["clip"], about.device)

    # The published number is of the first image of every sample.
    def results(benchmark: Benchmark) -> list[Result]:
        return [result for source, items in _with_bounds(benchmark, [0]) for result in clip_score(items, clip, source)]

    return Measure(results, ("clip",))


def _seam(about: Loading) -> Measure:
    def results(benchmark: Benchmark) -> list[Result]:
        return [seam_score(items, source) for source, items in _with_bounds(benchmark) if source != SHUFFLED]

    return Measure(results)


def _colour_leak(about: Loading) -> Measure:
    def results(benchmark: Benchmark) -> list[Result]:
        sources = ((source, items) for source, items in _with_bounds(benchmark) if source != SHUFFLED)
        return [result for source, items in sources for result in colour_leak(items, source)]

    return Measure(results)


def _caption_leak(about: Loading) -> Measure:
    clip = Clip(about.judges["clip"], about.device)

    def results(benchmark: Benchmark) -> list[Result]:
        return [caption_leak(items, clip, source) for source, items in _with_bounds(benchmark)]

    return Measure(results, ("clip",))


def _image_reward(about: Loading) -> Measure:
    name, score = "ImageReward", image_reward(about.judges["image_reward"], about.device)

    def results(benchmark: Benchmark) -> list[Result]:
        return [preference_score(name, items, score, source) for source, items in _with_bounds(benchmark)]

    return Measure(results, ("image_reward",))


def _vqa(about: Loading) -> Measure:
    judge: Judge
    if about.judges["vqa"].startswith(("http://", "https://")):
        judge = EndpointJudge(about.judges["vqa"], about.judges["vqa_model"])
    else:
        judge = LocalJudge(about.judges["vqa"], about.device, choose_dtype(None, about.device))
    answers = Answers(about.benchmark.generated.folder / "answers.jsonl", judge)
    mode = about.judges["vqa_mode"]
    return Measure(
        lambda benchmark: region_vqa(benchmark.images, benchmark.real, answers, mode=mode), ("vqa", "vqa_model")
    )


LOADERS: dict[str, Loader] = {
    "miou": _miou,
    "miou_eomt": _miou_eomt,
    "miou_segmenter": _miou_segmenter,
    "language": load_language,
    "concept": load_concept,
    "order": load_order,
    "regions": _regions,
    "clip": _clip,
    "fid": _fid,
    "cmmd": _cmmd,
    "fdd": _fdd,
    "fdd_dinov3": _fdd_dinov3,
    "seam": _seam,
    "colour_leak": _colour_leak,
    "caption_leak": _caption_leak,
    "vqa": _vqa,
    "image_reward": _image_reward,
}
