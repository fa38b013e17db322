"""Every file that the program writes is the old one or the new one after any fault, and never a part."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from benchmarks.result_lines import leave
from seg2any.adapters.card import AdapterCard, write_card
from seg2any.adapters.files import save_adapters
from seg2any.data import bucket_map, left_out, picture_index
from seg2any.data.sacap.report import write_report
from seg2any.evaluation.labels.label_maps import Conversion
from seg2any.evaluation.metrics.result import mean
from seg2any.evaluation.report.page import write_page
from seg2any.evaluation.report.pictures import Shown, read_pictures, save_pictures
from seg2any.evaluation.report.results import make_run, write_run
from seg2any.evaluation.vqa.answers import Answers
from seg2any.generate.recipe import read_recipe, save_image
from seg2any.system.files import append_lines, atomic_write, remove_stale
from seg2any.system.weights import folder_digest
from seg2any.training import config
from seg2any.training.checkpoint import Checkpoints
from seg2any.training.log import _keep_until
from seg2any.training.state_file import write_state
from seg2any.training.store import CacheError, ShardStore, key_of
from seg2any.training.tasks.generation import write_images
from tests import faults
from tests.faults import KILL
from tests.infer_command import layout
from tests.tiny_flux import adapted, randomize_adapters

pytestmark = pytest.mark.slow


def picture(version: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(version).integers(0, 256, (48, 48, 3), np.uint8))


def save_picture(name: str) -> Callable[[Path, int], None]:
    return lambda folder, version: save_image(picture(version), {"seed": version}, folder / name)


def convert(folder: Path, version: int) -> None:
    source = folder.parent / "labels.png"
    Image.fromarray(np.full((64, 64), version, np.uint8)).save(source)
    Conversion(size=(16, 16))((source, folder / "labels.png"))


def count(folder: Path, version: int) -> None:
    schema = bucket_map.SCHEMA
    table = pa.table({field.name: pa.array([], field.type) for field in schema}, schema)
    kinds = (str(field.type) for field in dataclasses.fields(bucket_map.Origin))
    origin = bucket_map.Origin(*(version if "int" in kind else str(version) for kind in kinds))
    bucket_map.write_tables(folder / "map.parquet", origin, [table])


def save_run(folder: Path, version: int) -> None:
    config.load([f"--seed={version}"]).save(folder / "config.yaml")


def keep(folder: Path, version: int) -> None:
    source = folder.parent / "log.jsonl"
    source.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(5)))
    if not (folder / "log.jsonl").exists():
        (folder / "log.jsonl").write_bytes(source.read_bytes())
    _keep_until(folder / "log.jsonl", 4 - version)


def index(folder: Path, version: int) -> None:
    checked = picture_index.Checked("digest", (8, version), "")
    picture_index._write(folder / "photos.parquet", "rule", [(("a.png", 3, 4), checked)])


def list_left_out(folder: Path, version: int) -> None:
    if not left_out._write_list(folder / "left_out.tsv", [left_out.LeftOut("a", f"reason {version}")]):
        raise OSError("the caller goes on without the list")


@functools.cache
def adapters_of(version: int) -> torch.nn.Module:
    model = adapted(rank=1)
    randomize_adapters(model, seed=version)
    return model


def write_results(folder: Path, version: int) -> None:
    scores = {f"scene {n}": version / (n + 1) for n in range(4)}
    write_run(make_run("shapes", [mean("IoU", scores)], {"steps": version}, {}), folder / "run.json")


def write_report_page(folder: Path, version: int) -> None:
    results = folder.parents[1] / str(version)  # one path, which the page names
    if not results.exists():
        write_results(results, version)
    write_page([results / "run.json"], folder / "report.html")


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "image.png": save_picture("image.png"),
    "image.jpg": save_picture("image.jpg"),
    "image.webp": save_picture("image.webp"),
    "layout.npz": lambda folder, version: layout("a", seed=version).write(folder / "a.npz"),
    "label map": convert,
    "bucket map": count,
    "index of pictures": index,
    "list of what is left out": list_left_out,
    "adapter card": lambda folder, version: write_card(folder, AdapterCard(base_model="flux", step=version)),
    "config": save_run,
    "log of a resumed run": keep,
    "state": lambda folder, version: write_state(folder / "state.safetensors", {"a": torch.full((999,), version)}),
    "report on SACap": lambda folder, version: write_report(folder / "report.tsv", []),
    "validation images": lambda folder, version: write_images({0: picture(version)}, [layout("a", 48)], folder),
    "adapters": lambda folder, version: save_adapters(adapters_of(version), folder, AdapterCard(step=version)),
    "results": write_results,
    "report page": write_report_page,
    "colour map and captions": lambda folder, version: layout("a", seed=version).write(folder / "a.json"),
}


def content(folder: Path) -> dict[str, bytes]:
    """Read all files but hidden ones, which nothing reads."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize("what", WRITERS)
