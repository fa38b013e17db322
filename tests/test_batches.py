"""Training batches: reading ahead, encoding at each step, and resuming."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from seg2any.bases.flux1.text import encode_keys
from seg2any.bases.text import TextKey, TruncationWarning
from seg2any.data.bucket_map import UNUSABLE
from seg2any.data.catalog import open_data_set
from seg2any.data.dataset import ClosedSet, SampleError
from seg2any.data.left_out import LeftOutWarning
from seg2any.data.shapes import ShapesDataset
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE
from seg2any.training import batches as batching
from seg2any.training import config, open_data
from seg2any.training.batches import SkippedSampleWarning
from seg2any.training.open_data import RawData, load_data
from seg2any.training.reading import Reader, read_ahead
from seg2any.training.store import CacheError, ShardStore
from seg2any.training.token_counts import read_or_count
from tests import forked, tiny_run
from tests.counted_data import Squares, Words
from tests.synthetic_data import make_ade20k
from tests.test_cache import SETTINGS, Unreadable, loading, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    return open_data_set("shapes", {"n_scenes": 9, "entities": [1, 3]})


def take(source, sampler, count):
    batches = source.batches(sampler)
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_ahead_never_moves_the_position(data, stock_pipe, workers):
    """Consume two batches while more are read ahead.

    A sampler loaded from the state continues with the third batch.
    """
    source = loading(stock_pipe).training_set(data)
    source.workers = workers
    sampler = source.sampler("length", 2)
    random_before = torch.get_rng_state()
    whole = take(source, sampler, 2)
    state = sampler.state_dict()
    assert state["taken"] == 4 and torch.equal(random_before, torch.get_rng_state())
    whole += take(source, sampler, 3)
    resumed = source.sampler("length", 2)
    resumed.load_state_dict(state)
    again = take(source, resumed, 3)
    assert [batch.indices for batch in again] == [batch.indices for batch in whole[2:]]
    assert all(same(a.samples[0], b.samples[0]) for a, b in zip(again, whole[2:], strict=True))
    order = source.sampler("length", 2)
    assert [batch.indices for batch in whole] == [next(order) for _ in range(5)]
    assert whole[0].keys == [data.key(index) for index in whole[0].indices] and whole[0].places == [0, 1]
    assert whole[0].samples[0].lengths == tuple(source.lengths[whole[0].indices[0]])


class Faulty(Unreadable):
    """Data set whose sample 4 has a damaged picture, which is found only by reading it."""

    def __getitem__(self, index):
        if index == 4:
            raise SampleError("photos/4.jpg: is damaged; extract it again")
        return self.data[index]

    def annotation(self, index):
        return self.data.annotation(index)


@pytest.mark.parametrize("latents", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_sample_leaves_its_batch_or_ends_the_run(data, stock_pipe, tmp_path, latents, workers):
    def source():
        made = loading(stock_pipe, SETTINGS, tmp_path, latents=latents).training_set(Faulty(data))
        made.workers = workers
        return made

    with pytest.warns(SkippedSampleWarning, match="photos/4.jpg: is damaged"):
        batches = take(source(), source().sampler("length", 3), 3)
    (smaller,) = [batch for batch in batches if len(batch.samples) < 3]
    assert len(smaller.samples) == len(smaller.places) == 2 and 4 not in smaller.indices
    order = source().sampler("length", 3)
    (planned,) = [indices for indices in (next(order) for _ in range(3)) if 4 in indices]
    assert [planned[place] for place in smaller.places] == smaller.indices
    strict = source()
    strict.skips = False
    with pytest.raises(SampleError, match="photos/4.jpg: is damaged"):
        take(strict, strict.sampler("length", 3), 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_sample_alone_in_its_batch_is_skipped_like_any_other(data, stock_pipe, tmp_path, workers):
    source = loading(stock_pipe, SETTINGS, tmp_path).training_set(Faulty(data))
    source.workers, n = workers, len(data)
    order, sampler = source.sampler("length", 1), source.sampler("length", 1)
    planned = [next(order)[0] for _ in range(2 * n)]
    with pytest.warns(SkippedSampleWarning, match="photos/4.jpg: is damaged"):
        batches = take(source, sampler, 2 * n)
    assert [batch.empty for batch in batches] == [index == 4 for index in planned] and sampler.state_dict()[
        "taken"
    ] == 2 * n
    assert [batch.indices[0] for batch in batches if not batch.empty] == [index for index in planned if index != 4]
    assert all(len(batch.samples) == 1 and 4 not in batch.indices for batch in batches)


def test_a_batch_without_samples_is_filled_from_what_the_caches_hold(data, stock_pipe, tmp_path):
    source = loading(stock_pipe, SETTINGS, tmp_path, latents=True).training_set(Faulty(data), [4, 5])

    class FourOnly:
        def ahead(self):
            return [[4]]

        def advance(self):
            pass

    with pytest.warns(SkippedSampleWarning):
        (batch,) = source.batches(FourOnly())
    assert batch.empty and batch.indices == [5]


def test_a_process_whose_batch_is_empty_keeps_step_with_the_others(arguments, tmp_path):
    original = ShapesDataset.__getitem__

    def damaged(self, index):
        if index == 4:
            raise SampleError("scene 4: is damaged")
        return original(self, index)

    alone = ["--trainer.train_batch_size=1", "--trainer.gradient_accumulation_steps=1", "--trainer.max_train_steps=12"]

    def one(rank):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = tiny_run.trainer([*arguments, *alone])
            ShapesDataset.__getitem__ = damaged  # in this process only, and after the tokens were counted
            trainer.fit()
        print(*(f"rank {rank}: {one.message}" for one in caught), sep="\n")

    log = tmp_path / "log.txt"
    assert forked.run(one, log, processes=2) == [0, 0], log.read_text()[-2000:]
    assert "left out of its batch: scene 4: is damaged" in log.read_text()
    assert sorted(tiny_run.losses(tmp_path / "run")) == list(range(1, 13))


def test_a_data_set_that_is_gone_ends_the_run(data, stock_pipe, tmp_path, monkeypatch):
    class Gone(Faulty):
        def __getitem__(self, index):
            raise SampleError(f"photos/{index}.jpg: cannot be read")

    monkeypatch.setattr(batching, "MOST_EMPTY", 3)
    source = loading(stock_pipe, SETTINGS, tmp_path).training_set(Gone(data))
    with pytest.warns(SkippedSampleWarning), pytest.raises(SampleError, match="none of the first 3"):
        take(source, source.sampler("length", 1), 1)

    class OnlyOnce(Reader):
        def __call__(self, index):
            self.data = Gone(data)
            return first.pop() if first else super().__call__(index)

    source = loading(stock_pipe, SETTINGS, tmp_path).training_set(data)
    first = [source.reader(0)]
    source.reader = OnlyOnce(data, source.reader.preparation, None, None)
    with pytest.warns(SkippedSampleWarning), pytest.raises(SampleError, match="3 batches in a row"):
        take(source, source.sampler("length", 1), 9)


def test_unreadable_samples_are_reported_before_training_starts(data, tmp_path):
    settings = config.Config(resolution=64)
    settings.data.train.type = "squares"
    for settings.trainer.cache_dir in (None, str(tmp_path)):
        with pytest.warns(LeftOutWarning, match="squares: 2 of 5 samples are left out; the first is square_1: "):
            rows = read_or_count(Squares(5, broken=(1, 3)), Words(), 16, settings, ALONE)
        assert (rows.flags & UNUSABLE > 0).tolist() == [False, True, False, True, False]
    listed = next(tmp_path.glob("lengths-*-left_out.tsv")).read_text().splitlines()
    assert listed == [f"square_{n}\tsquare_{n}.json: is damaged" for n in (1, 3)]
    settings.data.on_error = "fail"
    with pytest.raises(UserError, match="2 of 5 samples cannot be used"):
        read_or_count(Squares(5, broken=(1, 3)), Words(), 16, settings, ALONE)
    with pytest.warns(SkippedSampleWarning, match="left out of validation images: photos/4.jpg"):
        shown = open_data._first_layouts(Faulty(data), 6, skips=True)
    assert [layout.digest() for layout in shown] == [data[n].layout.digest() for n in (0, 1, 2, 3, 5, 6)]
    with pytest.raises(SampleError, match="photos/4.jpg"):
        open_data._first_layouts(Faulty(data), 6, skips=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_cache_ends_the_run_even_if_bad_samples_are_skipped(data, stock_pipe, tmp_path, workers):
    source = loading(stock_pipe, SETTINGS, tmp_path, latents=True).training_set(data)
    source.workers = workers
    (shard,) = tmp_path.glob("latents-*/*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    source.reader.latents = ShardStore(shard.parent)
    with pytest.raises(CacheError, match=f"{shard}: damaged and removed"):
        take(source, source.sampler("length", 1), 2 * len(data))


def test_readers_outlive_the_signals_that_stop_a_run_gently():
    def signalled(index):
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), stop)
        return index

    assert list(read_ahead(signalled, [[0, 1], [2, 3]], 1)) == [[0, 1], [2, 3]]


def test_each_aspect_bucket_is_read_at_its_size(stock_pipe, tmp_path):
    class Photos(Unreadable):
        """Data set of three proportions: 256 x 256, 128 x 256, 256 x 128."""

        def __getitem__(self, index):
            sample = self.data[index]
            rows, columns = [(256, 256), (128, 256), (256, 128)][index % 3]
            masks = sample.layout.masks[:, :rows, :columns]
            layout = dataclasses.replace(sample.layout, masks=masks)
            return dataclasses.replace(sample, image=sample.image[:rows, :columns], layout=layout)

        def annotation(self, index):
            from seg2any.data.dataset import Annotation, MaskStack

            layout = self[index].layout
            return Annotation(self.key(index), MaskStack(layout.masks), layout.captions, layout.caption)

    data = Photos(open_data_set("shapes", {"n_scenes": 9, "kind": "single"}))
    made = loading(stock_pipe, SETTINGS, tmp_path)
    made.config.data.aspect = "bucket"
    made.preparation = dataclasses.replace(made.preparation, aspect="bucket")
    source = made.training_set(data)
    batches = take(source, source.sampler("length", 2), 3)
    for batch in batches:
        assert len({index % 3 for index in batch.indices}) == 1
        for index, sample in zip(batch.indices, batch.samples, strict=True):
            height, width = sample.layout.masks.shape[1:]
            assert (height > width, height < width) == (index % 3 == 2, index % 3 == 1)
            assert sample.lengths == tuple(source.lengths[index])
    assert len({batch.indices[0] % 3 for batch in batches}) == 3
    with pytest.raises(UserError, match="trainer.sampler: published"):
        source.sampler("published", 2)


def test_lengths_come_from_the_bucket_map_if_the_config_says_so(data, stock_pipe, tmp_path):
    made = loading(stock_pipe, SETTINGS, tmp_path)
    made.config.data.train.params["is_group_bucket"] = True
    with pytest.raises(UserError, match=r"64H_64W-group_bucket.parquet: no such file; make it with prepare_dataset"):
        made.training_set(data)
    del made.config.data.train.params["is_group_bucket"]
    counted = made.training_set(data).lengths
    (kept,) = tmp_path.glob("lengths-*.parquet")
    kept.rename(tmp_path / "64H_64W-group_bucket.parquet")
    made.config.data.train.params["is_group_bucket"] = True
    assert np.array_equal(made.training_set(data).lengths, counted)
    assert not list(tmp_path.glob("lengths-*"))


class Closed(Unreadable):
    """The scenes as a closed set: no global captions, and regions called a or b."""

    class_captions = ("a", "b")

    def __getitem__(self, index):
        sample = self.data[index]
        names = tuple("ab"[at % 2] for at in range(len(sample.layout.captions)))
        return dataclasses.replace(sample, layout=dataclasses.replace(sample.layout, captions=names, caption=None))

    def annotation(self, index):
        layout = self[index].layout
        return dataclasses.replace(self.data.annotation(index), captions=layout.captions, caption=None)


@pytest.mark.parametrize(
    ("cls", "text", "gone"),
    [
        (Closed, "none", ()),
        (Closed, "classes", ("text_encoder_2",)),
        (Closed, "all", ("text_encoder", "text_encoder_2")),
        (Faulty, "classes", ()),
        (Faulty, "all", ("text_encoder", "text_encoder_2")),
    ],
)
def test_unneeded_text_encoders_are_freed_before_training(data, stock_pipe, tmp_path, cls, text, gone):
    from seg2any.generate.pipeline import Seg2AnyPipeline

    parts = {**stock_pipe.components, "transformer": copy.deepcopy(stock_pipe.transformer)}
    pipe = Seg2AnyPipeline(**parts)
    made = loading(pipe, SETTINGS, tmp_path, text, latents=True)
    made.config.trainer = made.options

    raw = RawData(cls(data), data)
    made.config.trainer.num_validation_samples = 2
    run = load_data(raw, made.config, pipe.base, ALONE)
    assert {name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name) is None} == set(gone)
    assert pipe.vae is not None and len(run.val) == 2 and len(run.shown) == 4
    with_all = loading(stock_pipe, SETTINGS).training_set(cls(data))
    assert same(run.train[1].layout.text.lengths, with_all[1].layout.text.lengths)
    torch.testing.assert_close(run.train[1].layout.text.embeds, with_all[1].layout.text.embeds, rtol=2**-10, atol=1e-6)


def test_class_names_are_encoded_once_and_open_captions_never(stock_pipe, tmp_path):
    made = make_ade20k(tmp_path / "ade", n=4)
    data = open_data_set("ade20k", made.params)
    assert isinstance(data, ClosedSet) and len(data.class_captions) == 150
    with pytest.warns(TruncationWarning):  # names longer than 10 tokens, as published
        known = loading(stock_pipe, SETTINGS, tmp_path / "cache", "classes").training_set(data).encode.known
    assert {key.caption for key in known} == set(data.class_captions)
    one = TextKey(data.class_captions[7], SETTINGS.regional_max_sequence_length, "t5")
    (alone,) = dict(encode_keys([one], stock_pipe)).values()
    torch.testing.assert_close(known[one].float(), alone, rtol=2**-10, atol=1e-6)
    assert not loading(stock_pipe, SETTINGS, text="none").training_set(data).encode.known
    assert not loading(stock_pipe, SETTINGS, text="classes").training_set(Unlabelled(data)).encode.known


class Unlabelled(Unreadable):
    def annotation(self, index):
        return self.data.annotation(index)


@pytest.mark.same_numbers("training from a cache, and without | pictures equal, text 2^-10, losses 1e-5")
def test_training_with_and_without_caches_gives_the_same_losses(tiny_model, tmp_path):
    def losses(name, *options):
        folder = tmp_path / name
        tiny_run.fit([*tiny_run.arguments(tiny_model, folder), "--trainer.max_train_steps=3", *options])
        return list(tiny_run.losses(folder / "run").values())

    live = losses("live", "--trainer.cache_text=none")
    cached = losses("cached", "--trainer.cache_text=all", "--trainer.cache_latents=true")
    read_ahead = losses("ahead", "--trainer.cache_text=all", "--dataloader_num_workers=2")
    assert len(live) == 3 and cached == pytest.approx(live, rel=1e-5) and read_ahead == pytest.approx(live, rel=1e-5)


def test_a_run_that_ends_by_an_error_does_not_wait_for_its_readers_for_ever():
    script = (
        "import seg2any.training.reading as reader\n"
        "reader.LAST_STEP_SECONDS = 1\n"
        "batches = reader.read_ahead(abs, [[1], [2], [3]], workers=1)\n"
        "print(next(batches))\n"
        "raise ValueError('the step failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert "the step failed" in done.stderr and done.returncode == 1
