"""`annotate --engine ray` on a real local cluster: the same records as one machine, also when a node dies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seg2any.annotate.draft import Draft
from seg2any.annotate.engine import OneMachine
from seg2any.annotate.output import COPY, RAW, TABLE
from seg2any.annotate.plan import FILE, Captions, Plan
from seg2any.annotate.ray_engine import RayCluster
from seg2any.annotate.rules import Rules
from seg2any.annotate.run import JOURNAL, make_set
from seg2any.annotate.stages import ENDPOINT, Outcome, Stage
from seg2any.system.errors import UserError
from tests import annotate_set
from tests.stub_judge import stub_judge

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="ray is not installed: pip install -r requirements-ray.txt")
GOOD = 40


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ |= {
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",
    }
    memory = {"object_store_memory": 200 << 20, "num_cpus": 4}
    made = Cluster(initialize_head=True, head_node_args=memory)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made, memory
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("photos")
    annotate_set.plant(folder, GOOD)
    return folder, annotate_set.write_captions(folder.parent / "captions.jsonl", folder)


def lines_of(root: Path) -> list[str]:
    return [line for line in (root / JOURNAL).read_text().splitlines() if line.startswith('{"outcome"')]


def files_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / RAW).rglob("*") if path.is_file() and path.name[0] != "."}


def plan(root: Path, captions: Path) -> Plan:
    rules = Rules(min_side=200, max_side=600, max_aspect=2)
    return Plan(root, rules, None, {}, Captions(FILE, file=captions), None, COPY)


@dataclass(frozen=True)
class Dying(RayCluster):
    """A cluster that loses a node while a slow stage runs on it."""

    notes: Path = Path()
    kill: object = None

    def outcomes(self, drafts: Sequence[Draft], stages: Sequence[Stage]) -> Iterator[Outcome]:
        slow = Stage("slow", ENDPOINT, partial(annotate_set.slow_stage, self.notes, 0.2))
        for number, outcome in enumerate(super().outcomes(drafts, [*stages[:-1], slow, stages[-1]])):
            yield outcome
            if number == 5:
                self.kill()


def test_a_node_that_dies_loses_and_doubles_no_record(cluster, photos, tmp_path):
    made, memory = cluster
    (folder, captions), notes = photos, tmp_path / "notes"
    notes.mkdir()
    node = made.add_node(**memory)
    made.wait_for_nodes()

    def kill() -> None:
        made.remove_node(node, allow_graceful=False)

    summary = make_set(plan(tmp_path / "ray", captions), [folder], Dying(questioners=6, notes=notes, kill=kill))
    keys = [json.loads(line)["outcome"]["key"] for line in lines_of(tmp_path / "ray")]
    one = make_set(plan(tmp_path / "one", captions), [folder], OneMachine())
    assert len(keys) == len({*keys}) == 45  # each once; the photos that cannot be read are in no outcome
    assert (summary.kept, summary.dropped) == (one.kept, one.dropped) and summary.kept == GOOD + 2
    assert [failed.key for failed in summary.failed] == [failed.key for failed in one.failed]
    assert pq.read_table(tmp_path / "ray" / TABLE).equals(pq.read_table(tmp_path / "one" / TABLE))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")
    begun, ended = ({path.stem for path in notes.glob(f"{node.node_id}-*.{end}")} for end in ("begun", "ended"))
    assert begun - ended, "no work was under way on the node when it died: nothing was tested"


def test_no_more_questions_are_open_than_the_pool_asks_and_a_refusal_ends_the_run(
    cluster, photos, tmp_path, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder, _ = photos
    with stub_judge() as server:
        server.delay = 0.05
        asked = Captions(ENDPOINT, "stub", server.url, concurrency=2)
        made = replace(plan(tmp_path / "set", Path()), captions=asked)
        summary = make_set(made, [folder], RayCluster(questioners=2))
        assert summary.kept == GOOD + 2 and 2 <= server.most_open <= 4
    with stub_judge(*("401",) * 99) as server:
        refused = replace(made, root=tmp_path / "refused", captions=replace(asked, url=server.url))
        with pytest.raises(UserError, match="captions endpoint .* HTTP 401; set OPENAI_API_KEY"):
            make_set(refused, [folder], RayCluster(questioners=2))
