"""Build what `annotate` runs from its flags: the plan and the engine."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields

from seg2any.annotate.engine import Engine, OneMachine
from seg2any.annotate.masks import SA1B, SegmenterMasks
from seg2any.annotate.plan import ENDPOINT, Plan, Predictor
from seg2any.annotate.ray_engine import RayCluster
from seg2any.annotate.rules import Rules
from seg2any.commands.caption_flags import captions_of
from seg2any.commands.segment import parser_of
from seg2any.commands.segment_methods import METHODS
from seg2any.segment.segmenter import Segmenter
from seg2any.system.cores import n_processes_at_a_time
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE

RAY = "ray"


@dataclass(frozen=True)
class OpenMethod:
    """Load a method of `segment` in the process that uses it, on the device that is there."""

    given: Namespace

    def __call__(self) -> Segmenter:
        """Load it. Raises UserError."""
        from seg2any.commands.segment_folder import machine_of  # late, as below: it takes seconds to import

        return METHODS[self.given.method].load().open_segmenter(self.given, machine_of(self.given, ALONE))


def plan_of(given: Namespace, rest: Sequence[str]) -> Plan:
    """Build the plan of the flags; `rest` are flags of `segment`. Raises UserError."""
    masks, masks_are = _masks_of(given, rest)
    head = given.aesthetic_head
    return Plan(
        root=given.output,
        rules=Rules(**{field.name: getattr(given, field.name) for field in fields(Rules)}),
        masks=masks,
        masks_are=masks_are,
        captions=captions_of(given, _questioners(given)),
        predictor=None if head is None else Predictor(head, given.aesthetic_clip, given.device),
        photos=given.photos,
    )


def _masks_of(given: Namespace, rest: Sequence[str]) -> tuple[SegmenterMasks | None, dict]:
    """Return the source of masks, None for SA-1B's, and what identifies it."""
    if given.masks == SA1B:
        return None, {"method": SA1B}
    parser = parser_of(f"annotate --masks {given.masks} --", given.masks)
    flags = parser.parse_args(["photos", f"--method={given.masks}", *rest])
    if flags.captions is not None:
        raise UserError(f"-- --captions {flags.captions}: annotate has a flag of that name; give it before the --")
    if flags.device is None:
        flags.device = given.device
    method = METHODS[given.masks]
    method.load().check(flags, method.check(given.masks, flags))
    from seg2any.commands.segment_folder import asked_of, machine_of

    asked = asked_of(flags, method.load(), machine_of(flags, ALONE))
    known = {name: value for name, value in asked.recipe.items() if name not in ("versions", "device")}
    return SegmenterMasks(OpenMethod(flags), asked.prompt, given.masks), known


def engine_of(given: Namespace, plan: Plan) -> Engine:
    """Build the engine of the flags."""
    if given.engine == RAY:
        return RayCluster(given.ray_address, given.models, given.gpus, given.questioners)
    usual = 1 if plan.uses_model else n_processes_at_a_time()
    return OneMachine(given.workers or usual)


def _questioners(given: Namespace) -> int:
    """Return how many processes ask the endpoint at a time."""
    if given.captions != ENDPOINT:
        return 1
    return given.questioners if given.engine == RAY else given.workers or n_processes_at_a_time()
