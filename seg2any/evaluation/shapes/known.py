"""Measure the judges themselves, on drawn scenes in which the truth is known.

Each scene is drawn as it was asked for and with planted faults. Where a caption truly shows is known from the drawing,
so the true IoU with the wanted mask is known too, and a judge's error is its IoU less the true one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from seg2any.data.shapes import Scene, ShapesDataset
from seg2any.evaluation.metrics.agreement import agreement
from seg2any.evaluation.metrics.result import RegionMean, Result
from seg2any.evaluation.report.results import Run
from seg2any.evaluation.shapes.drawn import Attributes, drawn_shapes
from seg2any.layout import Layout
from seg2any.layout.contour import resize_masks
from seg2any.layout.overlap import iou
from seg2any.segment.segmenter import Prompt, Segmenter

AS_ASKED, EXCHANGED, MOVED, LEFT_OUT = "as asked", "colours exchanged", "moved", "left out"
STEP = 12  # pixels by which figures are moved
ERROR, BIAS, TRUTH = "absolute error", "bias", "rank agreement with the truth"

# Image uint8 [H, W, 3], layout that was asked for -> where each different caption is seen, bool [K, H, W].
KnownJudge = Callable[[np.ndarray, Layout], np.ndarray]


def pixel_judge(image: np.ndarray, layout: Layout) -> np.ndarray:
    """See the figures by their colours, as the benchmark's own judge does."""
    seen = drawn_shapes(image, layout.visible, [Attributes.of(caption) for caption in layout.captions])
    return np.stack([seen[[caption == name for caption in layout.captions]].any(0) for name in names_of(layout)])


def segmenter_judge(segmenter: Segmenter) -> KnownJudge:
    """See the figures by a segmenter that is asked for their captions."""

    def see(image: np.ndarray, layout: Layout) -> np.ndarray:
        found = segmenter.segment(image, Prompt(phrases=names_of(layout)))
        return resize_masks(found.masks, layout.size)

    return see


def names_of(layout: Layout) -> tuple[str, ...]:
    """List the different captions in order."""
    return tuple(dict.fromkeys(layout.captions))


def as_asked(scene: Scene) -> Scene:
    """Leave the scene as it is."""
    return scene


def with_exchanged_colours(scene: Scene) -> Scene | None:
    """Give each figure the colour of the next one; None if all have one colour."""
    colours = [figure.colour for figure in scene.figures]
    if len(set(colours)) < 2:
        return None
    pairs = zip(scene.figures, [*colours[1:], colours[0]], strict=True)
    return replace(scene, figures=tuple(replace(figure, colour=colour) for figure, colour in pairs))


def moved(scene: Scene) -> Scene:
    """Move every figure to the right and down."""
    figures = (replace(figure, centre=tuple(place + STEP for place in figure.centre)) for figure in scene.figures)
    return replace(scene, figures=tuple(figures))


def with_one_left_out(scene: Scene) -> Scene | None:
    """Leave the topmost figure out; None if there is no other."""
    return replace(scene, figures=scene.figures[:-1]) if len(scene.figures) > 1 else None


FAULTS: Mapping[str, Callable[[Scene], Scene | None]] = {
    AS_ASKED: as_asked,
    EXCHANGED: with_exchanged_colours,
    MOVED: moved,
    LEFT_OUT: with_one_left_out,
}


@dataclass(frozen=True, eq=False)
class Shown:
    """A scene with a planted fault.

    wanted, true  where each different caption was asked for, and where it shows: bool [K, H, W]
    """

    key: str
    fault: str
    image: np.ndarray
    layout: Layout
    wanted: np.ndarray
    true: np.ndarray


def shown_scenes(scenes: Iterable[tuple[str, Scene]]) -> Iterator[Shown]:
    """Draw each scene with every fault that it can have."""
    for key, scene in scenes:
        asked = scene.sample(key).layout
        names = names_of(asked)
        for fault, plant in FAULTS.items():
            faulty = plant(scene)
            if faulty is None:
                continue
            image, masks = faulty.render()
            wanted, true = (
                np.stack([drawn[[caption == name for caption in captions]].any(0) for name in names])
                for drawn, captions in ((asked.visible, asked.captions), (masks, faulty.captions))
            )
            yield Shown(key, fault, image, asked, wanted, true)


def judge_errors(judges: Mapping[str, KnownJudge], scenes: Sequence[tuple[str, Scene]]) -> list[Result]:
    """Measure each judge's bias and absolute error by fault, and whether it orders the regions as the truth does."""
    means: dict[tuple[str, str], RegionMean] = {}
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in judges}
    for shown in tqdm(shown_scenes(scenes), "judges", unit="image", leave=False):
        truths = [iou(wanted, true) for wanted, true in zip(shown.wanted, shown.true, strict=True)]
        for name, judge in judges.items():
            seen = judge(shown.image, shown.layout)
            for wanted, found, truth in zip(shown.wanted, seen, truths, strict=True):
                error = iou(wanted, found) - truth
                for kind, value in ((ERROR, abs(error)), (BIAS, error)):
                    means.setdefault((f"{name}, {kind}", shown.fault), RegionMean()).add(shown.key, value)
                pairs[name].setdefault(shown.key, []).append((iou(wanted, found), truth))
    results = [
        mean.result(name, fault, "lower" if name.endswith(ERROR) else "higher") for (name, fault), mean in means.items()
    ]
    agreements = (agreement(f"{name}, {TRUTH}", of_judge) for name, of_judge in pairs.items())
    return results + [result for result in agreements if result is not None]


def table(run: Run, judges: Iterable[str]) -> str:
    """Format a line per judge and fault: bias, absolute error with its interval, and below them the agreements."""
    rows = {(row.name, row.source): row for row in run.rows}
    width = max(map(len, FAULTS))
    lines = [f"{'judge':<12} {'scene':<{width}} {'bias':>8}  absolute error"]
    for judge in judges:
        for fault in FAULTS:
            error = rows.get((f"{judge}, {ERROR}", fault))
            if error is not None:
                bias = rows[f"{judge}, {BIAS}", fault].value
                lines.append(f"{judge:<12} {fault:<{width}} {bias:>+8.3f}  {error.value:.3f}{_interval(error)}")
    for row in run.rows:
        if row.name.endswith(TRUTH):
            lines.append(f"{row.name.split(',')[0]:<12} {TRUTH}: {row.value:.3f}{_interval(row)}")
    return "\n".join(lines)


def scenes_of(count: int) -> list[tuple[str, Scene]]:
    """Return the first scenes of the test split, with their names."""
    data = ShapesDataset("test", count, "normal")
    return [(data.key(index), data.scene(index)) for index in range(count)]


def _interval(row: object) -> str:
    return "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
