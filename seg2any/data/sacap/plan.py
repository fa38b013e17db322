"""Plan a subset: which tars and how many bytes it needs, and which tars are at hand."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg2any.data.sacap.report import Meter, in_bytes, progress_bar, run_tasks
from seg2any.data.sacap.table import Annotations, Images
from seg2any.data.sacap.tars import index_tar
from seg2any.system.errors import UserError
from seg2any.system.files import atomic_write

MOST_SHOWN = 20


@dataclass(frozen=True)
class TarNeed:
    """The needs of a subset from GROUP.tar.

    bytes           to be written, exact if `is_exact`
    tar, tar_bytes  path and size of the tar; None and 0 if it is not at hand
    """

    group: str
    images: int
    regions: int
    bytes: int
    is_exact: bool
    tar: Path | None
    tar_bytes: int


@dataclass(frozen=True, eq=False)
class Scan:
    """Look for `images` in `tar`; `rows` are their row numbers in the annotation file."""

    tar: Path
    images: Images
    rows: np.ndarray


def needs(annotations: Annotations, chosen: np.ndarray, tars: Mapping[str, Path]) -> list[TarNeed]:
    """List the tars of the rows where bool [n] `chosen`, by name."""
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
    """Read the headers of `tars` and write the sizes of their members into `annotations.sizes`.

    Returns a line for every tar that lacks images, and the number of lacking images.
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
                    f"{job.tar}: it lacks {lacks:,} of {len(job.rows):,} images" + (damage and f"; it is {damage}")
                )
    return sorted(lines), lacking


def scan_tar(job: Scan, meter: Meter) -> tuple[np.ndarray, str]:
    """Return the bytes of jpg and json of every image, int64 [k, 2], and the tar's damage.

    Files that are not in the tar have -1 bytes.
    """
    files = [job.images.files(i) for i in range(len(job.images))]
    try:
        index = index_tar(job.tar, {name for pair in files for name in pair})
    except OSError as error:
        return np.full((len(files), 2), -1, np.int64), f"not readable ({error.strerror})"
    meter.add(len(files), 0)
    sizes = [[index.members[name].size if name in index.members else -1 for name in pair] for pair in files]
    return np.array(sizes, np.int64), index.damage


def table(tars: list[TarNeed]) -> list[str]:
    """Format a table for the console: the first MOST_SHOWN tars, and the sums."""
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
    """Write a tab-separated table with one line per tar, for scripts that fetch or delete tars."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["tar", "images", "regions", "bytes", "bytes_are", "path"])
        for need in tars:
            kind = "exact" if need.is_exact else "estimated"
            rows.writerow([f"{need.group}.tar", need.images, need.regions, need.bytes, kind, need.tar or ""])


def write_links(source: Path, target: Path, tars: list[TarNeed]) -> list[str]:
    """Copy the links of needed tars that are not at hand; return the tars without a link, http:// or https://.

    `source` is the list that Meta provides, lines of "sa_000000.tar<tab>https://..."; `target` has the same form.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"--links {source}: cannot be read ({error}); give the text file of SA-1B's links") from None
    pairs = (line.split()[:2] for line in lines if len(line.split()) >= 2)
    links = {name: link for name, link in pairs if link.startswith(("https://", "http://"))}  # no option of wget
    wanted = [f"{need.group}.tar" for need in tars if need.tar is None]
    with atomic_write(target) as temporary:
        found = [f"{name}\t{links[name]}\n" for name in wanted if name in links]
        temporary.write_text("".join(["file_name\tcdn_link\n", *found]), encoding="utf-8")
    return [name for name in wanted if name not in links]


def beside(plan: Path, ending: str) -> Path:
    """Return the path of a file beside the plan: plan.parquet -> plan.tars.tsv."""
    return plan.with_name(f"{plan.stem}.{ending}")
