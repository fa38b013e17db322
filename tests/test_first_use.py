"""Samples that are encoded at their first step: what is read, what is kept, and when the encoders go."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import SampleError
from seg2any.data.sampler import LengthBatches
from seg2any.system.processes import ALONE, Process
from seg2any.training import first_use, memory, open_data
from seg2any.training.batches import SkippedSampleWarning
from seg2any.training.open_data import RawData, load_data
from seg2any.training.sources import DataSources
from seg2any.training.store import ShardStore
from seg2any.training.task import Plan
from tests import tiny_run
from tests.test_batches import Faulty, take
from tests.test_cache import SETTINGS, loading, same

N = 9


@pytest.fixture(scope="module")
def data():
    return open_data_set("shapes", {"n_scenes": N, "entities": [1, 3]})


def filling(data, pipe, folder, own=range(N), finished=lambda: None, workers=0):
    """Return a training set with empty caches, which its steps fill."""
    sources = loading(pipe, SETTINGS, folder, "all", latents=True)
    train = DataSources.training_set(sources, data)
    sources.complete_on_first_use(train, Plan(all=np.arange(N), own=np.array(own)), finished)
    train.workers = workers
    return train


def count_passes(monkeypatch):
    """Return the list that gets an item for each sample that the VAE encodes."""
    encoded, encode = [], first_use.encode_latents
    monkeypatch.setattr(first_use, "encode_latents", lambda *args: encoded.append(1) or encode(*args))
    return encoded


@pytest.mark.parametrize("folder", [True, False], ids=["disk", "memory"])
@pytest.mark.parametrize("workers", [0, 1])
def test_each_sample_is_encoded_once_and_not_before_its_batch(data, stock_pipe, tmp_path, monkeypatch, folder, workers):
    live = loading(stock_pipe).training_set(data)
    encoded = count_passes(monkeypatch)
    source = filling(data, stock_pipe, tmp_path if folder else None, workers=workers)
    order, batches = source.sampler("length", 2), source.batches(source.sampler("length", 2))
    seen: set[int] = set()
    for _ in range(11):
        batch, indices = next(batches), next(order)
        seen.update(indices)
        assert batch.indices == indices and len(encoded) == len(seen)
        for index, sample in zip(batch.indices, batch.samples, strict=True):
            truth = live[index]
            assert same(sample.image, truth.image) and same(sample.layout.cond, truth.layout.cond)
            torch.testing.assert_close(sample.layout.text.embeds, truth.layout.text.embeds, rtol=2**-10, atol=1e-6)
    assert len(seen) == N  # in two epochs of 8 samples, each at least once
    batches.close()
    if folder:
        later = loading(stock_pipe, SETTINGS, tmp_path, "all", latents=True).training_set(data)
        assert len(encoded) == N and all(same(later[at], source[at]) for at in range(N))


def test_what_a_step_encodes_depends_on_the_sample_only(data, stock_pipe, tmp_path):
    """A killed run encodes some samples again, in other batches; it must read the same bits."""
    first, second = (filling(data, stock_pipe, tmp_path / name) for name in "ab")
    whole = take(first, first.sampler("length", 3), 3)
    for batch in take(second, second.sampler("length", 1, seed=1), N):
        known = {index: sample for one in whole for index, sample in zip(one.indices, one.samples, strict=True)}
        assert all(same(sample, known[at]) for at, sample in zip(batch.indices, batch.samples, strict=True))


def test_the_end_is_told_once_when_all_that_this_process_reads_is_encoded(data, stock_pipe, tmp_path):
    told = []
    source = filling(data, stock_pipe, tmp_path, finished=lambda: told.append(len(source.fill.waiting)))
    batches = source.batches(source.sampler("length", 3))
    for expected in ([], [], [0], [0]):
        next(batches)
        assert told == expected
    assert not len(ShardStore(next(tmp_path.glob("latents-*"))).missing([])) and len(list(tmp_path.glob("*/*"))) == 2
    again: list[int] = []
    assert not filling(data, stock_pipe, tmp_path, finished=lambda: again.append(1)).fill.waiting and again == [1]


def test_entries_of_another_process_are_used_and_waited_for_no_longer(data, stock_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(first_use, "CHECK_SECONDS", 0)
    encoded, told = count_passes(monkeypatch), []
    mine = filling(data, stock_pipe, tmp_path, finished=lambda: told.append(1))
    theirs = filling(data, stock_pipe, tmp_path)
    others = theirs.batches(theirs.sampler("length", 1))
    done = [next(others).indices[0] for _ in range(N - 1)]
    others.close()
    (rest,) = set(range(N)) - set(done)

    class OneByOne:
        def ahead(self):
            return [[done[0]], [rest]]

        def advance(self):
            pass

    encoded.clear()
    batches = mine.batches(OneByOne())
    assert next(batches).indices == [done[0]] and not encoded and mine.fill.waiting == {rest}
    assert next(batches).indices == [rest] and len(encoded) == 1 and told == [1]


def test_an_unusable_sample_is_left_out_and_known_to_the_next_run(data, stock_pipe, tmp_path):
    for reason in ("photos/4.jpg: is damaged; extract it again", "known from trainer.cache_dir"):
        source = filling(Faulty(data), stock_pipe, tmp_path)
        with pytest.warns(SkippedSampleWarning, match=reason):
            batches = take(source, source.sampler("length", 3), 3)
        assert sorted(at for batch in batches for at in batch.indices) == [0, 1, 2, 3, 5, 6, 7, 8]
        assert not source.fill.waiting


def test_an_error_ends_a_run_that_skips_nothing_and_leaves_no_entry(data, stock_pipe, tmp_path):
    source = filling(Faulty(data), stock_pipe, tmp_path)
    source.skips = False
    with pytest.raises(SampleError, match="photos/4.jpg"):
        take(source, source.sampler("length", 3), 3)
    assert 4 in filling(Faulty(data), stock_pipe, tmp_path).fill.waiting


def test_an_empty_first_batch_is_filled_by_a_sample_that_can_still_be_encoded(data, stock_pipe, tmp_path):
    class FourOnly:
        def ahead(self):
            return [[4]]

        def advance(self):
            pass

    source = filling(Faulty(data), stock_pipe, tmp_path)
    with pytest.warns(SkippedSampleWarning):
        (batch,) = source.batches(FourOnly())
    assert batch.empty and batch.indices == [0]


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("taken", [0, 6, 30])
def test_a_process_plans_what_it_takes(processes, taken):
    lengths = np.random.default_rng(0).integers(1, 50, (23, 2))
    found = []
    for rank in range(processes):
        sampler = LengthBatches(lengths, 2, seed=1, process=Process(rank, processes))
        step = 2 * processes
        sampler.taken = taken // step * step
        last = sampler.taken + 7 * step
        own = sampler.own_until(last)
        found.append(sorted({index for _ in range(7) for index in next(sampler)}))
        assert own.tolist() == found[-1]


def run_data(data, pipe, folder, planned, has_room):
    sources = loading(pipe, SETTINGS, folder, "all", latents=True)
    sources.config.trainer = sources.options
    sources.config.trainer.num_validation_samples = 2
    return load_data(RawData(data, data), sources.config, sources.base, ALONE, planned, has_room)


@pytest.fixture
def released(monkeypatch):
    """Count how often networks are freed, and keep them for other tests."""
    calls: list[int] = []
    monkeypatch.setattr(open_data, "_let_go", lambda *_: calls.append(1))
    return calls


def whole(_):
    return Plan(all=np.arange(N), own=np.arange(N))


def test_encoders_stay_until_training_and_validation_are_encoded(data, stock_pipe, tmp_path, released):
    run = run_data(data, stock_pipe, tmp_path, whole, lambda _: True)
    assert run.encoders.users == {"training", "validation"} and run.train.fill.total == N
    take(run.train, run.train.sampler("length", 3), 3)
    assert run.encoders.users == {"validation"} and not released
    assert len(run.val) == 2 and released == [1] and run.val is run.val
    complete = run_data(data, stock_pipe, tmp_path, whole, lambda _: True)
    assert complete.train.fill is None and released == [1, 1], "nothing is missing, so nothing has to stay"


def test_without_room_or_without_a_plan_everything_comes_first(data, stock_pipe, tmp_path, released):
    for name, plan, room in (("a", whole, False), ("b", None, True)):
        run = run_data(data, stock_pipe, tmp_path / name, plan, lambda _, room=room: room)
        assert run.train.fill is None and not len(run.train.reader.missing(range(N))) and not run.encoders.users
    assert released == [1, 1]


@pytest.mark.parametrize(
    ("device", "local_count", "total", "has_room"),
    [
        ("cuda", 4, 1000, True),
        ("cuda", 4, 999, False),
        ("cpu", 4, 4000, True),
        ("cpu", 4, 3999, False),
        ("x", 1, None, 0),
    ],
)
def test_encoders_stay_only_if_a_tenth_of_the_memory_is_left(monkeypatch, device, local_count, total, has_room):
    monkeypatch.setattr(memory, "predicted_bytes", lambda *_, encodes_images: 900 if encodes_images else 0)
    monkeypatch.setattr(memory, "total_bytes", lambda device: total)
    process = Process(0, local_count, 0, local_count)
    strategy = SimpleNamespace(device=SimpleNamespace(type=device), process=process)
    assert memory.has_room_for_encoders(None, None, 1, strategy) == bool(has_room)


@pytest.mark.slow
def test_a_run_encodes_beside_its_steps_and_cache_all_before_them(tiny_model, tmp_path, capsys):
    def prepared(*options):
        cached = ("--trainer.cache_text=all", "--trainer.cache_latents=true", "--trainer.max_train_steps=2")
        made = tiny_run.trainer([*tiny_run.arguments(tiny_model, tmp_path), *cached, *options])
        return made, made.task.data.reader.missing(range(11))

    trainer, missing = prepared()
    assert len(missing) == 11 and trainer.task.data.fill.total == 8
    assert "to encode       8 samples of this process" in capsys.readouterr().out
    assert trainer.task.pipeline.text_encoder_2 is not None
    trainer.fit()
    assert len(trainer.task.data.reader.missing(range(11))) == 3 and trainer.task.pipeline.text_encoder_2 is None
    trainer, missing = prepared("--trainer.cache=all", f"--project.output_dir={tmp_path / 'all'}")
    assert not len(missing) and trainer.task.data.fill is None
