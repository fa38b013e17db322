"""Quality on unseen scenes of the `shapes` world: `python -m eval.shapes`, or with `--limit 8` for a quick look.

Generates an image for every test layout, judges it from its pixels, and prints the result between its ceiling
(rendered truth), what the VAE alone can reach, and its floors (the images of other scenes, an empty image).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from eval.shapes_judge import Verdict, judge, summarise
from eval.shapes_report import bars, circumstances, table, write_report
from seg2any.data.sample import Sample
from seg2any.data.shapes import ShapesDataset
from seg2any.errors import UserError
from seg2any.inference.choices import as_json
from seg2any.inference.model import WEIGHT_DTYPES, choose_device, choose_dtype, known_folder, known_model, load_pipeline
from seg2any.inference.recipe import BrokenImage, differences, read_recipe, save_image
from seg2any.latents import decode_latents, encode_images, pixels_per_token
from seg2any.pipeline import Seg2AnyPipeline

SCENES = {"normal": 200, "crowded": 40}  # kind -> how many of the test split
VAE_BATCH = 8


@dataclass(frozen=True)
class Options:
    """What to measure, and where the images go."""

    model: str
    lora: Path | None
    output: Path
    limit: int | None
    num_inference_steps: int
    batch_size: int
    device: str | None
    weight_dtype: str | None
    overwrite: bool


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Options of a command line, by default this process's."""
    parser = argparse.ArgumentParser(prog="python -m eval.shapes", description=__doc__.split("\n\n")[1])
    parser.add_argument("--model", default="examples/shapes/model", help="FLUX pipeline folder (default: %(default)s)")
    parser.add_argument(
        "--lora", type=Path, default="examples/shapes/lora", help="adapter folder, or none (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default="result/bench_shapes", help="folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="at most this many scenes of each kind")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="denoising steps (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="images made at a time (default: %(default)s)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one present)")
    parser.add_argument("--weight_dtype", choices=WEIGHT_DTYPES, help="default: bf16, on a CPU fp32")
    parser.add_argument("--overwrite", action="store_true", help="make images again that are there already")
    options = Options(**vars(parser.parse_args(arguments)))
    for name in ("limit", "num_inference_steps", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: give at least 1")
    if str(options.lora) == "none":
        object.__setattr__(options, "lora", None)
    return options


class Bench:
    """The scenes, judged once per source of images."""

    def __init__(self, options: Options, pipeline: Seg2AnyPipeline):
        self.options, self.pipeline = options, pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self.recipe = {
            "settings": as_json(pipeline.settings),
            "num_inference_steps": options.num_inference_steps,
            "model": known_model(options.model),
            "adapter": options.lora and known_folder(options.lora),
            "weight_dtype": str(pipeline.vae.dtype).removeprefix("torch."),
        }

    def measure(self, kind: str) -> dict[str, dict[str, float]]:
        """Source of images -> means over the scenes of one kind."""
        limit = SCENES[kind] if self.options.limit is None else min(self.options.limit, SCENES[kind])
        scenes = ShapesDataset("test", limit, kind)
        samples = [scenes[index] for index in range(len(scenes))]
        rendered = [sample.image for sample in samples]
        sources: dict[str, Callable[[], Iterable[np.ndarray]]] = {
            "rendered (ceiling)": lambda: rendered,
            "VAE round trip": lambda: self.round_trip(rendered),
            "generated": lambda: self.generate(samples, kind),
            "another scene (floor)": lambda: rendered[1:] + rendered[:1],
            "grey image (floor)": lambda: [np.full_like(image, 128) for image in rendered],
        }
        if len(samples) == 1:
            del sources["another scene (floor)"]
        return {name: summarise(self.judged(images(), samples, f"{kind}, {name}")) for name, images in sources.items()}

    def judged(self, images: Iterable[np.ndarray], samples: Sequence[Sample], title: str) -> Iterator[Verdict]:
        pairs = tqdm(zip(images, samples, strict=True), title, len(samples), leave=False)
        return (judge(image, sample.layout) for image, sample in pairs)

    def round_trip(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """What is left of images uint8 [H, W, 3] after encoding and decoding."""
        vae = self.pipeline.vae
        for start in range(0, len(images), VAE_BATCH):
            batch = torch.from_numpy(np.stack(images[start : start + VAE_BATCH])).permute(0, 3, 1, 2) / 127.5 - 1
            grid = tuple(side // pixels_per_token(vae) for side in batch.shape[-2:])
            decoded = decode_latents(encode_images(batch, vae).mean, grid, vae)
            floats = self.pipeline.image_processor.postprocess(decoded, output_type="np")
            yield from np.round(255 * floats).astype(np.uint8)

    def generate(self, samples: Sequence[Sample], kind: str) -> Iterator[np.ndarray]:
        """The generated images in order; those that are there already are read, the others made in batches."""
        folder = self.options.output / kind
        missing = [index for index, sample in enumerate(samples) if not self.is_finished(folder, sample)]
        with tqdm(total=len(samples), initial=len(samples) - len(missing), desc=f"{kind}, images") as progress:
            for start in range(0, len(missing), self.options.batch_size):
                batch = missing[start : start + self.options.batch_size]
                layouts = [samples[index].layout for index in batch]
                steps = self.options.num_inference_steps
                images = self.pipeline(layouts, num_inference_steps=steps, seeds=batch).images
                for index, image in zip(batch, images, strict=True):
                    name = samples[index].layout.name
                    save_image(image, self.recipe | {"scene": name, "seed": index}, folder / f"{name}.png")
                progress.update(len(batch))
        for sample in samples:
            with Image.open(folder / f"{sample.layout.name}.png") as image:
                yield np.asarray(image.convert("RGB"))

    def is_finished(self, folder: Path, sample: Sample) -> bool:
        """Whether the image is there, whole, and made as it would be made now. Raises UserError if made otherwise."""
        path = folder / f"{sample.layout.name}.png"
        if self.options.overwrite or not path.exists():
            return False
        try:
            recipe = read_recipe(path) or {}
        except BrokenImage:
            return False
        other = differences({key: recipe.get(key) for key in self.recipe}, self.recipe)
        if other:
            raise UserError(f"{path}: was made with another {', '.join(other)}; use --overwrite or another --output")
        return True


def run(options: Options) -> None:
    """Measure, print the tables and the bars, and write one JSON report. Raises UserError."""
    if options.lora is not None and not options.lora.is_dir():
        raise UserError(f"--lora {options.lora}: no such folder; train one, or --lora none for the plain model")
    started = time.monotonic()
    device = choose_device(options.device)
    pipeline = load_pipeline(options.model, options.lora, choose_dtype(options.weight_dtype, device), device)
    bench = Bench(options, pipeline)
    results = {}
    for kind in SCENES:
        results[kind] = bench.measure(kind)
        print(
            f"\n{kind}: {results[kind]['generated']['images']} unseen scenes",
            table(results[kind]),
            sep="\n",
            flush=True,
        )
    verdicts = bars(results["normal"])
    print("\nbars, on the normal scenes:", *(f"  {verdict}" for verdict in verdicts), sep="\n")
    seconds = round(time.monotonic() - started, 1)
    report = {"recipe": bench.recipe, **circumstances(device), "seconds": seconds, "results": results}
    report["bars"] = [vars(verdict) | {"passed": verdict.passed} for verdict in verdicts]
    print(f"\nreport: {write_report(report, options.output)}; images: {options.output}")


def main() -> int:
    """Exit status: 0 measured (whether the bars are met or not), 2 wrong input, 130 interrupted."""
    try:
        run(parse_options())
    except (UserError, OSError) as error:  # OSError: an output folder that cannot be written
        print(f"eval.shapes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.shapes: interrupted; start again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
