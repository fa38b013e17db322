"""Fill a folder with images: find out which are finished, and make the missing ones.

infer.py and the evaluation follow the same rules: an image is written whole or not at all, holds its recipe, and is
skipped if it exists with the same recipe.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from PIL import Image
from tqdm import tqdm

from seg2any.generate.recipe import BrokenImage, differences, read_recipe
from seg2any.generate.session import ImageOptions, Session
from seg2any.layout import Layout
from seg2any.layout.checks import LayoutWarning
from seg2any.system.errors import UserError
from seg2any.system.files import check_folder


class State(Enum):
    """The state of an image file."""

    MISSING = "missing"
    BROKEN = "broken"  # an interrupted copy, or not an image
    FOREIGN = "foreign"  # an image without a recipe
    OTHER = "other"  # an image with another recipe
    FINISHED = "finished"


@dataclass(frozen=True)
class Found:
    """The state of an image file, and for `OTHER` the names of what differs."""

    state: State
    differs: tuple[str, ...] = ()

    @property
    def is_to_be_made(self) -> bool:
        """True if the file is missing or broken."""
        return self.state in (State.MISSING, State.BROKEN)


def look_at(path: Path, recipe: Callable[[], dict]) -> Found:
    """Decode an image file and compare its recipe with the expected one."""
    if not path.exists():
        return Found(State.MISSING)
    try:
        found = read_recipe(path)
    except BrokenImage:
        return Found(State.BROKEN)
    if found is None:
        return Found(State.FOREIGN)
    changed = differences(found, recipe())
    return Found(State.OTHER, tuple(changed[:4])) if changed else Found(State.FINISHED)


class Job(Protocol):
    """One image to make."""

    path: Path
    seed: int


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Batch(Generic[J]):
    """Images that are made together; only `missing` ones are written."""

    jobs: tuple[J, ...]
    missing: tuple[J, ...]


def make_images(
    session: Session,
    batches: Sequence[Batch[J]],
    sampling: ImageOptions,
    read: Callable[[J], Layout],
    write: Callable[[J, Layout, Image.Image], None],
    shown: bool,
    failed: Callable[[J, Exception], None] | None = None,
    checked: Callable[[J, Layout, Image.Image], J] | None = None,
) -> None:
    """Make images batch by batch, while one thread reads the next layouts and another writes the last images.

    Batches are written in order. A batch is started when the one before the last is written, so at most two are in
    memory. If anything fails, what is being written is finished first.

    read    must not call `warnings.catch_warnings`, which acts on all threads; warnings about layouts are ignored
    shown   show progress bars
    failed  is told of each image that cannot be read or made, even alone; it raises the error to stop. None: the first
            error is raised
    checked looks at each image before it is written, with the network if it likes, and returns the job to write
    """
    session.show_progress(shown)
    n_missing = sum(len(batch.missing) for batch in batches)
    with (
        tqdm(total=n_missing, desc="images", unit="image", disable=not shown) as bar,
        _quiet_reading(),
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(1) as writer,
    ):
        layouts_of = (reader.submit(_read_batch, batch, read) for batch in batches)
        coming, written = next(layouts_of, None), None
        for batch in batches:
            wait([coming])
            reading, coming = coming, next(layouts_of, None)  # the next ones are read while the network runs
            for part, layouts, images in _made(session, batch, sampling, (reading, read), failed):
                if checked is not None:
                    part = replace(part, jobs=tuple(map(checked, part.jobs, layouts, images)))
                if written is not None:
                    bar.update(written.result())
                written = writer.submit(_write_batch, part, layouts, images, write)
        if written is not None:
            bar.update(written.result())


def _made(
    session: Session,
    batch: Batch[J],
    sampling: ImageOptions,
    reading: tuple[Future[list[Layout]], Callable[[J], Layout]],
    failed: Callable[[J, Exception], None] | None,
) -> Iterator[tuple[Batch[J], list[Layout], Sequence[Image.Image]]]:
    """Yield a batch with its layouts and images; if it fails, those of its images that can be made alone.

    reading  the layouts to come, and how to read one again
    """
    layouts, read = reading
    try:
        images = _images(session, batch, layouts.result(), sampling)
    except Exception as error:
        if failed is None:
            raise
        if len(batch.jobs) == 1:
            return failed(batch.jobs[0], error)
    else:
        yield batch, layouts.result(), images
        return
    for job in batch.missing:
        alone = Batch((job,), (job,))
        try:
            again = _read_batch(alone, read)
            images = _images(session, alone, again, sampling)
        except Exception as error:
            failed(job, error)
        else:
            yield alone, again, images


def _images(
    session: Session, batch: Batch[J], layouts: Sequence[Layout], sampling: ImageOptions
) -> Sequence[Image.Image]:
    return session.images_quietly(layouts, sampling, seeds=[job.seed for job in batch.jobs])


@contextmanager
def _quiet_reading() -> Iterator[None]:
    """Ignore warnings about layouts and of Pillow in all threads: the survey has shown what matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayoutWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _read_batch(batch: Batch[J], read: Callable[[J], Layout]) -> list[Layout]:
    return [read(job) for job in batch.jobs]


def _write_batch(
    batch: Batch[J],
    layouts: Sequence[Layout],
    images: Sequence[Image.Image],
    write: Callable[[J, Layout, Image.Image], None],
) -> int:
    """Write the missing images of a batch; return their number."""
    missing = {job.path for job in batch.missing}
    for job, layout, image in zip(batch.jobs, layouts, images, strict=True):
        if job.path in missing:
            write(job, layout, image)
    return len(missing)


def open_folder(folder: Path, flag: str = "--output_path") -> None:
    """Create the folder of a flag. Raises UserError if nothing can be written to it."""
    check_folder(folder, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror}); give a folder that can be written to"
        raise UserError(f"{flag} {folder}: {reason}") from error
