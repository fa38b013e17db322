"""Plan a run: its rules, its sources of masks and captions, and the stages that they become for every photo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from seg2any.annotate.caption_file import open_captions
from seg2any.annotate.captions import SOURCE, WHAT, Describe, EndpointWriter, take_known, take_phrases
from seg2any.annotate.draft import Draft
from seg2any.annotate.masks import SegmenterMasks, read_sa1b
from seg2any.annotate.output import write_files
from seg2any.annotate.prompts import PROMPTS_SHA256, VERSION
from seg2any.annotate.rules import Rules, check_number, keep_large, keep_top_level
from seg2any.annotate.stages import CPU, ENDPOINT, MODEL, Stage
from seg2any.system.device import choose_device

PHRASES, FILE, LOCAL = "phrases", "file", "local"  # sources of captions, beside ENDPOINT


@dataclass(frozen=True)
class Predictor:
    """The aesthetics predictor: file of its head, folder or hub id of its CLIP, device."""

    head: Path
    clip: str
    device: str | None = None


@dataclass(frozen=True)
class Captions:
    """A source of captions.

    kind         ENDPOINT, LOCAL, PHRASES or FILE
    model        name at the endpoint, or folder or hub id
    url          of the endpoint
    file         parquet or lines of JSON
    device       of a local model; None: the best one of the machine
    concurrency  questions that one process has open at the endpoint
    """

    kind: str
    model: str = ""
    url: str = ""
    file: Path | None = None
    device: str | None = None
    concurrency: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """All that the captions depend on."""
        prompts = {"protocol": VERSION, "prompts": PROMPTS_SHA256} if self.kind in (ENDPOINT, LOCAL) else {}
        return {"kind": self.kind, "model": self.model, "file": self.file and self.file.name, **prompts}


@dataclass(frozen=True)
class Plan:
    """Settings of a run.

    root       folder of the set that is made
    masks      None: the JSON of SA-1B beside each photo
    masks_are  what identifies the source of masks
    predictor  None: photos are not scored
    photos     COPY or LINK, see `seg2any.annotate.output`
    """

    root: Path
    rules: Rules
    masks: SegmenterMasks | None
    masks_are: dict[str, Any]
    captions: Captions
    predictor: Predictor | None
    photos: str

    @property
    def settings(self) -> dict[str, Any]:
        """All that the records depend on, by name: a run with others is another set."""
        predictor = self.predictor and {"head": self.predictor.head.name, "clip": self.predictor.clip}
        sources = {"masks": self.masks_are, "captions": self.captions.identity, "aesthetics": predictor}
        return {**asdict(self.rules), **sources, "photos": self.photos}

    @property
    def uses_model(self) -> bool:
        """Tell whether a network is loaded in the processes that work."""
        return any(stage.place == MODEL for stage in stages_of(self))


def stages_of(plan: Plan) -> list[Stage]:
    """Return the stages in their order; each can be pickled and opens what it needs by itself."""
    found = [] if plan.predictor is None else [Stage("aesthetics", MODEL, partial(_open_predictor, plan))]
    found.append(Stage("masks", CPU, _open_sa1b) if plan.masks is None else Stage("masks", MODEL, plan.masks))
    for name, rule in (("top level", keep_top_level), ("area", keep_large), ("number", check_number)):
        found.append(Stage(name, CPU, partial(_with_rules, rule, plan.rules)))
    place = {ENDPOINT: ENDPOINT, LOCAL: MODEL}.get(plan.captions.kind, CPU)
    found.append(Stage("captions", place, partial(open_writer, plan.captions)))
    found.append(Stage("files", CPU, partial(_open_files, plan.root, plan.photos)))
    return found


def _open_sa1b() -> Callable[[Draft], None]:
    return read_sa1b


def _with_rules(rule: Callable[[Draft, Rules], None], rules: Rules) -> Callable[[Draft], None]:
    return partial(rule, rules=rules)


def _open_files(root: Path, photos: str) -> Callable[[Draft], None]:
    return partial(write_files, root=root, photos=photos)


def _open_predictor(plan: Plan) -> Callable[[Draft], None]:
    from seg2any.annotate.aesthetic import Aesthetics, check_aesthetic  # late: it takes seconds to import

    given = plan.predictor
    predictor = Aesthetics(given.head, given.clip, choose_device(given.device))
    return partial(check_aesthetic, rules=plan.rules, predictor=predictor)


def open_writer(captions: Captions) -> Callable[[Draft], None]:
    """Open a source of captions: a function that fills in those of a draft.

    Raises UserError for a file or a model that cannot be read; the function raises what `FAULTS` lists.
    """
    if captions.kind == PHRASES:
        return take_phrases
    if captions.kind == FILE:
        return partial(take_known, known=open_captions(captions.file), name=str(captions.file))
    if captions.kind == ENDPOINT:
        writer = EndpointWriter(captions.url, captions.model)
        return Describe(writer, captions.model, captions.concurrency)
    from seg2any.system.chat_model import ChatModel  # late: it takes seconds to import
    from seg2any.system.precision import choose_dtype

    device = choose_device(captions.device)
    return Describe(ChatModel(captions.model, WHAT, SOURCE, device, choose_dtype(None, device)), captions.model)
