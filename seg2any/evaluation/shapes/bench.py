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
from seg2any.evaluation.shapes.options import SCENES, Options
from seg2any.evaluation.shapes.results import bars, results, table
from seg2any.evaluation.shapes.sources import (
    CEILING,
    EMPTY,
    OTHER_SCENE,
    ROUND_TRIP,
    SIZE,
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

    def measure(self, kind: str) -> Run:
        """Measure one kind of scenes, for every source of images."""
        scenes = ShapesDataset("test", SCENES[kind], kind)
        samples = [scenes[index] for index in range(self.count(kind))]
        sources = bounds([sample.image for sample in samples], self.session.pipeline)
        sources[GENERATED] = lambda: self.generate(scenes, kind)
        found = []
        for name in (source for source in COLUMNS if source in sources):
            with self.clock(f"images ({name.split(' (')[0]})"):
                images = list(sources[name]())
            with self.clock("judging"):
                found += results(judged(images, samples, f"{kind}, {name}"), name)
        hashes = {"data": scenes.fingerprint(), "model": self.recipe["model"], "adapter": self.recipe["adapter"]}
        device = self.session.pipeline.vae.device
        return make_run(f"shapes, {kind}", found, self.recipe | {"seed": self.options.seed}, hashes, device)

    def generate(self, scenes: ShapesDataset, kind: str) -> Iterator[np.ndarray]:
        """Generate the images in order, reading those that are finished.

        Raises UserError if the folder belongs to another run.
        """
        folder, options = self.options.output / kind, self.options
        data = {"split": scenes.split, "n_scenes": len(scenes), "kind": kind}
        run = {
            "data": {"type": "shapes", "params": data, "fingerprint": scenes.fingerprint()},
            "samples": self.count(kind),
            "groups": 1,
            "format": "png",
            "size": list(SIZE),
            "seed": options.seed,
            "recipe": self.recipe,
        }
        write_run(folder, run, options.overwrite)
        discard_leftovers(folder)
        task = ImageSet(scenes, folder, self.count(kind), 1, "png", SIZE, options.seed, self.recipe)
        blocks, _ = plan(task, options.batch_size, Process(), options.overwrite)
        make_missing(task, blocks, self.session, self.session.settings, shown=True)
        return Generated.read(folder).images(0, scenes)

    def gallery(self, kind: str) -> Gallery:
        """Build the gallery of a kind of scenes, with the figures that the judge sees."""
        scenes = ShapesDataset("test", SCENES[kind], kind)
        generated = Generated.read(self.options.output / kind)
        samples = {scenes.key(index): scenes[index] for index in range(self.count(kind))}
        return Gallery(
            lambda key: Item(key, read_image(generated.path(0, key)), layout=samples[key].layout),
            lambda key: samples[key].image,
            seen,
        )


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
    for kind in SCENES:
        found = bench.measure(kind)
        with clock("pages"):
            page = finish(found, options.output / f"{kind}.json", "IoU", bench.gallery(kind))
        print(f"\n{kind}: {found.row('IoU').n} unseen scenes", table(found), sep="\n", flush=True)
        if kind == "normal":
            print("\nbars, on the normal scenes:", *(f"  {line}" for line in bar_lines(bars(found))), sep="\n")
        print(f"page with pictures: {page}", flush=True)
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
