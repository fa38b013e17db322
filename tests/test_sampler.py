"""Samplers: batches of similar length, the published order, and resuming."""

import numpy as np
import pytest

from seg2any.data.sampler import LEFT_OUT, LengthBatches, PublishedBatches, published_length_class
from seg2any.system.errors import UserError
from seg2any.system.processes import Process


def lengths_like(n, seed=0):
    random = np.random.default_rng(seed)
    return np.stack([random.integers(10, 500, n), random.integers(10, 500, n)], axis=1)


def padded_share(lengths, batches):
    """Return the padded share of all tokens, counted sample by sample.

    Text and condition are each padded to the longest of the batch.
    """
    used = sum(int(lengths[i].sum()) for batch in batches for i in batch)
    longest = sum(sum(max(lengths[i][kind] for i in batch) for kind in (0, 1)) * len(batch) for batch in batches)
    return 1 - used / longest


@pytest.mark.parametrize(("n", "batch_size", "world"), [(103, 4, 2), (64, 8, 1), (23, 2, 3)])
def test_an_epoch_shows_every_sample_at_most_once_and_drops_only_the_tail(n, batch_size, world):
    ranks = [LengthBatches(lengths_like(n), batch_size, seed=1, process=Process(rank, world)) for rank in range(world)]
    per_epoch = ranks[0].batches_per_epoch
    seen = [i for _ in range(per_epoch) for rank in ranks for i in next(rank)]
    assert len(seen) == len(set(seen)) == n // (batch_size * world) * batch_size * world
    again = [i for _ in range(per_epoch) for rank in ranks for i in next(rank)]
    assert again != seen


def test_every_sample_is_shown_eventually():
    batches = LengthBatches(lengths_like(23), 4)
    assert {int(i) for number in range(8) for i in batches.epoch(number).ravel()} == set(range(23))


def test_a_data_set_smaller_than_a_batch_repeats_samples():
    batch = next(LengthBatches(lengths_like(3), 8))
    assert len(batch) == 8 and set(batch) == {0, 1, 2}


def test_no_sample_at_all_is_refused():
    with pytest.raises(UserError, match="no sample"):
        LengthBatches(np.zeros((0, 2), int), 8)


def test_similar_lengths_share_a_batch_and_a_step_on_all_ranks():
    lengths = lengths_like(4096)
    ranks = [LengthBatches(lengths, 4, process=Process(rank, 2)) for rank in range(2)]
    moments = [[next(rank) for rank in ranks] for _ in range(ranks[0].batches_per_epoch)]
    unsorted = np.random.default_rng(1).permutation(len(lengths)).reshape(-1, 8).tolist()
    assert padded_share(lengths, [a + b for a, b in moments]) < 0.12 < 0.4 < padded_share(lengths, unsorted)
    assert padded_share(lengths, [batch for moment in moments for batch in moment]) < 0.09


def test_batches_are_not_ordered_by_length():
    batches = LengthBatches(np.stack([np.arange(320)] * 2, axis=1), 4)
    shortest = [min(next(batches)) for _ in range(40)]
    assert shortest != sorted(shortest) and shortest != sorted(shortest, reverse=True)


def test_neighbours_in_length_do_not_always_share_a_batch():
    """Check that windows are sorted, not the whole data set.

    Otherwise every epoch would have the same batches.
    """
    batches = LengthBatches(np.stack([np.arange(400)] * 2, axis=1), 4)
    sets = [{frozenset(batch) for batch in batches.epoch(number).reshape(-1, 4).tolist()} for number in range(2)]
    assert len(sets[0] & sets[1]) < 5


