"""The errors of judges on drawn scenes: faults with a known truth, and judges whose errors are known."""

from __future__ import annotations

import numpy as np
import pytest

from seg2any.evaluation.metrics.result import Result
from seg2any.evaluation.report.results import make_run
from seg2any.evaluation.shapes.known import (
    AS_ASKED,
    BIAS,
    ERROR,
    EXCHANGED,
    FAULTS,
    LEFT_OUT,
    MOVED,
    TRUTH,
    judge_errors,
    names_of,
    pixel_judge,
    scenes_of,
    shown_scenes,
    table,
)
from seg2any.layout import Layout
from seg2any.layout.overlap import iou

SCENES = scenes_of(5)
SHOWN = list(shown_scenes(SCENES))


def knows(image: np.ndarray, layout: Layout) -> np.ndarray:
    """See what is there."""
    return next(shown.true for shown in SHOWN if np.array_equal(shown.image, image))


def ignores(image: np.ndarray, layout: Layout) -> np.ndarray:
    """See what was asked for, whatever is there."""
    return np.stack([layout.masks[[text == name for text in layout.captions]].any(0) for name in names_of(layout)])


def rows(results: list[Result]) -> dict[tuple[str, str], float]:
    return {(result.name, result.source): result.value for result in results}


def test_the_truth_of_each_fault_is_known():
    by_fault = {fault: [] for fault in FAULTS}
    for shown in SHOWN:
        ious = [iou(wanted, true) for wanted, true in zip(shown.wanted, shown.true, strict=True)]
        by_fault[shown.fault] += ious
        last = shown.layout.captions[-1]
        if shown.fault == LEFT_OUT and shown.layout.captions.count(last) == 1:
            assert ious[names_of(shown.layout).index(last)] == 0
    assert set(by_fault[AS_ASKED]) == {1.0} and 0 in by_fault[LEFT_OUT]
    assert 0.2 < np.mean(by_fault[MOVED]) < 0.95 and max(by_fault[MOVED]) < 1
    assert np.mean(by_fault[EXCHANGED]) < 0.3


def test_errors_are_those_of_the_judge():
    found = judge_errors({"knows": knows, "ignores": ignores}, SCENES)
    values = rows(found)
    for fault in FAULTS:
        assert values[f"knows, {ERROR}", fault] == values[f"knows, {BIAS}", fault] == 0
    assert values[f"ignores, {ERROR}", AS_ASKED] == 0
    for fault in (EXCHANGED, MOVED, LEFT_OUT):
        assert values[f"ignores, {ERROR}", fault] == pytest.approx(values[f"ignores, {BIAS}", fault])
        assert values[f"ignores, {BIAS}", fault] > 0
    (agrees,) = (result for result in found if result.name.endswith(TRUTH))  # one order only: the other is flat
    assert agrees.name == f"knows, {TRUTH}" and agrees.value == pytest.approx(1)
    printed = table(make_run("x", found, {}, {}), ["knows", "ignores"])
    assert printed.count("\n") == 2 * len(FAULTS) + 1 and "+0.000  0.000" in printed


def test_the_judge_of_pixels_is_right_about_shapes_and_blind_to_exchanged_colours():
    values = rows(judge_errors({"pixels": pixel_judge}, SCENES[:3]))
    assert values[f"pixels, {ERROR}", AS_ASKED] < 0.05
    assert values[f"pixels, {BIAS}", EXCHANGED] > 0.2
