import pytest
import torch

from seg2any.data.sampler import WINDOW, LengthBatches, published_length_class


def padded_share(lengths, batches):
    used = sum(lengths[i] for batch in batches for i in batch)
    return 1 - used / sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)


@pytest.mark.parametrize(("n", "batch_size", "world"), [(103, 4, 2), (64, 8, 1), (23, 2, 3)])
def test_an_epoch_shows_every_sample_at_most_once_and_drops_only_the_tail(n, batch_size, world):
    ranks = [LengthBatches(list(range(n)), batch_size, seed=1, rank=rank, world=world) for rank in range(world)]
    per_epoch = ranks[0].batches_per_epoch
    seen = [i for _ in range(per_epoch) for rank in ranks for i in next(rank)]
    assert len(seen) == len(set(seen)) == n // (batch_size * world) * batch_size * world
    again = [i for _ in range(per_epoch) for rank in ranks for i in next(rank)]
    assert again != seen


def test_a_data_set_smaller_than_a_batch_repeats_samples():
    batch = next(LengthBatches([5, 5, 5], 8))
    assert len(batch) == 8 and set(batch) == {0, 1, 2}


def test_similar_lengths_meet_in_a_batch_and_at_one_moment_on_all_ranks():
    lengths = torch.randint(10, 500, (WINDOW * 16,), generator=torch.Generator().manual_seed(0)).tolist()
    ranks = [LengthBatches(lengths, 4, rank=rank, world=2) for rank in range(2)]
    moments = [[next(rank) for rank in ranks] for _ in range(ranks[0].batches_per_epoch)]
    unsorted = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(1)).view(-1, 8).tolist()
    assert padded_share(lengths, [a + b for a, b in moments]) < 0.1 < 0.3 < padded_share(lengths, unsorted)


def test_long_batches_do_not_come_in_order():
    batches = LengthBatches(list(range(320)), 4)
    shortest = [min(next(batches)) for _ in range(40)]
    assert shortest != sorted(shortest) and shortest != sorted(shortest, reverse=True)


def test_state_is_the_position_across_epochs():
    batches = LengthBatches([1] * 10, 3, seed=3)
    expected = [next(batches) for _ in range(8)]
    resumed = LengthBatches([1] * 10, 3, seed=3)
    resumed.load_state_dict({"position": 4})
    assert [next(resumed) for _ in range(4)] == expected[4:]
    assert resumed.state_dict() == batches.state_dict()


def test_seed_and_epoch_change_the_order():
    lengths = list(range(40))
    a, b = LengthBatches(lengths, 4, seed=0), LengthBatches(lengths, 4, seed=1)
    assert a.epoch(0) != b.epoch(0) and a.epoch(0) != a.epoch(1) and a.epoch(0) == a.epoch(0)


def test_published_length_class_by_hand():
    assert published_length_class(49, 49) == 0
    assert published_length_class(50, 149) == 2_000_001
