"""Run the stages on a cluster by Ray Data (optional: `pip install -r requirements-ray.txt`).

    photos --> CPU stages: tasks --> model stages: a pool of actors --> endpoint stages: another pool --> outcomes

Consecutive stages of one kind are one operator; the drafts between operators are text, without pixels. The pool in
front of an endpoint has a fixed size, so no more questions are open than its actors ask, and Ray holds back the stages
before it while they wait. The output folder is one that all nodes see. What a dying node takes with it Ray does again;
a record that arrives twice for that reason is counted once, and one that does not arrive is asked for again.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from seg2any.annotate.draft import Draft
from seg2any.annotate.engine import look_at_all
from seg2any.annotate.photos import Photo
from seg2any.annotate.rules import Look
from seg2any.annotate.stages import CPU, MODEL, Outcome, Stage, Work
from seg2any.system.errors import UserError

INSTALL = "pip install -r requirements-ray.txt"
REFUSED = "refused"  # state of an outcome that ends the run: a wrong setting, a full disk
BATCH = 8  # photos of one call of an operator
BLOCKS = 20_000  # pieces of the list of photos at most


@dataclass(frozen=True)
class RayCluster:
    """A cluster of Ray.

    address      of its head, or None: the one of the environment, else a cluster on this machine alone
    models       actors that hold networks, and `gpus` of each; None: 1 if the cluster has GPUs
    questioners  actors that ask the endpoint
    """

    address: str | None = None
    models: int = 1
    gpus: float | None = None
    questioners: int = 4

    def looks(self, photos: Sequence[Photo]) -> Iterator[dict[str, Look | str]]:
        """Look as `Engine` says."""
        ray = self._connected()
        if not photos:
            return
        rows = ray.data.from_items([asdict(one) for one in photos], override_num_blocks=_blocks(len(photos)))
        for row in _rows(rows.map_batches(_look, batch_size=BATCH)):
            found = json.loads(row["found"])
            yield {
                row["key"]: found
                if isinstance(found, str)
                else Look(tuple(found["size"]), found["hash"], found["bytes"])
            }

    def outcomes(self, drafts: Sequence[Draft], stages: Sequence[Stage]) -> Iterator[Outcome]:
        """Work as `Engine` says."""
        ray = self._connected()
        rows = [{"draft": one.to_json(), "outcome": ""} for one in drafts]
        data = ray.data.from_items(rows, override_num_blocks=_blocks(len(rows)))
        parts = [(place, tuple(own)) for place, own in groupby(stages, lambda stage: stage.place)]
        for number, (place, own) in enumerate(parts, start=1):
            arguments = {"stages": own, "is_last": number == len(parts), "run": f"{uuid.uuid4().hex}"}
            if place == CPU:
                data = data.map_batches(_task, batch_size=BATCH, fn_kwargs=arguments)
                continue
            pool = ray.data.ActorPoolStrategy(size=self.models if place == MODEL else self.questioners)
            gpus = self._gpus(ray) if place == MODEL else None
            data = data.map_batches(
                Operator, batch_size=BATCH, compute=pool, fn_constructor_kwargs=arguments, num_gpus=gpus
            )
        for row in _rows(data):
            outcome = Outcome(**json.loads(row["outcome"]))
            if outcome.state == REFUSED:
                raise UserError(outcome.detail)
            yield outcome

    def _connected(self) -> Any:
        """Import Ray and connect to the cluster. Raises UserError."""
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise UserError(f"--engine ray: Ray Data cannot be imported ({error}); `{INSTALL}`") from None
        if not ray.is_initialized():
            try:
                ray.init(
                    address=self.address or os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="error"
                )
            except (ConnectionError, ValueError) as error:
                raise UserError(f"--ray_address {self.address}: no cluster answers ({error}); start it first") from None
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        return ray

    def _gpus(self, ray: Any) -> float:
        if self.gpus is not None:
            return self.gpus
        return float(ray.cluster_resources().get("GPU", 0) > 0)


def _blocks(count: int) -> int:
    return max(1, min(BLOCKS, math.ceil(count / BATCH)))


def _rows(data: Any) -> Iterator[dict[str, Any]]:
    """Yield rows as they are finished."""
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _look(batch: dict[str, Any]) -> dict[str, list[str]]:
    columns = (batch[name].tolist() for name in ("key", "path", "name", "group"))
    found = look_at_all([Photo(*values) for values in zip(*columns, strict=True)])
    texts = [json.dumps(one if isinstance(one, str) else asdict(one)) for one in found.values()]
    return {"key": list(found), "found": texts}


class Operator:
    """Consecutive stages on drafts, as Ray calls them; `is_last` if an outcome follows for every draft."""

    def __init__(self, stages: tuple[Stage, ...], is_last: bool, run: str):
        self.work, self.is_last = Work(stages), is_last

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        rows = [self._one(*row) for row in zip(batch["draft"].tolist(), batch["outcome"].tolist(), strict=True)]
        return {"draft": [draft for draft, _ in rows], "outcome": [outcome for _, outcome in rows]}

    def _one(self, text: str, ended: str) -> tuple[str, str]:
        if ended:
            return "", ended
        draft = Draft.from_json(text)
        try:
            outcome = self.work.finish(draft) if self.is_last else self.work.advance(draft)
        except (UserError, OSError) as error:  # Ray would wrap it until nobody can tell what it was
            outcome = Outcome(draft.photo.key, REFUSED, detail=str(error))
        return ("", json.dumps(outcome.to_dict())) if outcome else (draft.to_json(), "")


_operators: dict[str, Operator] = {}  # of this process, which Ray uses for many tasks


def _task(batch: dict[str, Any], stages: tuple[Stage, ...], is_last: bool, run: str) -> dict[str, list[str]]:
    if run not in _operators:
        _operators.clear()
        _operators[run] = Operator(stages, is_last, run)
    return _operators[run](batch)
