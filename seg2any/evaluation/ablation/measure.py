"""Make and judge the images of a row; every finished row is a file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from seg2any.adapters.card import AdapterCard
from seg2any.attention.settings import ConditionSettings
from seg2any.data.dataset import Sample
from seg2any.diffusion.prepare import draw_layout
from seg2any.evaluation.ablation.options import Options
from seg2any.evaluation.ablation.rows import Row
from seg2any.evaluation.ablation.scenes import Scenes
from seg2any.evaluation.metrics.result import Result, mean
from seg2any.evaluation.report.results import Run, make_run, read_run, write_run
from seg2any.evaluation.shapes.judge import Verdict, judge
from seg2any.evaluation.shapes.options import SQUARE
from seg2any.evaluation.shapes.results import results
from seg2any.evaluation.shapes.sources import GUIDANCE_SCALE, bounds, judged, open_session, to_bytes
from seg2any.generate.model import read_adapter_card
from seg2any.generate.recipe import differences
from seg2any.generate.session import ImageOptions
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write
from seg2any.training.config import load

TOKENS = "contour tokens"
BOUNDS = "bounds"  # name of the file with ceiling and floors
SHOWN = 2  # scenes of each kind whose first image is kept as a picture


class Ablation:
    """Rows measured on scenes; one pair of adapters is in memory at a time."""

    def __init__(self, options: Options, device: torch.device):
        self.options, self.device = options, device
        self.scenes = {kind: Scenes.draw(kind, options.limit, options.seeds, options.seed) for kind in options.kinds}
        self._adapter = self._session = self._recipe = self._training = None

    def open(self, row: Row) -> None:
        """Load the row's adapters unless they are loaded. Raises UserError."""
        options = self.options
        adapter = None if row.is_bare else row.adapter or options.lora
        if self._session is None or adapter != self._adapter:
            self._session, self._recipe = open_session(options.model, adapter, options.weight_dtype, self.device)
            self._session.show_progress(False)
            self._adapter = adapter
            self._training = None if adapter is None else training_of(adapter, self._session.pipeline.card)

    def settings(self, row: Row) -> ConditionSettings:
        """Return the settings of the row's images: those of its adapters, with the row's changes."""
        # The base model has no card: it takes the settings, such as the text length, of the adapters under test.
        card = read_adapter_card(self.options.lora) if row.is_bare else None
        return (self._session.settings if card is None else card.condition).override(row.changes)

    def path(self, kind: str, name: str) -> Path:
        """Return the path of a row's finished numbers."""
        return self.options.output / kind / f"{name}.json"

    def name(self, row: Row | None) -> str:
        """Return the name of a row's file; None stands for ceiling and floors."""
        return BOUNDS if row is None else row.name

    def images(self, row: Row | None, kind: str) -> int:
        """Count the images that are made of a row."""
        return 0 if row is None else self.scenes[kind].images

    def finished(self, row: Row | None, kind: str) -> Run | None:
        """Read an open row's file, if there is one.

        Raises UserError if it was measured with other settings.
        """
        path = self.path(kind, self.name(row))
        if self.options.overwrite or not path.exists():
            return None
        run = read_run(path)
        if other := differences(run.settings, self.recipe(kind, row)):
            changed = ", ".join(other[:4])
            raise UserError(f"{path}: the row was measured with another {changed}; use --overwrite or another --output")
        return run

    def recipe(self, kind: str, row: Row | None) -> dict:
        """Collect everything that a row's numbers depend on; None stands for ceiling and floors."""
        options = self.options
        shared = {"kind": kind, "scenes": options.limit, "data": self.scenes[kind].fingerprint}
        common = {key: self._recipe[key] for key in ("model", "weight_dtype")} | shared
        if row is None:
            return common
        drawn = {"seed": options.seed, "seeds": options.seeds, "num_inference_steps": options.num_inference_steps}
        trained = {"adapter": self._recipe["adapter"], "training": self._training}
        return common | drawn | trained | {"settings": self.settings(row).to_json(), "guidance_scale": GUIDANCE_SCALE}

    def measure(self, row: Row | None, kind: str, bar: tqdm) -> Run:
        """Measure an open row on one kind of scenes and write it; the bar counts images."""
        return self._bounds(kind) if row is None else self._row(row, kind, bar)

    def _bounds(self, kind: str) -> Run:
        """Measure ceiling, VAE round trip and floors of a kind of scenes."""
        samples = self.scenes[kind].samples
        sources = bounds([sample.image for sample in samples], self._session.pipeline)
        found = [
            result
            for name, images in sources.items()
            for result in results(judged(images(), samples, f"{kind}, {name}"), name)
        ]
        return self._written(None, kind, found)

    def _row(self, row: Row, kind: str, bar: tqdm) -> Run:
        scenes, start, verdicts = self.scenes[kind], time.perf_counter(), {}
        shown = {sample.layout.name for sample in scenes.samples[:SHOWN]}
        for batch in scenes.batches(self.options.batch_size):
            images = self.generate(row, kind, batch, self.options.num_inference_steps)
            for sample, of_sample in zip(batch, np.split(images, len(batch)), strict=True):
                key = sample.layout.name
                verdicts[key] = [judge(image, sample.layout) for image in of_sample]
                if key in shown:
                    with atomic_write(self.picture(kind, row.name, key)) as temporary:
                        Image.fromarray(of_sample[0]).save(temporary)
                bar.update(len(of_sample))
        seconds = (time.perf_counter() - start) / scenes.images
        return self._written(row, kind, [*per_seed(verdicts), self._tokens(row, kind, seconds)])

    def generate(self, row: Row, kind: str, batch: Sequence[Sample], num_inference_steps: int) -> np.ndarray:
        """Generate uint8 [scenes x seeds, H, W, 3], scene by scene."""
        images = self._session.images(
            [sample.layout for sample in batch],
            ImageOptions(self.settings(row), num_inference_steps, GUIDANCE_SCALE),
            num_images_per_prompt=self.options.seeds,
            seeds=self.scenes[kind].seeds_of(batch),
            output_type="np",
        )
        return to_bytes(images)

    def folder(self, kind: str, name: str) -> Path:
        """Return the folder of a row's pictures; the process that measures the row holds its lock."""
        return self.options.output / kind / "pictures" / name

    def picture(self, kind: str, name: str, key: str) -> Path:
        """Return the path of the picture of a row's first image of the scene called `key`."""
        return self.folder(kind, name) / f"{key}.png"

    def _tokens(self, row: Row, kind: str, seconds: float) -> Result:
        patch, settings = self._session.pipeline.base.geometry.pixels_per_token, self.settings(row)
        drawn = {
            s.layout.name: draw_layout(s.layout.visible, SQUARE, patch, settings).kept
            for s in self.scenes[kind].samples
        }
        counts = {key: 0.0 if kept is None else float(kept.sum()) for key, kept in drawn.items()}
        return replace(mean(TOKENS, counts, better="lower"), extra={"seconds_per_image": round(seconds, 3)})

    def _written(self, row: Row | None, kind: str, found: list[Result]) -> Run:
        recipe = self.recipe(kind, row)
        hashes = {key: recipe[key] for key in ("data", "model", "adapter") if key in recipe}
        run = make_run(f"shapes ablation, {kind}", found, recipe, hashes, self.device)
        write_run(run, self.path(kind, self.name(row)))
        return run


