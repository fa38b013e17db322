"""Run the stages on one machine: in this process, or in several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2

from seg2any.annotate.draft import Draft
from seg2any.annotate.photos import Photo
from seg2any.annotate.rules import Look, look_at
from seg2any.annotate.stages import FAULTS, Outcome, Stage, Work
from seg2any.system.workers import WorkerPool

CHUNK = 32  # photos that are looked at in one task


class Engine(Protocol):
    """A way to run work on many photos, in any order."""

    def looks(self, photos: Sequence[Photo]) -> Iterator[dict[str, Look | str]]:
        """Yield key -> first look, or what is wrong with the photo, for some photos at a time."""

    def outcomes(self, drafts: Sequence[Draft], stages: Sequence[Stage]) -> Iterator[Outcome]:
        """Yield the outcome of each draft once. Raises UserError if the stages refuse their settings."""


@dataclass(frozen=True)
class OneMachine:
    """Worker processes on this machine; 1 works in this process."""

    workers: int = 1

    def looks(self, photos: Sequence[Photo]) -> Iterator[dict[str, Look | str]]:
        """Look as `Engine` says."""
        chunks = [photos[start : start + CHUNK] for start in range(0, len(photos), CHUNK)]
        if self.workers == 1 or len(chunks) < 2:
            yield from map(look_at_all, chunks)
            return
        with WorkerPool(min(self.workers, len(chunks)), None, one_thread, (__name__,)) as pool:
            yield from (found for _, found in pool.results(_look, chunks))

    def outcomes(self, drafts: Sequence[Draft], stages: Sequence[Stage]) -> Iterator[Outcome]:
        """Work as `Engine` says."""
        work = Work(stages)
        if self.workers == 1 or len(drafts) < 2:
            yield from map(work.finish, drafts)
            return
        with WorkerPool(min(self.workers, len(drafts)), work, one_thread, (__name__,)) as pool:
            yield from (outcome for _, outcome in pool.results(Work.finish, drafts))


def look_at_all(photos: Sequence[Photo]) -> dict[str, Look | str]:
    """Look at some photos: key -> look, or one line about the fault."""
    found: dict[str, Look | str] = {}
    for photo in photos:
        try:
            found[photo.key] = look_at(Path(photo.path))
        except FAULTS as fault:
            found[photo.key] = " ".join(str(fault).split())
    return found


def _look(shared: None, photos: Sequence[Photo]) -> dict[str, Look | str]:
    return look_at_all(photos)


def one_thread() -> None:
    """Keep libraries from starting threads of their own: there is one worker per core already."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which is loaded later or never
    cv2.setNumThreads(1)
