"""Build tars like those of SA-1B: the files of a small SACap-1M and unrelated members."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from seg2any.data.sacap.extract import Job
from seg2any.data.sacap.report import Meter, Progress
from seg2any.data.sacap.subset import in_groups
from seg2any.data.sacap.table import read_annotations
from tests.synthetic_data import make_sacap_1m

COMMAND = [sys.executable, "-m", "seg2any.data.sacap"]


def make_source(folder: Path) -> Path:
    """Write annotations, images and tars of 9 images in 3 groups.

    annotations/anno_train.parquet is the table, raw/ holds the images' files, and tars/ holds these and others.
    """
    root = folder / "SACap-1M"
    make_sacap_1m(root.parent, n=9, groups=3)
    (root / "tars").mkdir()
    for group in sorted((root / "raw").iterdir()):
        make_tar(root / "tars" / f"{group.name}.tar", [*stuffing(group.name), *files_of(group)])
    return root


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    return [(f"./{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]


def stuffing(group: str) -> list[tuple[str, bytes]]:
    """Return tar members that no annotation names."""
    return [(f"./{group}9{i}.{kind}", os.urandom(700 + i)) for i in range(3) for kind in ("jpg", "json")]


def make_tar(path: Path, members: list[tuple[str, bytes]], **arguments: int) -> None:
    with tarfile.open(path, "w", **arguments) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def job_of(source: Path, tar: Path, folder: Path, group: str = "sa_000000") -> Job:
    annotations = read_annotations(source / "annotations" / "anno_train.parquet")
    rows = np.flatnonzero(in_groups(annotations, group))
    return Job(tar, folder, annotations.images(group, rows))


def meter() -> Meter:
    return Meter(Progress([0], [0], SimpleNamespace(value=False)), 0)