def per_seed(verdicts: Mapping[str, list[Verdict]]) -> list[Result]:
    """Average over all images of each sample; `extra` holds the value of each seed alone."""
    count = min(map(len, verdicts.values()))
    alone = [results({key: [found[k]] for key, found in verdicts.items()}) for k in range(count)]
    by_name = [{result.name: result.value for result in of_seed} for of_seed in alone]
    return [
        replace(result, extra={"seeds": [of_seed[result.name] for of_seed in by_name]}) for result in results(verdicts)
    ]


def training_of(adapter: Path, card: AdapterCard | None) -> dict:
    """Read an adapter's steps, training seed and first machine from the files beside it.

    An unknown value is None.
    """
    config, log = adapter / "config.yaml", adapter.parent / "log.jsonl"
    return {
        "steps": card.step if card is not None and card.step else None,
        "seed": _seed(config) if config.is_file() else None,
        "machine": _machine(log) if log.is_file() else None,
    }


def _seed(config: Path) -> int | None:
    try:
        return load([str(config)]).seed
    except UserError:
        return None  # a config of another version; the adapters do not need it


def _machine(log: Path) -> str | None:
    with open(log, encoding="utf-8") as lines:
        try:
            return json.loads(next(lines, "null"))["run"]["machine"]["name"]
        except (ValueError, KeyError, TypeError):
            return None  # not a log of this trainer
