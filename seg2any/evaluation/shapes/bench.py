"""The measurement of every kind of scenes, from images to tables and pages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.generated import Generated, discard_leftovers, read_image, write_run
from seg2any.evaluation.generation import ImageSet, make_missing, plan
from seg2any.evaluation.metrics.item import Item
from seg2any.evaluation.metrics.result import GENERATED
from seg2any.evaluation.report.results import Run, bar_lines, make_run
from seg2any.evaluation.runners.finish import Gallery, finish
from seg2any.evaluation.shapes.drawn import Attributes, drawn_shapes
from seg2any.evaluation.shapes.judge import visible
from seg2any.evaluation.shapes.judges import measure_judges
from seg2any.evaluation.shapes.options import SCENES, SQUARE, Options
from seg2any.evaluation.shapes.results import bars, results, table
from seg2any.evaluation.shapes.sources import (
    CEILING,
    EMPTY,
    OTHER_SCENE,
    ROUND_TRIP,
    bounds,
    judged,
    open_session,
)
from seg2any.generate.folder import open_folder
from seg2any.generate.session import Session
from seg2any.system.device import choose_device
from seg2any.system.processes import Process

COLUMNS = (CEILING, ROUND_TRIP, GENERATED, OTHER_SCENE, EMPTY)


class Bench:
    """The scenes, judged once per source of images."""

    def __init__(self, options: Options, session: Session, recipe: dict, clock: Stopwatch):
        self.options, self.session, self.clock = options, session, clock
        self.recipe = recipe | {"num_inference_steps": options.num_inference_steps}

    def count(self, kind: str) -> int:
        """Count the scenes to measure."""
        return SCENES[kind] if self.options.limit is None else min(self.options.limit, SCENES[kind])

    def measure(self, kind: str, size: tuple[int, int] = SQUARE) -> Run:
        """Measure one kind of scenes in one size, for every source of images."""
        scenes = ShapesDataset("test", SCENES[kind], kind, size=size)
        samples = [scenes[index] for index in range(self.count(kind))]
        title = part_name(kind, size)
        sources = bounds([sample.image for sample in samples], self.session.pipeline)
        sources[GENERATED] = lambda: self.generate(scenes, kind)
        found = []
        for name in (source for source in COLUMNS if source in sources):
            with self.clock(f"images ({name.split(' (')[0]})"):
                images = list(sources[name]())
            with self.clock("judging"):
                found += results(judged(images, samples, f"{title}, {name}"), name)
        hashes = {"data": scenes.fingerprint(), "model": self.recipe["model"], "adapter": self.recipe["adapter"]}
        device = self.session.pipeline.vae.device
        settings = self.recipe | {"seed": self.options.seed}
        return make_run(f"shapes, {title}", found, settings, hashes, device)

    def generate(self, scenes: ShapesDataset, kind: str) -> Iterator[np.ndarray]:
        """Generate the images in order, reading those that are finished.

        Raises UserError if the folder belongs to another run.
        """
        (size,), options = scenes.sizes, self.options
        folder = options.output / part_name(kind, size)
        data = {"split": scenes.split, "n_scenes": len(scenes), "kind": kind}
        if size != SQUARE:
            data["size"] = list(size)
        run = {
            "data": {"type": "shapes", "params": data, "fingerprint": scenes.fingerprint()},
            "samples": self.count(kind),
            "groups": 1,
            "format": "png",
            "size": list(size),
            "seed": options.seed,
            "recipe": self.recipe,
        }
        write_run(folder, run, options.overwrite)
        discard_leftovers(folder)
        task = ImageSet(scenes, folder, self.count(kind), 1, "png", size, options.seed, self.recipe)
        blocks, _ = plan(task, options.batch_size, Process(), options.overwrite)
        make_missing(task, blocks, self.session, self.session.settings, shown=True)
        return Generated.read(folder).images(0, scenes)

    def gallery(self, kind: str, size: tuple[int, int] = SQUARE) -> Gallery:
        """Build the gallery of a kind of scenes, with the figures that the judge sees."""
        scenes = ShapesDataset("test", SCENES[kind], kind, size=size)
        generated = Generated.read(self.options.output / part_name(kind, size))
        samples = {scenes.key(index): scenes[index] for index in range(self.count(kind))}
        return Gallery(
            lambda key: Item(key, read_image(generated.path(0, key)), layout=samples[key].layout),
            lambda key: samples[key].image,
            seen,
        )


def part_name(kind: str, size: tuple[int, int]) -> str:
    """Name a kind of scenes in one size, as their folder."""
    return kind if size == SQUARE else f"{kind}_{size[0]}x{size[1]}"


def seen(item: Item) -> np.ndarray:
    """Return where the judge sees each entity, bool [N, H, W]."""
    layout = item.layout
    return drawn_shapes(item.image, visible(layout.masks), [Attributes.of(caption) for caption in layout.captions])


def run(options: Options) -> None:
    """Measure, print tables and bars, and write JSON and a page for each kind.

    Raises UserError.
    """
    open_folder(options.output, "--output")
    device = choose_device(options.device)
    clock = Stopwatch()
    with clock("loading"):
        session, recipe = open_session(options.model, options.lora, options.weight_dtype, device)
    bench = Bench(options, session, recipe, clock)
    for kind, size in options.parts:
        found, name = bench.measure(kind, size), part_name(kind, size)
        with clock("pages"):
            page = finish(found, options.output / f"{name}.json", "IoU", bench.gallery(kind, size))
        print(f"\n{name}: {found.row('IoU').n} unseen scenes", table(found), sep="\n", flush=True)
        if name == "normal":
            print("\nbars, on the normal scenes:", *(f"  {line}" for line in bar_lines(bars(found))), sep="\n")
        print(f"page with pictures: {page}", flush=True)
    judged = min(options.judged, options.limit or options.judged)
    if judged:
        with clock("judges"):
            errors = measure_judges(session, judged, bench.recipe, options.output / "judges.json")
        print("", errors, sep="\n", flush=True)
    print(f"time: {clock}")


class Stopwatch:
    """Seconds by name of a task.

    >>> clock = Stopwatch()
    >>> with clock("judging"):
    ...     pass
    >>> str(clock)
    'judging 0 s'
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, task: str) -> Iterator[None]:
        """Add the time inside the block to `task`, also if the block fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[task] = self.seconds.get(task, 0.0) + time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{task} {seconds:.0f} s" for task, seconds in self.seconds.items())
