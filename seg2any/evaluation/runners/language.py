"""Loaders of the metrics whose judge is asked in words: language-guided mIoU, concept mIoU, and order."""

from __future__ import annotations

from seg2any.evaluation.judges.kept import KeptConcepts
from seg2any.evaluation.metrics.concept import concept_iou
from seg2any.evaluation.metrics.language import language_iou, seen_regions
from seg2any.evaluation.metrics.order import order_of_regions
from seg2any.evaluation.runners.measure import Loading, Measure
from seg2any.segment.sam3 import Sam3Segmenter
from seg2any.system.weights import known_weights


def load_language(about: Loading) -> Measure:
    """Load the method of --segmenter as the judge of language-guided mIoU. Raises UserError."""
    judge = about.words
    return Measure(
        lambda benchmark: language_iou(benchmark.images, benchmark.real, judge),
        ("segmenter",),
        lambda item, benchmark: seen_regions(item, judge),
    )


def load_order(about: Loading) -> Measure:
    """Load the method of --segmenter as the judge of the order of overlapping regions. Raises UserError."""
    judge = about.words
    return Measure(
        lambda benchmark: order_of_regions(benchmark.images, benchmark.real, judge),
        ("segmenter",),
        lambda item, benchmark: seen_regions(item, judge),
    )


def load_concept(about: Loading) -> Measure:
    """Load SAM 3 as the judge of concept mIoU. Raises UserError."""
    name = about.judges["sam3"]
    judge = Sam3Segmenter(name, about.device)
    concepts = KeptConcepts(judge.instances, about.kept(f"SAM 3, {known_weights(name)}, {judge.sure}"))
    return Measure(lambda benchmark: concept_iou(benchmark.images, benchmark.real, concepts), ("sam3",))
