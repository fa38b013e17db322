"""`infer.py` in several processes: each image is made once, as by one process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from infer import main
from seg2any.generate.plan import own_jobs
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from tests import forked
from tests.golden_root import REPOSITORY
from tests.infer_command import command, environment, layout

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# --multi_gpu: without it accelerate's launcher starts only one process on a machine without a GPU
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--main_process_port", "0"]


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for number in range(5):
        layout(f"l{number}", side=64 if number < 3 else 80, seed=number).write(tmp_path / "masks" / f"l{number}.json")
    return tmp_path / "masks"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Call `infer.py` as one of a launcher's processes, without starting a process."""

    def run(rank: int = 0, count: int = 1, **flags: object) -> str:
        for name, value in (("RANK", rank), ("WORLD_SIZE", count)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(sys, "argv", command(**flags)[1:])
        assert main() == 0
        return capsys.readouterr().out

    return run


def pixels(folder: Path) -> dict[str, np.ndarray]:
    """Read the pixels of every image; hidden files of killed writers are ignored."""
    paths = folder.glob("[!.]*") if folder.exists() else ()
    return {path.name: np.asarray(Image.open(path)) for path in paths}


def forked_rest(words: list[str], folder: Path) -> str:
    """Run a command line in two forked processes and return what they printed."""

    def make(rank: int) -> None:
        assert main() == 0

    with mock.patch.object(sys, "argv", words[1:]):
        assert forked.run(make, folder / "rest", processes=2) == [0, 0], (folder / "rest").read_text()
    return (folder / "rest").read_text()


def launched_rest(words: list[str], folder: Path) -> str:
    """Run a command line by accelerate's launcher and return what its two processes printed."""
    words = [*ACCELERATE, *words[1:]]
    rest = subprocess.run(words, capture_output=True, text=True, timeout=240, env=environment())
    assert rest.returncode == 0, rest.stderr
    return rest.stdout


@pytest.mark.same_numbers("a run or a folder after a kill, and in one go | equal")
@pytest.mark.parametrize("rest", [forked_rest, pytest.param(launched_rest, marks=pytest.mark.long)])
def test_after_a_kill_two_processes_make_the_rest_and_each_image_once(
    masks: Path, tmp_path: Path, call, monkeypatch, rest: Callable[[list[str], Path], str]
):
    flags, two = {"seg_mask_path": masks, "batch_size": 2}, tmp_path / "two"
    call(output_path=tmp_path / "one", **flags)
    expected = pixels(tmp_path / "one")
    monkeypatch.setattr(sys, "argv", command(output_path=two, **flags)[1:])

    def die_with_the_first_image_not_yet_in_place(rank: int) -> None:
        if rank == 1:
            monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert main() == 0

    killed = forked.run(die_with_the_first_image_not_yet_in_place, tmp_path / "log", processes=2)
    assert killed[1] == -signal.SIGKILL, (tmp_path / "log").read_text()
    there = pixels(two)
    assert "l2.png" not in there, "the share of the second process"

    printed = rest(command(output_path=two, **flags), tmp_path)
    told = re.findall(r"process (\d) of 2: (\d) images to make on cpu in float32, (\d) are there already", printed)
    shares = {who: (int(to_do), int(done)) for who, to_do, done in told}
    assert shares.keys() == {"1", "2"} and shares["2"] == (1, 0), "batches l0 l1, l2, l3 l4 in turn"
    assert sum(shares["1"]) == 4 and sum(to_do for to_do, _ in shares.values()) == 5 - len(there)
    found = pixels(two)
    assert expected.keys() == found.keys() == {f"l{number}.png" for number in range(5)}
    assert all(np.array_equal(expected[name], found[name]) for name in expected)

    (two / "l4.png").unlink()
    flags["output_path"] = two
    assert "process 2 of 2: 0 images to make on cpu in float32, 1 are there already" in call(1, 2, **flags)
    assert "process 1 of 2: 1 images to make on cpu in float32, 3 are there already" in call(0, 2, **flags)
    assert pixels(two).keys() == expected.keys()


def test_the_failure_of_one_process_ends_the_run_with_an_error(masks: Path, tmp_path: Path):
    broken = tmp_path / "fails.py"
    broken.write_text(
        "import os, pathlib, runpy, sys, time\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--output_path') + 1])\n"
        "if os.environ['RANK'] == '1':\n"
        "    while not list(out.glob('*.png')): time.sleep(0.05)\n"
        "    sys.exit(7)\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        f"runpy.run_path({str(REPOSITORY / 'infer.py')!r}, run_name='__main__')\n"
    )
    flags = {"seg_mask_path": masks, "output_path": tmp_path / "out", "num_images_per_prompt": 500}
    words = [*TORCHRUN, str(broken), *command(**flags)[2:]]
    failed = subprocess.run(words, capture_output=True, text=True, timeout=240, env=environment())
    assert failed.returncode != 0 and "exitcode  : 7" in failed.stderr
    made = pixels(tmp_path / "out")  # decodes every image
    assert 1 <= len(made) < 2500, "the other process was ended before its last image"


class Item:
    """The attributes of a job that the division into shares reads."""

    def __init__(self, number: int, size: int):
        self.path = Path(f"{number}.png")
        report = type("Report", (), {"mask_size": (size, size)})()
        self.layout = type("Surveyed", (), {"report": report})()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_shares_are_whole_batches_and_together_everything_once(count: int, batch_size: int):
    sizes = np.random.default_rng(count).integers(1, 4, 23)
    jobs = [Item(number, size) for number, size in enumerate(sizes)]
    shares = [own_jobs(jobs, batch_size, Process(index, count)) for index in range(count)]
    assert sorted(job.path for share in shares for job in share) == sorted(job.path for job in jobs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 3 * batch_size
    assert own_jobs(jobs, batch_size, Process()) == jobs


def test_rank_and_world_size_come_from_the_launcher():
    assert Process.of({}) == Process() and str(Process()) == ""
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Process.of(told) == Process(5, 8, 1, 4) and str(Process.of(told)) == "process 6 of 8: "
    with pytest.raises(UserError, match="RANK 2 of WORLD_SIZE 2"):
        Process.of({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="WORLD_SIZE"):
        Process.of({"RANK": "0", "WORLD_SIZE": "two"})
