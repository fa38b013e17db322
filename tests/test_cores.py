"""Cores that a process may use and that are idle, told by files like those of Linux."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from seg2any.system import cores
from seg2any.system.processes import Process

TICKS = 100


@pytest.fixture
def machine(tmp_path: Path, monkeypatch) -> Path:
    """Four cores of two CPUs each: 0 and 4, 1 and 5, 2 and 6, 3 and 7; no control groups."""
    for cpu in range(8):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(cores, "SYSTEM", tmp_path)
    monkeypatch.setattr("os.sysconf", lambda _: TICKS)
    allow(monkeypatch, *range(8))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def allow(monkeypatch, *cpus: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(cpus), raising=False)


def load(monkeypatch, machine: Path, *busy: float) -> None:
    """Let CPU i be busy for the share busy[i] of the time that somebody sleeps; an hour was idle before."""
    clock = [0.0]

    def tell() -> None:
        rows = [f"cpu{i} 5 0 5 {3600 * TICKS + round(TICKS * clock[0] * (1 - b))} 0 0 0" for i, b in enumerate(busy)]
        write(machine / "proc/stat", "\n".join(["cpu 1 2 3 4 5 6 7", *rows, "", "intr 1"]))

    def sleep(_: float) -> None:
        clock[0] += 1
        tell()

    tell()
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])


@pytest.mark.parametrize(("cpus", "expected"), [(range(8), 4), ([0, 4], 1), ([0, 1, 4], 2), ([3], 1)])
def test_siblings_are_one_core_and_the_affinity_holds(machine, monkeypatch, cpus, expected: int):
    allow(monkeypatch, *cpus)
    assert cores.n_usable_cores() == expected


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("3:cpuset:/\n1:cpu,cpuacct:/a", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("1:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
    ],
)
def test_control_groups_limit_cores_and_workers(machine, group: str, files: dict[str, str], quota: float):
    write(machine / "proc/self/cgroup", group + "\n")
    for name, text in files.items():
        write(machine / "sys/fs/cgroup" / name, text + "\n")
    assert cores.cpu_quota() == quota
    assert cores.n_usable_cores() == max(1, min(4, int(min(quota, 9))))
    assert cores.n_processes_at_a_time() == max(1, min(8, int(min(quota, 9)))) == Process().cores


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        ([0] * 8, 4),
        ([0.1] * 8, 4),
        ([1] * 8, 1),
        ([0, 0, 0, 0, 1, 0, 0, 0], 3),  # its sibling has half a core left
        ([1, 0, 0, 0, 1, 0, 0, 0], 3),
        ([1, 1, 0.5, 0, 0, 0, 0, 0.5], 1),
    ],
)
def test_cores_are_idle_if_all_their_cpus_are(machine, monkeypatch, busy: list[float], expected: int):
    load(monkeypatch, machine, *busy)
    assert cores.n_idle_cores() == expected


def test_load_on_cores_of_others_does_not_count(machine, monkeypatch):
    allow(monkeypatch, 2, 3)
    load(monkeypatch, machine, 1, 1, 0, 0, 1, 1, 1, 1)
    assert cores.n_idle_cores() == 2


def test_a_quota_bounds_idle_cores(machine, monkeypatch):
    write(machine / "proc/self/cgroup", "0::/\n")
    write(machine / "sys/fs/cgroup/cpu.max", "300000 100000")
    load(monkeypatch, machine, *[0] * 8)
    assert cores.n_idle_cores() == 3


def test_systems_that_do_not_tell(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cores, "SYSTEM", tmp_path)
    assert cores.n_usable_cores() == cores.n_idle_cores() == 0 and cores.n_processes_at_a_time() >= 1


def test_without_a_count_of_idle_time_all_cores_are_taken(machine):
    assert cores.n_idle_cores() == 4
