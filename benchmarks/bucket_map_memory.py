"""Measure the memory of `prepare_dataset_bucket_map.py` on tables of several lengths.

    python -m benchmarks.bucket_map_memory --folder /data/generated --rows 10000 1000000

Each table is SACap-1M's, with 6 captions a row and files for every row, most of them hard links. Two workers count some
rows, placeholders stand in for the other parts, and all parts are merged. Every table prints one JSON line: the peak of
anonymous memory, in MB, of the main process and of its largest worker; pages of mapped files do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bucket_map import CAPTIONED, sentence
from seg2any.data.bucket_map import SCHEMA, read_origin, write_tables
from seg2any.data.count import Parts
from seg2any.system.console import exit_status, whole
from seg2any.system.errors import UserError
from seg2any.system.files import user_path
from seg2any.system.interrupts import run_command
from seg2any.system.provenance import circumstances

COUNTED = 4096  # rows that are really counted
GROUP = 1000  # images in a folder
LINKS = 20000  # hard links to one file; ext4 allows 65,000
MAP = "512H_512W-group_bucket.parquet"


def main(words: list[str] | None = None) -> int:
    """Run the command line; exit status 0 measured, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=user_path, required=True, help="folder to create, and keep, with two files for every row"
    )
    parser.add_argument(
        "--rows", type=whole(1), nargs="+", default=[10_000, 1_000_000], help="length of each table (%(default)s)"
    )
    parser.add_argument("--model", default="examples/shapes/model", help="FLUX pipeline whose T5 tokenizer is used")
    options = parser.parse_args(words)
    return exit_status("benchmarks.bucket_map_memory", lambda: run(options), "remove --folder and start again")


def run(options: argparse.Namespace) -> None:
    """Measure every table and print a JSON line for each. Raises UserError."""
    for rows in options.rows:
        folder = options.folder / str(rows)
        if folder.exists():
            raise UserError(f"--folder {options.folder}: {folder} exists; remove it or give another folder")
        write_files(folder / "raw", rows)
        write_captions(folder / "captions.parquet", rows)
        line = {"rows": rows, "counting MB": prepare(folder, options.model, shard=f"0/{max(1, rows // COUNTED)}")}
        add_parts(folder / MAP)
        line["merging MB"] = prepare(folder, options.model, shard="0/1")
        line["map MB"] = round((folder / MAP).stat().st_size / 1e6, 1)
        assert pq.read_metadata(folder / MAP).num_rows == rows
        print(json.dumps(line | circumstances("cpu")), flush=True)


def prepare(folder: Path, model: str, shard: str) -> dict[str, float]:
    """Run the command and return the peak MB of its processes. Raises CalledProcessError."""
    command = [sys.executable, "prepare_dataset_bucket_map.py", "config/seg2any_sacap_1m.yaml", "--workers=2"]
    params = {"seg_caption_path": folder / "captions.parquet", "image_root": folder / "raw", "cache_root": folder}
    command += [f"--data.train.params.{name}={value}" for name, value in params.items()]
    command += [f"--model.pretrained_model_name_or_path={model}", f"--shard={shard}"]
    run = subprocess.Popen(command, start_new_session=True)
    peaks: dict[int, float] = {}
    while run.poll() is None:
        for process, megabytes in private_memory(run.pid):
            peaks[process] = max(peaks.get(process, 0.0), megabytes)
        time.sleep(0.1)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    workers = [peak for process, peak in peaks.items() if process != run.pid]
    return {"main process": round(peaks[run.pid]), "largest worker": round(max(workers, default=0.0))}


def private_memory(session: int) -> Iterator[tuple[int, float]]:
    """Yield the id and the MB of anonymous memory of every process in a session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        except (OSError, ValueError, IndexError):
            continue  # the process has just ended
        if "RssAnon" in status:
            yield int(folder.name), int(status["RssAnon"].split()[0]) * 1024 / 1e6


def write_files(folder: Path, rows: int) -> None:
    """Write an empty jpg and a json of `CAPTIONED` squares for every row; most are hard links."""
    square = {"size": [64, 96], "counts": [64 * 20 + 9, *[20, 44] * 29, 20, 64 * 46 + 35]}
    annotations = [{"id": number, "segmentation": square} for number in range(CAPTIONED)]
    for row in range(rows):
        group = folder / f"sa_{row // GROUP:06d}"
        if row % GROUP == 0:
            group.mkdir(parents=True)
        if row % LINKS == 0:
            content, photo = group / f"sa_{row}.json", group / f"sa_{row}.jpg"
            content.write_text(json.dumps({"annotations": annotations}))
            photo.touch()
        else:
            os.link(content, group / f"sa_{row}.json")
            os.link(photo, group / f"sa_{row}.jpg")


def write_captions(path: Path, rows: int) -> None:
    """Write the annotation file of these images, in the columns of SACap-1M."""
    rng = np.random.default_rng(0)
    pool = [sentence(rng, 14) for _ in range(5000)], [sentence(rng, 58) for _ in range(5000)]
    writer = None
    for start in range(0, rows, 20_000):
        numbers = range(start, min(start + 20_000, rows))
        regions, captions = (rng.integers(0, 5000, (len(numbers), count)) for count in (CAPTIONED, 1))
        table = pa.table(
            {
                "imagename": [f"sa_{row}.jpg" for row in numbers],
                "image_group": [f"sa_{row // GROUP:06d}" for row in numbers],
                "caption": [pool[1][chosen] for chosen in captions[:, 0]],
                "segments_info": [
                    [{"anno_id": number, "caption": pool[0][text]} for number, text in enumerate(chosen)]
                    for chosen in regions
                ],
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def add_parts(path: Path) -> None:
    """Write placeholders for the parts that other shards would have counted."""
    folder = next(path.parent.glob("*-parts-*"), None)
    if folder is None:
        return  # a single shard has counted everything
    parts = Parts(path, read_origin(next(folder.iterdir())))
    for rows in parts.missing(parts.ranges):
        columns = {name: np.zeros(len(rows), np.int64) for name in SCHEMA.names if name != "key"}
        table = pa.table(columns | {"key": [f"sa_{row}" for row in rows]}).select(SCHEMA.names)
        write_tables(parts.file(rows), parts.origin, [table])


if __name__ == "__main__":
    run_command(main)