@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_never_mixes_aspect_buckets(world):
    buckets = np.random.default_rng(0).choice([3, 7, 8], 200, p=[0.6, 0.385, 0.015])
    assert (buckets == 8).sum() < 4 * world < (buckets == 7).sum()
    ranks = [
        LengthBatches(lengths_like(200), 4, process=Process(rank, world), buckets=buckets) for rank in range(world)
    ]
    seen = []
    for _ in range(ranks[0].batches_per_epoch):
        moment = [next(rank) for rank in ranks]
        assert len({buckets[i] for batch in moment for i in batch}) == 1
        seen += [i for batch in moment for i in batch]
    for bucket in (3, 7, 8):
        of_bucket, members = [i for i in seen if buckets[i] == bucket], (buckets == bucket).sum()
        if bucket == 8:  # too few for one batch of every rank: repeated
            assert len(of_bucket) == 4 * world and len(set(of_bucket)) == members
        else:
            assert len(of_bucket) == len(set(of_bucket)) > members - 4 * world


@pytest.mark.parametrize("kind", [LengthBatches, PublishedBatches])
def test_state_is_the_position_across_epochs(kind):
    batches = kind(lengths_like(10), 3, seed=3)
    expected = [next(batches) for _ in range(8)]
    resumed = kind(lengths_like(10), 3, seed=3)
    resumed.load_state_dict(batches.state_dict() | {"taken": 12})
    assert [next(resumed) for _ in range(4)] == expected[4:]
    assert resumed.state_dict() == batches.state_dict()


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("kind", [LengthBatches, PublishedBatches])
def test_set_epoch_goes_to_the_same_epoch_on_every_rank(kind, world):
    for rank in range(world):
        walked = kind(lengths_like(57), 2, seed=3, process=Process(rank, world))
        epochs = [[next(walked) for _ in range(walked.batches_per_epoch)] for _ in range(3)]
        assert epochs[0] != epochs[1] != epochs[2]
        jumped = kind(lengths_like(57), 2, seed=3, process=Process(rank, world))
        for number in (2, 0, 1):
            jumped.set_epoch(number)
            assert [next(jumped) for _ in range(jumped.batches_per_epoch)] == epochs[number]
        whole = jumped.epoch(1)
        assert whole.shape == (jumped.groups_per_epoch, world * 2)
        assert whole.reshape(-1, world, 2)[:, rank].tolist() == epochs[1]


def test_running_ahead_does_not_move_the_position():
    batches = LengthBatches(lengths_like(10), 3)
    next(batches)
    ahead = batches.ahead()
    expected = [next(ahead) for _ in range(5)]
    assert batches.taken == 3 and [next(batches) for _ in range(5)] == expected


