"""Caches compared with direct encoding, and the shards that store their entries."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import multiprocessing
import os
import pickle
import resource
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from seg2any.attention.settings import ConditionSettings
from seg2any.attention.tokens import token_coverage, token_masks
from seg2any.bases.flux1.base import Flux1
from seg2any.bases.flux1.latents import encode_images
from seg2any.data.catalog import open_data_set
from seg2any.diffusion.prepare import encode_layouts
from seg2any.system.errors import UserError
from seg2any.system.processes import ALONE, Process
from seg2any.training import cache, config, store
from seg2any.training.sources import DataSources
from seg2any.training.store import CacheError, DamagedShardWarning, MemoryStore, ShardStore, key_of
from tests.synthetic_data import make_ade20k, make_folder

SETTINGS = ConditionSettings(max_sequence_length=48, regional_max_sequence_length=12)
HALF = {"rtol": 1e-3, "atol": 1e-3}  # fp16 storage


@pytest.fixture(scope="module")
def data():
    return open_data_set("shapes", {"n_scenes": 5, "entities": [1, 3]})


class Complete(DataSources):
    """Sources whose training sets have complete caches."""

    def training_set(self, data, indices=None):
        train = super().training_set(data)
        self.complete(train, range(len(data)) if indices is None else indices)
        return train


def loading(pipe, settings=SETTINGS, folder=None, text="none", latents=False, **trainer):
    options = config.Config(resolution=64)
    options.model.condition = settings
    chosen = {"cache_text": text, "cache_latents": latents, "cache_dir": folder and str(folder), **trainer}
    options.trainer = dataclasses.replace(options.trainer, **chosen)
    return Complete(options, Flux1(pipe), ALONE)


def same(a, b):
    """Compare every part of two samples bit for bit."""
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor | np.ndarray):
        return a.dtype == b.dtype and bool((a == b).all())
    return a == b


ALL_SETTINGS = {
    "sample": SETTINGS,
    "mode": dataclasses.replace(SETTINGS, vae_posterior="mode", cond_scale_factor=2),
    "no_contour": dataclasses.replace(SETTINGS, is_use_cond_token=False),
    "place": SETTINGS.override({"attention_mask_method": "place"}),
    "plain": SETTINGS.override({"attention_mask_method": "none"}),
}


@pytest.mark.same_numbers("training from a cache, and without | pictures equal, text 2^-10, losses 1e-5")
@pytest.mark.parametrize("settings", ALL_SETTINGS.values(), ids=ALL_SETTINGS.keys())
def test_cached_samples_match_the_pipelines_own_encoding(data, stock_pipe, settings, tmp_path):
    """Compare with the pipeline's own encoding of resized masks and pixels, stored and read."""
    source = loading(stock_pipe, settings, tmp_path, "all", latents=True).training_set(data)
    for index in (0, 3):
        ours, sample = source[index], data[index]
        (layout,) = encode_layouts([_resized(sample.layout)], (64, 64), Flux1(stock_pipe), settings)
        pixels = Image.fromarray(sample.image).resize((64, 64), Image.Resampling.BILINEAR)
        signed = torch.from_numpy((np.asarray(pixels, np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)
        posterior = encode_images(signed[None], stock_pipe.vae)[0]
        torch.testing.assert_close(ours.image.mean, posterior.mean, **HALF)
        is_mode = settings.vae_posterior == "mode"
        torch.testing.assert_close(ours.image.std, posterior.std * (not is_mode), **HALF)
        assert ours.layout.text.lengths == layout.text.lengths
        torch.testing.assert_close(ours.layout.text.embeds.float(), layout.text.embeds, **HALF)
        torch.testing.assert_close(ours.layout.text.pooled.float(), layout.text.pooled, **HALF)
        # plain settings condition on no region, but a loss may read them
        masks, coverage = layout.masks, layout.coverage
        if settings.is_plain:
            masks, coverage = (one(_resized(sample.layout).visible, (4, 4)) for one in (token_masks, token_coverage))
        assert np.array_equal(ours.layout.masks, masks)
        assert same(ours.layout.coverage, coverage)
        assert (ours.layout.cond is None) == (layout.cond is None)
        if layout.cond is not None:
            assert np.array_equal(ours.layout.cond.positions, layout.cond.positions)
            assert ours.layout.cond.grid == tuple(layout.cond.grid)
            torch.testing.assert_close(ours.layout.cond.posterior.mean, layout.cond.posterior.mean, **HALF)
        assert ours.lengths == tuple(source.lengths[index])


def test_only_planned_samples_are_encoded(stock_pipe, tmp_path):
    data = open_data_set("shapes", {"n_scenes": 12, "entities": [1, 2]})
    every = loading(stock_pipe, folder=tmp_path / "every", text="all", latents=True).training_set(data)
    order = every.sampler("length", 2)

    planned = order.among_first(6).tolist()
    some = loading(stock_pipe, folder=tmp_path / "some", text="all", latents=True).training_set(data, planned)
    read = {index for _ in range(3) for index in next(order)}
    assert set(some.reader.missing(range(12)).tolist()) == set(range(12)) - read
    for index in read:
        assert same(some[index].image, every[index].image)
        torch.testing.assert_close(some[index].layout.text.embeds, every[index].layout.text.embeds, **HALF)


def _resized(layout):
    masks = layout.masks[:, 2::4, 2::4]  # nearest-exact from 256 to 64: floor(4 (i + 1/2))
    return dataclasses.replace(layout, masks=masks)


@pytest.mark.same_numbers("training from a cache, and without | pictures equal, text 2^-10, losses 1e-5")
@pytest.mark.parametrize("text", ["none", "all"])
@pytest.mark.parametrize("latents", [False, True])
def test_cached_and_live_samples_are_the_same(data, stock_pipe, tmp_path, text, latents):
    """Compare cached and live pictures bit for bit, and text up to rounding.

    T5 gets other captions at a time, so its sums may round differently.
    """
    live = loading(stock_pipe, caption_dropout=0.1).training_set(data)
    cached = loading(stock_pipe, SETTINGS, tmp_path, text, latents, caption_dropout=0.1).training_set(data)
    for index in range(len(data)):
        a, b = live[index], cached[index]
        assert same(a.image, b.image) and same(a.layout.cond, b.layout.cond)
        assert same(a.layout.masks, b.layout.masks) and a.lengths == b.lengths == tuple(cached.lengths[index])
        for x, y in (
            (a.layout.text.embeds, b.layout.text.embeds),
            (a.layout.text.pooled, b.layout.text.pooled),
            (a.pooled_without_caption, b.pooled_without_caption),
        ):
            assert x.dtype == y.dtype == torch.float16
            torch.testing.assert_close(x, y, rtol=2**-10, atol=1e-6)


def test_complete_caches_need_neither_networks_nor_data_files(data, stock_pipe, tmp_path):
    first = loading(stock_pipe, SETTINGS, tmp_path, "all", latents=True).training_set(data)
    blind = loading(Blind(stock_pipe), SETTINGS, tmp_path, "all", latents=True).training_set(Unreadable(data))
    assert all(same(first[index], blind[index]) for index in range(len(data)))


class Blind:
    """Pipeline whose weights can be fingerprinted but whose networks cannot be run."""

    def __init__(self, pipe):
        for name in ("tokenizer", "tokenizer_2", "transformer"):
            setattr(self, name, getattr(pipe, name))
        for name in ("vae", "text_encoder", "text_encoder_2"):
            module = copy.deepcopy(getattr(pipe, name))
            module.forward = module.encode = None
            setattr(self, name, module)


class Unreadable:
    def __init__(self, data):
        self.data, self.key, self.fingerprint = data, data.key, data.fingerprint
        self.photo_digest = data.photo_digest

    def __len__(self):
        return len(self.data)


def test_a_cache_is_used_only_for_the_same_data_settings_and_weights(data, stock_pipe, monkeypatch):
    base, preparation = Flux1(stock_pipe), loading(stock_pipe).preparation
    changed = [dataclasses.replace(preparation, resolution=128), dataclasses.replace(preparation, aspect="bucket")]
    for settings in (*list(ALL_SETTINGS.values())[1:], dataclasses.replace(SETTINGS, is_filter_cond_token=False)):
        changed.append(dataclasses.replace(preparation, settings=settings))
    prints = [cache.latents_fingerprint("a", one, base) for one in (preparation, *changed)]
    prints += [cache.latents_fingerprint("b", preparation, base)]
    texts = [cache.texts_fingerprint(*pair, base) for pair in (("a", SETTINGS), ("b", SETTINGS))]
    texts += [cache.texts_fingerprint("a", dataclasses.replace(SETTINGS, max_sequence_length=40), base)]
    isolated = SETTINGS.override({"hard_attn_block_range": (1, 2)})
    same_drawing = dataclasses.replace(preparation, settings=isolated)
    assert cache.latents_fingerprint("a", same_drawing, base) == prints[0]
    assert cache.texts_fingerprint("a", isolated, base) == texts[0]
    for name in ("vae", "text_encoder_2"):
        monkeypatch.setattr(stock_pipe, name, copy.deepcopy(getattr(stock_pipe, name)))
        next(getattr(stock_pipe, name).parameters()).data += 1
    prints += [cache.latents_fingerprint("a", preparation, base)]
    texts += [cache.texts_fingerprint("a", SETTINGS, base)]
    assert len(set(prints)) == len(prints) and len(set(texts)) == len(texts)


@pytest.mark.parametrize("make", [make_ade20k, make_folder])
def test_a_photo_that_is_replaced_is_encoded_again_and_no_other(make, stock_pipe, tmp_path, monkeypatch):
    made, encoded = make(tmp_path, n=3), []

    def opened():
        data = open_data_set(make.__name__.removeprefix("make_"), made.params)
        return loading(stock_pipe, folder=tmp_path / "cache", latents=True).training_set(data)

    encode = cache.encode_latents
    monkeypatch.setattr(cache, "encode_latents", lambda *args: encoded.append(args) or encode(*args))
    before = opened()[0]
    assert len(encoded) == 3 and same(opened()[0], before) and len(encoded) == 3
    photo = next(truth.image for truth in made.truths if truth.key == opened().key(0))
    Image.fromarray(255 - np.asarray(Image.open(photo))).save(photo)
    after = opened()[0]
    assert len(encoded) == 4 and not same(after.image, before.image)
    assert same(after.layout.cond, before.layout.cond)


def test_dropping_the_caption_leaves_a_sample_that_never_had_one(data, stock_pipe):
    class Silent(Unreadable):
        def __getitem__(self, index):
            sample = self.data[index]
            return dataclasses.replace(sample, layout=dataclasses.replace(sample.layout, caption=None))

        def annotation(self, index):
            return dataclasses.replace(self.data.annotation(index), caption=None)

    dropping = loading(stock_pipe, caption_dropout=0.5)
    dropped, never = dropping.training_set(data)[1].without_caption(), dropping.training_set(Silent(data))[1]
    torch.testing.assert_close(dropped.layout.text.pooled, never.layout.text.pooled, rtol=2**-10, atol=1e-6)
    assert dropped.lengths == never.lengths and dropped.without_caption() is dropped
    assert not torch.equal(dropped.layout.text.pooled, dropping.training_set(data)[1].layout.text.pooled)


def entry(number):
    return {"a": np.full((2, 3), number, np.float16), "b": np.arange(number, dtype=np.uint8)}


def test_what_is_stored_is_read_by_another_store(tmp_path):
    writer = ShardStore(tmp_path / "new" / "folder")
    keys = [key_of("sample", number) for number in range(7)]
    for number, key in enumerate(keys[:5]):
        writer.add(key, entry(number))
        if number == 2:
            writer.flush()
    assert ShardStore(writer.folder).missing(keys).tolist() == [3, 4, 5, 6]
    writer.flush()
    reader = pickle.loads(pickle.dumps(ShardStore(writer.folder)))
    assert reader.missing(keys).tolist() == writer.missing(keys).tolist() == [5, 6]
    for number, key in enumerate(keys[:5]):
        assert all(np.array_equal(value, entry(number)[name]) for name, value in reader.read(key).items())
    with pytest.raises(KeyError):
        reader.read(keys[6])


def test_of_two_entries_of_one_key_the_older_is_read(tmp_path, monkeypatch):
    key, late = key_of("x"), ShardStore(tmp_path)
    for number, seconds in ((1, 200), (2, 100)):
        monkeypatch.setattr(time, "time_ns", lambda at=seconds: at)
        one = ShardStore(tmp_path)
        one.add(key, entry(number))
        one.flush()
        late.refresh()
    assert late.read(key)["a"][0, 0] == ShardStore(tmp_path).read(key)["a"][0, 0] == 2


def test_shards_are_cut_by_size_and_many_stay_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 1)
    monkeypatch.setattr(store, "OPEN_SHARDS", 2)
    shards = ShardStore(tmp_path)
    for number in range(5):
        shards.add(key_of(number), entry(number))
    assert len(list(tmp_path.iterdir())) == 5
    assert [int(shards.read(key_of(number))["a"][0, 0]) for number in (0, 4, 2, 0, 3, 1)] == [0, 4, 2, 0, 3, 1]


@pytest.mark.parametrize("damage", ["cut", "header", "ends", "empty"])
def test_a_damaged_shard_is_removed_and_its_entries_are_missing(tmp_path, damage):
    shards = ShardStore(tmp_path)
    for number in range(2):
        shards.add(key_of(number), entry(number))
        shards.flush()
    first = sorted(tmp_path.iterdir())[0]
    if damage == "ends":
        ends = {"ends": np.array([9]), "sums": np.zeros(1, np.uint32)}
        save_file({"keys": np.zeros((1, 16), np.uint8), "entries": np.zeros(4, np.uint8)} | ends, first)
    elif damage == "empty":
        nothing = np.zeros(0, np.uint8)
        ends = {"ends": nothing.astype(np.int64), "sums": nothing.astype(np.uint32)}
        save_file({"keys": nothing.reshape(0, 16), "entries": nothing} | ends, first)
    else:
        content = first.read_bytes()
        first.write_bytes(content[:-1] if damage == "cut" else b"\xff" * 20 + content[20:])
    with pytest.warns(DamagedShardWarning, match="computed again"):
        assert ShardStore(tmp_path).missing([key_of(0), key_of(1)]).tolist() == [0]
    assert not first.exists()


def test_an_altered_entry_is_never_used(tmp_path):
    shards = ShardStore(tmp_path)
    for number in range(3):
        shards.add(key_of(number), entry(number))
    shards.flush()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    start = content.index(entry(1)["a"].tobytes())
    content[start] ^= 1  # one bit, in the middle of the second entry
    path.write_bytes(content)
    altered = ShardStore(tmp_path)
    assert not len(altered.missing([key_of(number) for number in range(3)]))
    assert same(altered.read(key_of(0))["a"], entry(0)["a"])
    with pytest.raises(CacheError, match=f"{path}: damaged and removed; start again"):
        altered.read(key_of(1))
    assert len(ShardStore(tmp_path).missing([key_of(number) for number in range(3)])) == 3


def test_a_shard_that_another_process_has_removed_is_one_line(tmp_path):
    shards = ShardStore(tmp_path)
    shards.add(key_of(0), entry(0))
    shards.flush()
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(CacheError, match=f"{path}: No such file.* start again"):
        shards.read(key_of(0))


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_written(tmp_path):
    shards = ShardStore(tmp_path / "cache")
    shards.add(key_of(0), entry(0))
    shards.flush()
    shards.add(key_of(1), {"image": np.zeros(100_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CacheError, match="trainer.cache_dir: .* cannot be written .*make room") as caught:
            shards.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and len(list((tmp_path / "cache").iterdir())) == 1
    assert ShardStore(tmp_path / "cache").missing([key_of(0), key_of(1)]).tolist() == [1]
    (tmp_path / "file").touch()
    blocked = ShardStore(tmp_path / "file" / "cache")
    blocked.add(key_of(0), entry(0))
    with pytest.raises(CacheError, match="cannot be written .Not a directory"):
        blocked.flush()


def squares(wanted):
    for at in wanted:
        yield at, {"square": np.array([at * at])}


KEYS = [key_of("number", number) for number in range(40)]


def fill(folder, rank, world, patience, before=lambda folder: None):
    def make(wanted):
        for at, one in squares(wanted):
            before(folder)
            yield at, one

    cache.complete(ShardStore(folder), KEYS, make, "squares", Process(rank, world), patience)


def test_processes_share_the_work_and_end_with_the_whole(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fill, args=(tmp_path, rank, 3, 60.0)) for rank in range(3)]
    processes += [fork.Process(target=fill, args=(tmp_path, rank, 2, 60.0)) for rank in range(2)]  # a second run
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    filled = ShardStore(tmp_path)
    assert not len(filled.missing(KEYS))
    assert [int(filled.read(key)["square"][0]) for key in KEYS] == [at * at for at in range(40)]


def test_each_process_does_its_share_first(tmp_path):
    asked = []

    def make(wanted):
        asked.append(list(wanted))
        yield from squares(wanted)

    cache.complete(ShardStore(tmp_path), KEYS, make, "squares", Process(1, 3), patience=0.01)
    assert asked == [list(range(14, 27)), [*range(14), *range(27, 40)]]


def die_after_a_shard(folder):
    if list(folder.glob("[0-9]*")):
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_share_of_a_killed_process_is_done_by_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_SECONDS", 0)  # writes every entry immediately
    killed = multiprocessing.get_context("fork").Process(target=fill, args=(tmp_path, 1, 2, 60.0, die_after_a_shard))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    before = ShardStore(tmp_path).missing(KEYS)
    assert 20 < len(before) < 40
    fill(tmp_path, 0, 2, patience=0.05)
    assert not len(ShardStore(tmp_path).missing(KEYS))


def noise(number):
    return {"noise": np.random.default_rng(number).random(500 + number).astype(np.float16)}


def write_for_ever(folder, seed):
    shards = ShardStore(folder)
    for number in itertools.cycle(np.random.default_rng(seed).permutation(200).tolist()):
        shards.add(key_of("noise", number), noise(number))


def test_writers_killed_at_any_moment_leave_whole_entries_only(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 20_000)
    keys = [key_of("noise", number) for number in range(200)]
    for seed in range(3):
        writers = [
            multiprocessing.get_context("fork").Process(target=write_for_ever, args=(tmp_path, 10 * seed + n))
            for n in range(3)
        ]
        for writer in writers:
            writer.start()
        before = len(list(tmp_path.glob("[0-9]*")))
        while len(list(tmp_path.glob("[0-9]*"))) < before + 4 + 3 * seed:
            time.sleep(0.003)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        found = ShardStore(tmp_path)
        missing = set(found.missing(keys).tolist())
        assert len(missing) < 200
        assert all(same(found.read(keys[n])["noise"], noise(n)["noise"]) for n in set(range(200)) - missing)


def test_what_was_done_before_an_error_is_kept(tmp_path):
    def stops(wanted):
        yield from squares(wanted[:7])
        raise UserError("a damaged file")

    for shared in (ShardStore(tmp_path), MemoryStore()):
        with pytest.raises(UserError):
            cache.complete(shared, KEYS, stops, "squares", ALONE)
        assert len(shared.missing(KEYS)) == 33
    assert len(ShardStore(tmp_path).missing(KEYS)) == 33


def test_a_cache_larger_than_the_disk_is_refused(tmp_path):
    assert "0.002 GB in" in cache.check_space(ShardStore(tmp_path), 2_000_000, "latents")
    with pytest.raises(UserError, match=r"cache of latents: about 1e\+06 GB .* GB are free there; choose another disk"):
        cache.check_space(ShardStore(tmp_path / "not" / "yet"), 10**15, "latents")
