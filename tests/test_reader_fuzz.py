"""Damage files of every kind that is read: each gives its content or one clear line, in little time and memory.

Whole files are damaged at random (seeded): bytes of pictures, archives and tables, values of JSON documents. Under the
strict limits, which are those of servers, a file takes 2 seconds of the processor and 500 MB at most. 500 files are
tried in every run of the tests, 10,000 with the long ones, which print a summary.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from seg2any.layout import Layout
from seg2any.layout.checks import LayoutError
from seg2any.system.errors import UserError
from seg2any.system.limits import STRICT, limited
from tests.fuzz_damage import Kind
from tests.fuzz_layouts import PICTURES, document, layouts, pictures
from tests.fuzz_runs import models, runs, tables
from tests.fuzz_sets import lines, prompts, sets, words, xsam

QUICK, LONG = 500, 10_000  # files
SLOW, LARGE = 2.0, 500 << 20  # seconds of the processor and bytes for one file


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Kind]]:
    """Make a whole file of every kind, and check that each is read."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "all.png").write_bytes(PICTURES["rgb.png"]())
    for name in PICTURES:
        suffix = Path(name).suffix
        (folder / f"one{suffix}.json").write_text(
            json.dumps({"segments_info": [{"mask": f"mask{suffix}", "text": "a"}]})
        )
    (folder / "map.json").write_text(json.dumps({"segments_info": document()["segments_info"][:1]}))
    (folder / "mask.png").write_bytes(PICTURES["bit.png"]())
    made = dict((*pictures(), *layouts(), *prompts()))
    for make in (tables, models, runs, sets, lines, words, xsam):
        made |= dict(make(folder))
    for name, kind in made.items():
        (folder / kind.place).parent.mkdir(parents=True, exist_ok=True)
        (folder / kind.place).write_bytes(kind.whole)
        if not name.startswith(("colour map", "mask")):  # some cannot hold regions, and are there to be refused
            with limited(STRICT), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(folder / kind.place)
    return folder, made


def peak_bytes() -> int:
    """Return the most memory that this process held since the last call of `forget_peak`; 0 where nobody knows."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def test_the_memory_of_a_reader_is_seen():
    forget_peak()
    before = peak_bytes()
    with mmap.mmap(-1, 64 << 20) as pages:  # not from memory that an earlier test has freed
        pages.write(bytes(64 << 20))
    assert peak_bytes() - before > 60 << 20 or before == 0


def try_files(folder: Path, made: dict[str, Kind], count: int, seed: int) -> str:
    """Damage and read `count` files, kind after kind; return a summary."""
    rng, outcomes, slowest, largest = np.random.default_rng(seed), Counter(), (0.0, ""), (0, "")
    for trial in range(count):
        name = list(made)[trial % len(made)]
        kind = made[name]
        path = folder / kind.place
        path.write_bytes(data := kind.damage(kind.whole, rng))
        forget_peak()
        before, start = peak_bytes(), time.process_time()
        try:
            with limited(STRICT), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(path)
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) > 10, (name, data)
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name}, file {trial}: {type(error).__name__}: {error}; {data[:2000]!r}") from error
        seconds, used = time.process_time() - start, peak_bytes() - before
        slowest, largest = max(slowest, (seconds, name)), max(largest, (used, name))
        assert seconds < SLOW and used < LARGE, (name, seconds, used >> 20, data[:2000])
        path.write_bytes(kind.whole)
    assert outcomes["refused"] > count / 5 and outcomes["read"] > count / 20
    told = f"{count} files of {len(made)} kinds: {outcomes['refused']} refused, {outcomes['read']} read"
    return f"{told}; longest {slowest[0]:.2f} s ({slowest[1]}), most memory {largest[0] >> 20} MiB ({largest[1]})"


def test_some_damaged_files_of_every_kind(kinds: tuple[Path, dict[str, Kind]]):
    print(try_files(*kinds, QUICK, seed=0))


@pytest.mark.long
def test_ten_thousand_damaged_files_of_every_kind(kinds: tuple[Path, dict[str, Kind]]):
    print(try_files(*kinds, LONG, seed=1))


def test_an_npz_that_claims_to_be_huge_is_refused_by_its_header(tmp_path: Path):
    description = b"{'descr': '|b1', 'fortran_order': False, 'shape': (1, 99999, 99999), }".ljust(117) + b"\n"
    header = b"\x93NUMPY\x01\x00" + len(description).to_bytes(2, "little") + description
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("masks.npy", header)
        archive.writestr("captions.npy", header)
    with pytest.raises(LayoutError, match="99999x99999 is more than 64 megapixels"):
        Layout.read(tmp_path / "x.npz")