SHARES = [(8, 1, 1), (4, 2, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (2, 1, 4), (1, 2, 4)]  # batch, accumulated, processes


def steps_of(shares, count, state=None, kind=LengthBatches):
    """Return the samples of `count` steps as one list each, and the state after them."""
    batch_size, accumulation, world = shares
    buckets = np.random.default_rng(2).choice([LEFT_OUT, 7, 9], 60, p=[0.1, 0.6, 0.3])
    if kind is PublishedBatches:
        buckets = np.where(buckets == LEFT_OUT, LEFT_OUT, 7)
    processes = [Process(rank, world) for rank in range(world)]
    ranks = [kind(lengths_like(60), batch_size, 3, one, buckets, accumulation) for one in processes]
    for rank in ranks if state else ():
        rank.load_state_dict(state)
    steps = [[i for _ in range(accumulation) for rank in ranks for i in next(rank)] for _ in range(count)]
    for samples in steps:
        assert len({buckets[i] for i in samples}) == 1 or (state and state.get("batch_size"))
    return steps, ranks[-1].state_dict()


@pytest.mark.parametrize("shares", SHARES[1:])
def test_the_same_samples_make_a_step_however_they_are_shared(shares):
    whole, state = steps_of(SHARES[0], 15)  # over two ends of epochs
    assert steps_of(shares, 15) == (whole, state)
    first, state = steps_of(SHARES[0], 4)
    second, state = steps_of(shares, 5, state)
    assert first + second + steps_of((2, 1, 4), 6, state)[0] == whole


@pytest.mark.parametrize("kind", [LengthBatches, PublishedBatches])
@pytest.mark.parametrize("shares", [(2, 2, 2), (2, 4, 1), (1, 2, 4), (2, 1, 4)])
def test_older_states_go_on_in_their_order_on_any_number_of_processes(kind, shares):
    """Compare with groups of one batch for both processes, as older runs formed them, two in a step."""
    groups, _ = steps_of((2, 1, 2), 30, kind=kind)
    pairs = [groups[at] + groups[at + 1] for at in range(0, 30, 2)]
    order = steps_of((2, 1, 2), 1, kind=kind)[1]["order"]
    old = {"position": 6, "batch_size": 2, "world": 2, "order": order}
    found, state = steps_of(shares, 12, old, kind)
    assert found == pairs[3:] and state == {"taken": 15 * 8, "group": 4, "order": order}


def test_the_state_of_another_order_is_refused():
    state = LengthBatches(lengths_like(10), 3, process=Process(0, 2)).state_dict()
    for other, what in (
        (LengthBatches(lengths_like(10), 4), "trainer.train_batch_size"),
        (LengthBatches(lengths_like(10, seed=1), 3, process=Process(0, 2)), "checkpoint"),
        (LengthBatches(lengths_like(10), 3, seed=1, process=Process(0, 2)), "checkpoint"),
        (PublishedBatches(lengths_like(10), 3, process=Process(0, 2)), "checkpoint"),
    ):
        with pytest.raises(UserError, match=f"^{what}: "):
            other.load_state_dict(state)


@pytest.mark.parametrize("kind", [LengthBatches, PublishedBatches])
def test_samples_that_cannot_be_used_are_in_no_batch(kind):
    buckets = np.where(np.arange(40) % 3 == 0, LEFT_OUT, 0)
    seen = {int(i) for number in range(9) for i in kind(lengths_like(40), 4, buckets=buckets).epoch(number).ravel()}
    assert seen == {i for i in range(40) if i % 3}


def test_the_published_order_refuses_several_sizes():
    with pytest.raises(UserError, match="use length, or data.aspect stretch"):
        PublishedBatches(lengths_like(4), 2, buckets=[0, 0, 1, 1])


def test_seed_and_epoch_change_the_order():
    a, b = LengthBatches(lengths_like(40), 4, seed=0), LengthBatches(lengths_like(40), 4, seed=1)
    orders = [batches.epoch(number).tolist() for batches in (a, b) for number in (0, 1)]
    assert all(orders.count(order) == 1 for order in orders) and a.epoch(0).tolist() == orders[0]


def test_the_order_is_that_of_raw_pcg64():
    """Compare with an order written out: any change would resume runs in the wrong place."""
    drawn = np.random.PCG64(np.random.SeedSequence((5, 2))).random_raw(4)
    assert LengthBatches(np.ones((4, 2), int), 4, seed=5).epoch(2).ravel().tolist() == np.argsort(drawn).tolist()


def test_global_random_numbers_are_left_alone():
    before = np.random.get_state()[1].copy()
    PublishedBatches(lengths_like(30), 4).epoch(0)
    LengthBatches(lengths_like(30), 4).epoch(0)
    assert np.array_equal(before, np.random.get_state()[1])


def test_published_length_class_by_hand():
    assert published_length_class(49, 49) == 0
    assert published_length_class(50, 149) == 2_000_001


def test_shares_are_consecutive_and_whole():
    assert [list(Process(rank, 3).consecutive_share(5)) for rank in range(3)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("kind", [LengthBatches, PublishedBatches])
@pytest.mark.parametrize("count", [3, 16, 41, 500])
def test_the_samples_among_the_first_are_those_that_are_handed_out(kind, count):
    sampler = kind(lengths_like(23), 1, seed=1)
    handed_out = {index for _ in range(count) for index in next(sampler)}
    assert sampler.among_first(count).tolist() == sorted(handed_out)
