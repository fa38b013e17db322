"""Measure each stage of `seg2any annotate`, and compute the hours and tokens of a million photos.

    python -m benchmarks.annotate --photos 12

Photos of 1500 x 2250 pixels with 100 masks each, as SA-1B has them, are made and annotated in this process, in
processor time. `pictures for captions` is what the process does for its questions: it draws and encodes the pictures of
every region; the answers take the server's time, and are counted in tokens. `near duplicates` compares 100,000 hashes.
Stages whose weights are not given are not measured: `--sam_model`, `--aesthetic_head` and `--aesthetic_clip` name them.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from seg2any.annotate.captions import pictures_of, small
from seg2any.annotate.draft import Draft
from seg2any.annotate.masks import read_sa1b
from seg2any.annotate.nested import area
from seg2any.annotate.output import COPY, write_files
from seg2any.annotate.photos import find_photos
from seg2any.annotate.prompts import LONGEST, PROMPTS, SIDE
from seg2any.annotate.rules import Rules, keep_large, keep_top_level, look_at
from seg2any.annotate.similar import copies
from seg2any.layout.rle import compressed, encode_rle
from seg2any.system.console import exit_status, whole
from seg2any.system.endpoint import request_body
from seg2any.system.interrupts import run_command
from seg2any.system.provenance import circumstances

SIZE, MASKS = (1500, 2250), 100
MILLION, HASHES = 1_000_000, 100_000
REGIONS = 5.9  # of a photo of SACap-1M
PATCH = 28  # pixels of a picture's token in models of the Qwen-VL family; in Qwen3-VL 32
CHARACTERS = 4  # of a token of English, roughly
WRITTEN = {"image": 58.6 * 1.35, "region": 14.1 * 1.35}  # tokens of SACap-1M's captions, at 1.35 tokens a word
CORES = (16, 64)


def make_photos(folder: Path, count: int) -> None:
    """Write photos with masks: ellipses of all sizes, many of them in larger ones."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    for number in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
        noise.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(folder / f"sa_{number}.jpg", quality=90)
        entries = []
        for mask in range(MASKS):
            radius = np.exp(rng.uniform(np.log(20), np.log(400), 2))
            top, left = rng.uniform(0, 1, 2) * SIZE
            inside = ((rows - top) / radius[0]) ** 2 + ((columns - left) / radius[1]) ** 2 < 1
            counts = compressed(np.array(encode_rle(inside)["counts"]))
            entries.append({"id": mask, "segmentation": {"size": list(SIZE), "counts": counts}})
        (folder / f"sa_{number}.json").write_text(json.dumps({"image": {}, "annotations": entries}))


def measure(count: int, folder: Path, models: Mapping[str, Callable[[Draft], None]]) -> dict[str, float]:
    """Return stage -> processor seconds a photo."""
    (folder / "photos").mkdir()
    make_photos(folder / "photos", count)
    photos = find_photos([folder / "photos"], {})
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        began = time.process_time()
        found = work()
        seconds[name] = seconds.get(name, 0.0) + (time.process_time() - began) / count
        return found

    looks = [timed("size and hash", lambda photo=photo: look_at(Path(photo.path))) for photo in photos]
    hashes = [int(one) for one in np.random.default_rng(0).integers(0, 2**63, HASHES, dtype=np.uint64)]
    timed("near duplicates", lambda: copies(hashes, Rules().hash_distance))
    seconds["near duplicates"] *= count / HASHES
    for photo, look in zip(photos, looks, strict=True):
        draft = Draft(photo, look.size)
        timed("read the photo", lambda draft=draft: draft.image)
        for name, work in models.items():
            timed(name, lambda work=work, draft=draft: work(draft))
        timed("masks of SA-1B", lambda draft=draft: read_sa1b(draft))
        timed("top level", lambda draft=draft: keep_top_level(draft, Rules()))
        timed("area", lambda draft=draft: keep_large(draft, Rules()))
        draft.regions = sorted(draft.regions, key=lambda one: -area(_runs(draft, one)))[: round(REGIONS)]
        for region in draft.regions:
            region.caption = "a thing"
        timed("pictures for captions", lambda draft=draft: ask(draft))
        timed("files", lambda draft=draft: write_files(draft, folder / "set", COPY))
    return seconds


