"""The stages that make a record of a photo, in one list that every engine runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from seg2any.annotate.draft import Draft, Dropped
from seg2any.data.dataset import SampleError
from seg2any.layout.checks import LayoutError
from seg2any.layout.images import ImageError
from seg2any.system.errors import UserError, brief
from seg2any.system.patience import NoAnswer

CPU, MODEL, ENDPOINT = "cpu", "model", "endpoint"  # what a stage keeps busy
KEPT, DROPPED, FAILED = "kept", "dropped", "failed"
FAULTS = (SampleError, LayoutError, ImageError, NoAnswer)  # of one photo, while others go on
STOPPING = (UserError, OSError, MemoryError)  # a wrong setting, a full disk: of all photos


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline.

    place  what it keeps busy: CPU, MODEL or ENDPOINT
    open   makes the function that changes a draft, which may raise Dropped; it and the stage can be pickled
    """

    name: str
    place: str
    open: Callable[[], Callable[[Draft], None]]


@dataclass(frozen=True)
class Outcome:
    """The end of a photo's way.

    state   KEPT, DROPPED or FAILED
    reason  the rule that dropped it, or the stage that failed
    detail  the number that broke the rule, or what is wrong with which file
    record  of a kept photo: what the table holds about it, and what the card counts
    """

    key: str
    state: str
    reason: str = ""
    detail: str = ""
    record: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Return the outcome as JSON holds it."""
        return asdict(self)


class Work:
    """Consecutive stages, opened when the first draft comes; pickled unopened, for another process."""

    def __init__(self, stages: Sequence[Stage]):
        self.stages = tuple(stages)

    def __getstate__(self) -> dict:
        return {"stages": self.stages}

    @cached_property
    def _opened(self) -> list[tuple[str, Callable[[Draft], None]]]:
        return [(stage.name, stage.open()) for stage in self.stages]

    def advance(self, draft: Draft) -> Outcome | None:
        """Run the stages on a draft; return an outcome if its way ends here.

        Raises what STOPPING lists.
        """
        for name, work in self._opened:
            began = time.perf_counter()
            try:
                work(draft)
            except Dropped as dropped:
                return Outcome(draft.photo.key, DROPPED, dropped.rule, dropped.detail)
            except FAULTS as fault:
                return Outcome(draft.photo.key, FAILED, name, " ".join(str(fault).split()))
            except STOPPING:
                raise
            except Exception as error:  # of a network on one odd photo; many in a row stop the run
                return Outcome(draft.photo.key, FAILED, name, f"{type(error).__name__}: {brief(error, 200)}")
            draft.seconds[name] = round(time.perf_counter() - began, 5)
            draft.left[name] = len(draft.regions)
        return None

    def finish(self, draft: Draft) -> Outcome:
        """Run the stages, which are the last ones, and return the outcome."""
        return self.advance(draft) or Outcome(draft.photo.key, KEPT, record=record_of(draft))


def record_of(draft: Draft) -> dict:
    """Return what is kept about a finished draft, as JSON holds it."""
    return {
        "imagename": draft.file,
        "image_group": draft.photo.group,
        "name": draft.photo.name,
        "caption": draft.caption or "",
        "regions": [[region.id, region.caption] for region in draft.regions],
        "areas": [int(mask[1::2].sum()) for mask in draft.runs()],
        "size": list(draft.size),
        "aesthetic": draft.aesthetic,
        "source": draft.source,
        "tokens": list(draft.tokens),
        "seconds": draft.seconds,
        "left": draft.left,
    }
