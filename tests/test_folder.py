"""Filling a folder: reading and writing beside the network, in order, and what survives an error."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from seg2any.generate.folder import Batch, make_images
from seg2any.generate.session import ImageOptions
from seg2any.layout.checks import LayoutWarning
from seg2any.system.errors import UserError

PATIENCE = 20  # seconds until a test gives up waiting for a thread


@dataclass(frozen=True)
class Job:
    path: Path
    seed: int


class Studio:
    """Stands in for session, reader and writer; writes down what happens, and fails where it is told to.

    fails   (what is done, number of the batch) and the error to raise there
    waits   (what is done, number of the batch) and the event to wait for there
    """

    def __init__(self, n_batches: int, fails=None, waits=None):
        self.batches = [
            batch_of(Job(Path(str(2 * n)), 2 * n), Job(Path(str(2 * n + 1)), 2 * n + 1)) for n in range(n_batches)
        ]
        self.fails, self.waits, self.done, self.layouts = fails or {}, waits or {}, {}, {}
        self.written, self.computed = [], []

    def event(self, what: str, batch: int) -> threading.Event:
        return self.done.setdefault((what, batch), threading.Event())

    def _do(self, what: str, batch: int) -> None:
        if (what, batch) in self.waits:
            assert self.event(*self.waits[what, batch]).wait(PATIENCE), f"{what} {batch} waited in vain"
        if (what, batch) in self.fails:
            raise self.fails[what, batch]

    def show_progress(self, shown: bool) -> None:
        pass

    def read(self, job: Job) -> str:
        self._do("read", job.seed // 2)
        warnings.warn("seen before", LayoutWarning, stacklevel=1)
        self.event("read", job.seed // 2).set()
        return f"layout {job.seed}"

    def images_quietly(self, layouts, sampling, seeds) -> list[str]:
        assert layouts == [f"layout {seed}" for seed in seeds]
        self.computed.append(seeds[0] // 2)
        self._do("compute", seeds[0] // 2)
        self.event("compute", seeds[0] // 2).set()
        return [f"image {seed}" for seed in seeds]

    def write(self, job: Job, layout: str, image: str) -> None:
        self.event("write", job.seed // 2).set()
        self._do("write", job.seed // 2)
        assert (layout, image) == (f"layout {job.seed}", f"image {job.seed}")
        self.written.append(job.seed)

    def run(self) -> list[int]:
        make_images(self, self.batches, ImageOptions(), self.read, self.write, shown=False)
        return self.written


def batch_of(*jobs: Job) -> Batch[Job]:
    return Batch(jobs, jobs)


def test_the_next_batch_is_read_and_the_last_written_while_the_network_runs():
    studio = Studio(3, waits={("compute", 0): ("read", 1), ("write", 0): ("compute", 1)})
    assert studio.run() == [0, 1, 2, 3, 4, 5]


def test_images_that_exist_are_made_again_but_not_written():
    studio = Studio(2)
    studio.batches[0] = Batch(studio.batches[0].jobs, studio.batches[0].jobs[1:])
    assert studio.run() == [1, 2, 3] and studio.computed == [0, 1]
    assert Studio(0).run() == []


def test_no_more_than_two_batches_are_in_memory():
    """Let the first batch be written only when the third one is computed, which must not happen."""
    studio = Studio(3, waits={("write", 0): ("compute", 2)}, fails={("write", 0): UserError("disk full")})
    studio.event("compute", 2)
    thread = threading.Thread(target=lambda: pytest.raises(UserError, studio.run))
    thread.start()
    assert studio.event("compute", 1).wait(PATIENCE)
    thread.join(0.3)
    assert thread.is_alive() and studio.computed == [0, 1]
    studio.event("compute", 2).set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and studio.computed == [0, 1]


@pytest.mark.parametrize(
    ("where", "written", "computed"),
    [
        (("read", 0), [], []),
        (("read", 2), [0, 1, 2, 3], [0, 1]),
        (("compute", 0), [], [0]),
        (("compute", 2), [0, 1, 2, 3], [0, 1, 2]),
        (("write", 0), [], [0, 1]),
        (("write", 2), [0, 1, 2, 3], [0, 1, 2]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_an_error_is_raised_as_it_is_and_finished_batches_are_written(where, written, computed):
    error = (KeyboardInterrupt if where == ("compute", 2) else UserError)("broken")
    studio = Studio(3, fails={where: error})
    with pytest.raises(type(error)) as raised:
        studio.run()
    assert raised.value is error and studio.written == written and studio.computed == computed


@pytest.mark.parametrize("what", ["read", "compute"])
def test_images_that_fail_even_alone_are_named_and_the_others_are_made(what: str):
    class Picky(Studio):
        """Fails at image 3 only, in a batch as alone."""

        def read(self, job: Job) -> str:
            if what == "read" and job.seed == 3:
                raise UserError("image 3")
            return super().read(job)

        def images_quietly(self, layouts, sampling, seeds):
            if what == "compute" and 3 in seeds:
                raise MemoryError("image 3")
            return super().images_quietly(layouts, sampling, seeds)

    studio, failed = Picky(3), []
    make_images(
        *(studio, studio.batches, ImageOptions(), studio.read, studio.write, False),
        failed=lambda job, error: failed.append((job.seed, str(error))),
    )
    assert studio.written == [0, 1, 2, 4, 5] and failed == [(3, "image 3")]


def test_an_error_of_writing_stops_even_a_run_that_goes_on():
    studio = Studio(3, fails={("write", 0): OSError("disk full")})
    with pytest.raises(OSError, match="disk full"):
        make_images(
            *(studio, studio.batches, ImageOptions(), studio.read, studio.write, False),
            failed=lambda job, error: pytest.fail("it is not about this image alone"),
        )


def test_warnings_of_the_run_are_shown_and_their_filters_are_as_before():
    class Talkative(Studio):
        def images_quietly(self, *given, **more):
            warnings.warn("about the run", UserWarning, stacklevel=1)
            return super().images_quietly(*given, **more)

    before = list(warnings.filters)
    with pytest.warns(UserWarning) as caught:
        Talkative(3).run()
    assert {str(warning.message) for warning in caught} == {"about the run"} and warnings.filters == before