def _runs(draft: Draft, region) -> np.ndarray:
    return Draft(draft.photo, draft.size, [region]).runs()[0]


def ask(draft: Draft) -> int:
    """Build all that is sent to an endpoint about a photo; return the number of questions."""
    bodies = [request_body("m", PROMPTS["image"], (small(draft.image),), LONGEST["image"])]
    for mask in draft.masks():
        bodies.append(request_body("m", PROMPTS["region"], pictures_of(draft.image, mask), LONGEST["region"]))
    return len([json.dumps(body) for body in bodies])


def tokens() -> dict[str, float]:
    """Return the tokens that a million photos cost: read and written by the model that writes captions."""
    shorter = SIDE * SIZE[0] / SIZE[1]
    whole_photo, cut = (SIDE / PATCH) * (shorter / PATCH), (SIDE / PATCH) ** 2
    read = {
        "image": whole_photo + len(PROMPTS["image"]) / CHARACTERS,
        "region": whole_photo + cut + len(PROMPTS["region"]) / CHARACTERS,
    }
    of_photo = {"read": read["image"] + REGIONS * read["region"]}
    of_photo["written"] = WRITTEN["image"] + REGIONS * WRITTEN["region"]
    return {f"{name} by a million, 1e9": round(number * MILLION / 1e9, 2) for name, number in of_photo.items()}


def table(seconds: Mapping[str, float]) -> list[str]:
    """Format the stages: rate of a core, and hours of a million photos."""
    lines = ["| stage | photos a second and core | core hours of a million |", "|---|---|---|"]
    for name, each in [*seconds.items(), ("all of these", sum(seconds.values()))]:
        lines.append(f"| {name} | {1 / max(each, 1e-9):,.1f} | {each * MILLION / 3600:,.1f} |")
    return lines


def models_of(options: argparse.Namespace) -> dict[str, Callable[[Draft], None]]:
    """Open the networks whose weights are given."""
    found: dict[str, Callable[[Draft], None]] = {}
    if options.aesthetic_head:
        from seg2any.annotate.aesthetic import CLIP_SOURCE, Aesthetics, check_aesthetic

        predictor = Aesthetics(options.aesthetic_head, options.aesthetic_clip or CLIP_SOURCE)
        found["aesthetics"] = partial(check_aesthetic, rules=Rules(min_aesthetic=-1e9), predictor=predictor)
    if options.sam_model:
        from seg2any.annotate.masks import SegmenterMasks
        from seg2any.segment.sam_automatic import AutomaticSam
        from seg2any.segment.segmenter import Prompt

        found["masks by SAM"] = SegmenterMasks(partial(AutomaticSam, options.sam_model), Prompt(), "sam")()
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0 measured, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=whole(1), default=12, help="photos that are annotated (default: %(default)s)")
    parser.add_argument("--sam_model", help="folder or hub id, to measure masks by SAM")
    parser.add_argument("--aesthetic_head", type=Path, help="file of the head, to measure aesthetics")
    parser.add_argument("--aesthetic_clip", help="folder or hub id of its CLIP")
    options = parser.parse_args(words)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(options.photos, Path(folder), models_of(options))
        print("\n".join(table(seconds)))
        total = sum(seconds.values()) * MILLION / 3600
        hours = {f"hours of a million on {cores} cores": round(total / cores, 1) for cores in CORES}
        report = {name: round(1000 * each, 2) for name, each in seconds.items()}
        print(json.dumps({"benchmark": "annotate", "ms": report, **hours, "tokens": tokens()} | circumstances("cpu")))

    return exit_status("benchmarks.annotate", run, "start again")


if __name__ == "__main__":
    run_command(main)
