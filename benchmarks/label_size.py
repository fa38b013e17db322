"""Compare the time to stretch label maps to 512 px with that of a plain conversion.

    python -m benchmarks.label_size --images 200

`published` opens a map, resizes it with Pillow's NEAREST and saves it, as the published script does; `ours` is the
conversion of `python -m seg2any.evaluation.labels.convert_labelsize_512` in one process, which also checks the map and
replaces files as a whole. Both take turns on the generated maps of `benchmarks/bucket_map.py`, in processor time. The
pixels must be equal. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bucket_map import CLASSES, write_label_map
from benchmarks.clock import Ratio, in_turn
from seg2any.evaluation.labels.label_maps import Conversion
from seg2any.system.console import exit_status, whole
from seg2any.system.errors import UserError
from seg2any.system.interrupts import run_command
from seg2any.system.provenance import circumstances

SIZE = (512, 512)


def published(source: Path, target: Path) -> None:
    """Convert one map as the published script does."""
    Image.open(source).resize(SIZE, Image.Resampling.NEAREST).save(target)


def measure(n_images: int, rounds: int, folder: Path) -> dict[str, object]:
    """Measure milliseconds per map of both ways. Raises UserError if their pixels differ."""
    rng = np.random.default_rng(0)
    for number in range(n_images):
        write_label_map(folder, f"{number:05d}", CLASSES[number % len(CLASSES)], rng)
    sources, ours = sorted((folder / "annotations").iterdir()), Conversion(None, SIZE)
    ways: dict[str, Callable[[Path, Path], None]] = {
        "published": published,
        "ours": lambda source, target: ours((source, target)),
    }
    works = {name: lambda name=name: convert(sources, folder / name, ways[name]) for name in ways}
    seconds = in_turn(works, rounds, "cpu", "cpu")
    for source in sources:
        one, other = (np.asarray(Image.open(folder / name / source.name)) for name in ways)
        if not np.array_equal(one, other):
            raise UserError(f"{source.name}: the converted pixels differ; report this as a bug")
    size = {name: sum(path.stat().st_size for path in (folder / name).iterdir()) for name in ways}
    return {
        "ms each": {name: round(1e3 * statistics.median(each) / n_images, 2) for name, each in seconds.items()},
        "published / ours": asdict(Ratio.of(seconds["published"], seconds["ours"])),
        "bytes": size,
    }


def convert(sources: list[Path], folder: Path, way: Callable[[Path, Path], None]) -> None:
    """Convert all maps into a folder."""
    folder.mkdir(exist_ok=True)
    for source in sources:
        way(source, folder / source.name)


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 measured, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=whole(1), default=200, help="label maps (default: %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=5, help="rounds after the first, uncounted one (default: 5)")
    options = parser.parse_args(words)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(options.images, options.rounds, Path(folder))
        print(json.dumps({"benchmark": "label_size", "images": options.images} | report | circumstances("cpu")))

    return exit_status("benchmarks.label_size", run, "start again")


if __name__ == "__main__":
    run_command(main)