def test_a_file_is_the_old_or_the_new_after_any_fault(what: str, tmp_path: Path):
    write = WRITERS[what]
    folders = {name: tmp_path / name / "out" for name in ("old", "new", "faulty")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    write(folders["old"], 1)
    old = content(folders["old"])
    write(folders["new"], 1)
    calls = faults.attempt(lambda: write(folders["new"], 2), folders["new"])
    assert calls.status == 0 and not calls.kind and calls.calls >= 3, calls
    new = content(folders["new"])
    assert old.keys() == new.keys()
    done = set()
    for fault in faults.plan(calls.calls, max(map(len, new.values()))):
        folder = folders["faulty"]
        for name, data in old.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        ended = faults.attempt(lambda folder=folder: write(folder, 2), folder, fault)
        now = content(folder)
        assert now.keys() == old.keys(), (fault, ended)
        assert all(now[name] in (old[name], new[name]) for name in old), (fault, ended)
        if fault.error != KILL and ended.kind:
            assert "OSError" in ended.kind or "UserError" in ended.kind or "SafetensorError" in ended.kind, ended
            assert "\n" not in ended.message, ended
        if fault.error != KILL and "os.remove" not in ended.message:
            assert not hidden(folder), (fault, ended)
        for name in hidden(folder):
            assert ".tmp" in name, name
            for left in folder.rglob(name):
                os.utime(left, (0, 0))
                remove_stale(left.parent)
        assert not hidden(folder)
        done.add(now == new)
    assert done == {False, True} or what == "report on SACap"


def test_a_report_has_all_its_pictures_after_any_fault(tmp_path: Path):
    def save(folder: Path, version: int) -> None:
        shown = Shown("a", "best", "IoU", float(version), "caption", ("region",), {})
        save_pictures(folder, [(shown, {"image": picture(version), "masks": picture(version + 10)})])

    def read(folder: Path) -> list[tuple[Shown, list[bytes]]]:
        return [
            (one, [(folder / name).read_bytes() for name in one.pictures.values()]) for one in read_pictures(folder)
        ]

    save(tmp_path / "whole", 1)
    old = read(tmp_path / "whole")
    calls = faults.attempt(lambda: save(tmp_path / "whole", 2), tmp_path)
    new = read(tmp_path / "whole")
    assert not calls.kind and calls.calls > 12 and new != old and len(list((tmp_path / "whole").iterdir())) == 3
    reached = []
    for number, fault in enumerate(faults.plan(calls.calls, 2000)):
        folder = tmp_path / str(number)
        save(folder, 1)
        ended = faults.attempt(lambda folder=folder: save(folder, 2), folder, fault)
        now = read(folder)
        assert now in (old, new), (fault, ended)
        reached.append(now == new)
        if fault.error != KILL and ended.kind:
            assert "OSError" in ended.kind and "\n" not in ended.message, ended
        save(folder, 3)
        assert len([path for path in folder.iterdir() if not path.name.startswith(".")]) == 3
    assert set(reached) == {False, True}


APPENDED: dict[str, Callable[[Path], None]] = {
    "benchmark results": lambda path: leave(['{"b": 2}'], path),
    "answers": lambda path: add_answer(path),
    "log": lambda path: append_lines(path, '{"b": 2}'),
}


def add_answer(path: Path) -> None:
    answers = Answers(path, SimpleNamespace(name="judge"))
    answers.add(SimpleNamespace(id="1", key="k", kind="colour", text="red?"), {"yes": 1})


@pytest.mark.parametrize("what", APPENDED)
def test_lines_are_added_whole_or_not_at_all(what: str, tmp_path: Path):
    path, before = tmp_path / "lines.jsonl", '{"id": "1", "answer": {}}\n'
    path.write_text(before)
    calls = faults.attempt(lambda: APPENDED[what](path), tmp_path)
    assert not calls.kind, calls
    whole = path.read_text()
    assert whole.startswith(before) and whole.count("\n") == 2
    for fault in faults.plan(calls.calls, len(whole)):
        path.write_text(before)
        ended = faults.attempt(lambda: APPENDED[what](path), tmp_path, fault)
        assert path.read_text() in (before, whole), (fault, ended)
        if ended.kind:
            assert "OSError" in ended.kind and "\n" not in ended.message


def test_a_line_that_a_kill_cut_does_not_spoil_the_next(tmp_path: Path):
    (tmp_path / "log").write_text('{"a": 1}\n{"b"')
    append_lines(tmp_path / "log", '{"c": 3}')
    assert (tmp_path / "log").read_text().splitlines() == ['{"a": 1}', '{"b"', '{"c": 3}']


def test_a_checkpoint_is_whole_or_absent_after_any_fault(tmp_path: Path):
    def write(folder: Path) -> None:
        for name in ("default", "cond"):
            write_state(folder / name / "weights.safetensors", {"w": torch.ones(500)})
        with atomic_write(folder / "config.yaml") as temporary:
            temporary.write_text("seed: 1")

    def save(folder: Path, step: int) -> None:
        Checkpoints(folder, limit=2).save(step, write, {"step": step, "moments": torch.ones(2000)})

    save(tmp_path / "whole", 1)
    calls = faults.attempt(lambda: save(tmp_path / "whole", 2), tmp_path)
    assert not calls.kind and calls.calls > 20, calls
    first, second = (content(tmp_path / "whole" / f"checkpoint-{step}") for step in (1, 2))
    reached = set()
    for number, fault in enumerate(faults.plan(calls.calls, max(map(len, second.values())))):
        folder = tmp_path / str(number)
        save(folder, 1)
        ended = faults.attempt(lambda folder=folder: save(folder, 2), folder, fault)
        steps = Checkpoints(folder).steps()
        reached.add(tuple(steps))
        assert content(steps[1]) == first and (2 not in steps or content(steps[2]) == second), (fault, ended)
        if fault.error != KILL and ended.kind:
            assert "UserError" in ended.kind and "\n" not in ended.message, (fault, ended)
        assert Checkpoints(folder).load("latest")[0] == steps[max(steps)]
        if fault.error == KILL or "checkpoint-" not in str(hidden(folder)):
            save(folder, 3)
            assert not hidden(folder), "what a killed save began is removed by the next"
    assert reached == {(1,), (1, 2)}


def test_a_cache_loses_only_what_was_being_written(tmp_path: Path):
    old, new = key_of("old"), key_of("new")

    def add(folder: Path, key: bytes) -> None:
        store = ShardStore(folder)
        store.add(key, {"x": np.arange(3000)})
        store.flush()

    add(tmp_path / "whole", old)
    calls = faults.attempt(lambda: add(tmp_path / "whole", new), tmp_path)
    reached = set()
    for number, fault in enumerate(faults.plan(calls.calls, 24_000)):
        folder = tmp_path / str(number)
        add(folder, old)
        ended = faults.attempt(lambda folder=folder: add(folder, new), folder, fault)
        store = ShardStore(folder)
        reached.add(len(store.missing([new])))
        assert (store.read(old)["x"] == np.arange(3000)).all()
        assert len(store.missing([new])) or (store.read(new)["x"] == np.arange(3000)).all()
        if fault.error != KILL and ended.kind:
            assert "\n" not in ended.message and ("OSError" in ended.kind or CacheError.__name__ in ended.kind), ended
    assert reached == {0, 1}


def test_what_a_killed_writer_leaves_changes_no_digest(tmp_path: Path):
    write_state(tmp_path / "default" / "a.safetensors", {"w": torch.ones(3)})
    before = folder_digest(tmp_path)
    (tmp_path / "default" / ".a.0123abcd.tmp.safetensors").write_bytes(b"half")
    assert folder_digest(tmp_path) == before


def test_an_image_that_replaces_another_keeps_its_recipe(tmp_path: Path):
    save_image(picture(1), {"seed": 1}, tmp_path / "a.png")
    full = faults.Fault(errno.ENOSPC, size=100)
    faults.attempt(lambda: save_image(picture(2), {"seed": 2}, tmp_path / "a.png"), tmp_path, full)
    assert read_recipe(tmp_path / "a.png") == {"seed": 1}
