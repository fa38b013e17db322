"""What a subset needs: which tars, how many bytes, what is at hand. Written as an annotation file of the subset."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.data.sacap.report import in_bytes
from seg2any.data.sacap.table import Annotations, Images
from seg2any.data.sacap.tars import index_tar
from seg2any.data.sacap.workers import Meter, progress_bar, run_tasks
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

MOST_SHOWN = 20


@dataclass(frozen=True)
class TarNeed:
    """What is wanted of GROUP.tar. `bytes` to write, exact if `is_exact`; `tar` and `tar_bytes` if it is at hand."""

    group: str
    images: int
    regions: int
    bytes: int
    is_exact: bool
    tar: Path | None
    tar_bytes: int


@dataclass(frozen=True, eq=False)
class Scan:
    """Look for `images` in `tar`; `rows` are their numbers in the annotation file."""

    tar: Path
    images: Images
    rows: np.ndarray


def needs(annotations: Annotations, chosen: np.ndarray, tars: Mapping[str, Path]) -> list[TarNeed]:
    """One entry per tar that the rows where bool [n] `chosen` are in, by name."""
    found, regions = [], annotations.regions
    for group, rows in annotations.by_group(chosen):
        tar = tars.get(group)
        found.append(
            TarNeed(
                group,
                len(rows),
                int(regions[rows].sum()),
                annotations.bytes(rows),
                bool((annotations.sizes[rows] >= 0).all()),
                tar,
                tar.stat().st_size if tar else 0,
            )
        )
    return found


def scan(annotations: Annotations, chosen: np.ndarray, tars: Mapping[str, Path], workers: int) -> tuple[list[str], int]:
    """Write the sizes of the members into `annotations.sizes`, reading the headers of the `tars`.

    Returns a line for every tar that is damaged or lacks images, and how many images are lacking.
    """
    jobs = [
        Scan(tars[group], annotations.images(group, rows), rows)
        for group, rows in annotations.by_group(chosen)
        if group in tars
    ]
    lines, lacking = [], 0
    with progress_bar("scan", sum(len(job.rows) for job in jobs)) as bar:
        for job, (sizes, damage) in run_tasks(scan_tar, jobs, workers, bar):
            annotations.sizes[job.rows] = sizes
            lacks = int((sizes < 0).any(axis=1).sum())
            lacking += lacks
            if lacks:
                lines.append(
                    f"{job.tar}: lacks {lacks:,} of {len(job.rows):,} images" + (damage and f"; it is {damage}")
                )
    return sorted(lines), lacking


def scan_tar(job: Scan, meter: Meter) -> tuple[np.ndarray, str]:
    """int64 [k, 2] bytes of jpg and json of every image, -1 where it is not in the tar; and what is wrong with it."""
    files = [job.images.files(i) for i in range(len(job.images))]
    try:
        index = index_tar(job.tar, {name for pair in files for name in pair})
    except OSError as error:
        return np.full((len(files), 2), -1, np.int64), f"not readable ({error.strerror})"
    meter.add(len(files), 0)
    sizes = [[index.members[name].size if name in index.members else -1 for name in pair] for pair in files]
    return np.array(sizes, np.int64), index.damage


def table(tars: list[TarNeed]) -> list[str]:
    """Lines for the console: the first MOST_SHOWN tars, and the sums."""
    lines = [_line("tar", "images", "regions", "to write", "tar at hand")]
    for need in tars[:MOST_SHOWN]:
        at_hand = in_bytes(need.tar_bytes) if need.tar else "-"
        lines.append(_line(f"{need.group}.tar", need.images, need.regions, _size(need.bytes, need.is_exact), at_hand))
    if len(tars) > MOST_SHOWN:
        lines.append(f"... and {len(tars) - MOST_SHOWN:,} more")
    there = [need for need in tars if need.tar]
    exact = all(need.is_exact for need in tars)
    lines.append(
        _line(
            f"{len(tars):,} tars",
            sum(need.images for need in tars),
            sum(need.regions for need in tars),
            _size(sum(need.bytes for need in tars), exact),
            f"{len(there):,}, {in_bytes(sum(need.tar_bytes for need in there))}",
        )
    )
    if not exact:
        lines.append("~ estimated at 1.04 MB per image, the mean of SACap-1M; --scan reads the sizes from the tars")
    return lines


def _line(name: str, images: object, regions: object, size: str, at_hand: str) -> str:
    counts = "".join(f"{value:>12,}" if isinstance(value, int) else f"{value:>12}" for value in (images, regions))
    return f"{name:<16}{counts}{size:>12}{at_hand:>16}"


def _size(count: int, is_exact: bool) -> str:
    return ("" if is_exact else "~") + in_bytes(count)


def write_tar_list(path: Path, tars: list[TarNeed]) -> None:
    """A table with tabs, one line per tar, for scripts that fetch or delete tars."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["tar", "images", "regions", "bytes", "bytes_are", "path"])
        for need in tars:
            kind = "exact" if need.is_exact else "estimated"
            rows.writerow([f"{need.group}.tar", need.images, need.regions, need.bytes, kind, need.tar or ""])


def write_links(source: Path, target: Path, tars: list[TarNeed]) -> list[str]:
    """Copy from the list of links that Meta gives out (lines "sa_000000.tar<tab>https://...") those of tars that are
    needed and not at hand, in the same form. Returns the tars that have no link."""
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--links {source}: cannot be read ({error}); give the text file of SA-1B's links") from None
    links = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    wanted = [f"{need.group}.tar" for need in tars if need.tar is None]
    with atomic_write(target) as temporary:
        found = [f"{name}\t{links[name]}\n" for name in wanted if name in links]
        temporary.write_text("".join(["file_name\tcdn_link\n", *found]), encoding="utf-8")
    return [name for name in wanted if name not in links]


def beside(plan: Path, ending: str) -> Path:
    """plan.parquet -> plan.tars.tsv."""
    return plan.with_name(f"{plan.stem}.{ending}")
