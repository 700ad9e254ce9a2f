"""Training order: every record once an epoch, shards in groups, a pure function of seed, epoch and position."""

import pickle

import pytest

from shards.order import TrainingOrder

COUNTS = [5, 0, 7, 3, 4, 6, 0, 2]


def test_every_record_once_an_epoch() -> None:
    order = TrainingOrder(COUNTS, seed=3, group_size=2)
    everything = {(shard, index) for shard, count in enumerate(COUNTS) for index in range(count)}
    epochs = [[order.at(epoch, position) for position in range(len(order))] for epoch in range(3)]
    assert all(len(epoch) == len(everything) and set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_only_a_group_of_shards_is_open_at_a_time() -> None:
    order = TrainingOrder([4] * 10, seed=0, group_size=2)
    shards = [order.at(0, position)[0] for position in range(40)]
    groups = [shards[start : start + 8] for start in range(0, 40, 8)]
    assert [len(set(group)) for group in groups] == [2] * 5
    assert any(group[:4] != [group[0]] * 4 for group in groups)  # and within a group records are mixed


def test_the_order_is_a_pure_function() -> None:
    order = TrainingOrder(COUNTS, seed=3, group_size=2)
    places = [(epoch, position) for epoch in range(2) for position in range(len(order))]
    expected = [order.at(*place) for place in places]
    backwards = pickle.loads(pickle.dumps(order))
    assert [backwards.at(*place) for place in reversed(places)] == expected[::-1]
    other = TrainingOrder(COUNTS, seed=4, group_size=2)
    assert [other.at(*place) for place in places] != expected
    assert order.locate(len(order) + 4) == (1, 4)


def test_the_order_is_the_same_for_ever() -> None:
    """Training resumes in mid-epoch after an upgrade too, so the order may never change."""
    order = TrainingOrder([3, 2, 4], seed=1, group_size=2)
    expected = [(2, 3), (2, 1), (0, 0), (0, 1), (2, 0), (2, 2), (0, 2), (1, 0), (1, 1)]
    assert [order.at(0, position) for position in range(9)] == expected


def test_nothing_to_order() -> None:
    with pytest.raises(ValueError, match="no record to train on"):
        TrainingOrder([0, 0], seed=0)
    with pytest.raises(ValueError, match="group_size is 0, should be at least 1"):
        TrainingOrder([3], seed=0, group_size=0)
    with pytest.raises(IndexError, match="position 3 is outside an epoch of 3 records"):
        TrainingOrder([3], seed=0).at(0, 3)
