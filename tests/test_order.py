"""Which examples an update uses: exact for every size, world and position."""

import numpy as np
import pytest

from dtrain.data.order import Order, Sweep

WORLDS = (1, 2, 3, 4)
SIZES = [(1, 1, 1), (7, 3, 2), (12, 4, 2), (13, 4, 3), (20, 8, 1), (21, 8, 3), (9, 20, 4), (64, 64, 64)]
SWEEPS = [(1, 1), (7, 3), (12, 4), (13, 1), (5, 8)]


def working(order, update, world):
    """All micro-batches of an update that are not idle, by number."""
    shares = [order.share(update, rank, world) for rank in range(world)]
    return sorted(
        (micro for share in shares for micro in share if not micro.idle), key=lambda micro: micro.number
    )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("examples", "batch_size", "micro_batch_size"), SIZES)
def test_an_epoch_holds_every_example_once(examples, batch_size, micro_batch_size, world):
    order = Order(examples, batch_size, micro_batch_size, seed=3)
    for epoch in range(3):
        seen = []
        for update in range(epoch * order.updates_per_epoch, (epoch + 1) * order.updates_per_epoch):
            batch = working(order, update, world)
            assert [micro.number for micro in batch] == list(range(len(batch)))
            assert all(micro.epoch == epoch for micro in batch)
            assert all(1 <= len(micro.indices) <= micro_batch_size for micro in batch)
            assert sum(len(micro.indices) for micro in batch) == order.size(update)
            seen += [index for micro in batch for index in micro.indices]
        assert sorted(seen) == list(range(examples))


@pytest.mark.parametrize(("examples", "batch_size", "micro_batch_size"), SIZES)
def test_the_world_changes_no_micro_batch(examples, batch_size, micro_batch_size):
    order = Order(examples, batch_size, micro_batch_size, seed=3)
    for update in range(2 * order.updates_per_epoch):
        alone = [(m.number, m.indices.tolist()) for m in order.share(update, 0, 1)]
        for world in WORLDS:
            assert [(m.number, m.indices.tolist()) for m in working(order, update, world)] == alone


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("examples", "batch_size", "micro_batch_size"), SIZES)
def test_every_rank_has_equally_many_micro_batches_and_idles_on_the_first(
    examples, batch_size, micro_batch_size, world
):
    order = Order(examples, batch_size, micro_batch_size, seed=3)
    for update in range(order.updates_per_epoch):
        shares = [order.share(update, rank, world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        for rank, share in enumerate(shares):
            for micro in share:
                if micro.idle:
                    assert micro.number == 0
                    np.testing.assert_array_equal(micro.indices, shares[0][0].indices)
                else:
                    assert micro.number % world == rank


def test_only_the_last_batch_of_an_epoch_is_smaller():
    order = Order(examples=10, batch_size=4, micro_batch_size=4, seed=0)
    assert [order.size(update) for update in range(6)] == [4, 4, 2, 4, 4, 2]


def test_any_position_can_be_asked_for_at_once():
    order = Order(examples=1000, batch_size=32, micro_batch_size=8, seed=5)
    in_turn = [order.share(update, 1, 2) for update in range(100)]
    fresh = Order(examples=1000, batch_size=32, micro_batch_size=8, seed=5)
    for update in (99, 3, 32, 31, 0, 64):
        for ours, theirs in zip(fresh.share(update, 1, 2), in_turn[update], strict=True):
            np.testing.assert_array_equal(ours.indices, theirs.indices)
    assert len(order.share(10**15, 0, 2)) == 2  # never, if the way there had to be walked


def test_epochs_and_seeds_differ():
    order = Order(examples=100, batch_size=100, micro_batch_size=100, seed=0)
    first, second = (order.share(update, 0, 1)[0].indices.tolist() for update in (0, 1))
    other = (
        Order(examples=100, batch_size=100, micro_batch_size=100, seed=1).share(0, 0, 1)[0].indices.tolist()
    )
    assert first != second
    assert first != other


def test_micro_batches_cannot_alter_the_order():
    micro = Order(examples=10, batch_size=4, micro_batch_size=4, seed=0).share(0, 0, 1)[0]
    with pytest.raises(ValueError, match="read-only"):
        micro.indices[0] = 3


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("examples", "micro_batch_size"), SWEEPS)
def test_a_sweep_gives_every_example_once_in_order(examples, micro_batch_size, world):
    sweep = Sweep(examples, micro_batch_size)
    seen, numbers, update = [], [], 0
    while any(shares := [sweep.share(update, rank, world) for rank in range(world)]):
        assert [len(share) for share in shares] == [1] * world
        for micro in working(sweep, update, world):
            numbers.append(micro.number)
            seen += micro.indices.tolist()
        update += 1
    assert seen == list(range(examples))
    assert numbers == list(range(len(numbers)))
    assert sweep.share(update + 1, 0, world) == []
