import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from gpt2_lit.order import ORDER_VERSION, Position, WindowSampler, permute


@pytest.mark.parametrize("num_windows", [*range(1, 301), 1000, 4096, 4097, 65_535, 65_537, 100_003])
def test_each_window_has_one_place_in_an_epoch(num_windows):
    windows = permute(np.arange(num_windows), num_windows, seed=7, epoch=3)
    assert windows.dtype == np.int64
    assert np.array_equal(np.sort(windows), np.arange(num_windows))


@given(st.integers(1, 2**62), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=100)
def test_windows_of_any_places_are_different_and_in_range(num_windows, seed, epoch, data):
    places = st.lists(st.integers(0, num_windows - 1), unique=True, max_size=50)
    positions = np.array(data.draw(places), dtype=np.int64)
    windows = permute(positions, num_windows, seed, epoch).tolist()
    assert len(set(windows)) == len(positions)
    assert all(0 <= window < num_windows for window in windows)


def test_a_part_of_the_order_can_be_had_alone():
    whole = permute(np.arange(1000), 1000, seed=1, epoch=0)
    assert np.array_equal(permute(np.arange(300, 310), 1000, seed=1, epoch=0), whole[300:310])
    assert np.array_equal(permute(np.array([999, 0, 5]), 1000, seed=1, epoch=0), whole[[999, 0, 5]])


def test_the_places_asked_for_stay_as_they_are():
    positions = np.arange(10)
    permute(positions, 10, seed=1, epoch=0)
    assert positions.tolist() == list(range(10))


def test_the_order_never_changes_within_a_version():
    """Checkpoints are places in this order. Who changes it on purpose counts ORDER_VERSION up, and these values."""
    assert ORDER_VERSION == 1
    ten = {key: permute(np.arange(10), 10, *key).tolist() for key in [(42, 0), (42, 1), (43, 0), (-1, 0)]}
    assert ten == {
        (42, 0): [3, 2, 4, 8, 6, 9, 0, 7, 1, 5],
        (42, 1): [8, 6, 1, 3, 9, 0, 7, 4, 2, 5],
        (43, 0): [2, 8, 1, 6, 0, 7, 5, 9, 3, 4],
        (-1, 0): [5, 9, 2, 7, 0, 4, 1, 8, 3, 6],
    }
    n = 10**12
    places = np.array([0, 1, 2, 3, 4, n - 1])
    first, last = [482265028950, 614826915920, 511051335072, 637888388159, 842846357140], 409060810888
    assert permute(places, n, seed=42, epoch=0).tolist() == [*first, last]


def test_epochs_and_seeds_give_different_orders():
    keys = itertools.product(range(5), range(5))
    orders = {tuple(permute(np.arange(50), 50, seed, epoch)) for seed, epoch in keys}
    assert len(orders) == 25


def is_plausible(chi_square: float, freedom: int) -> bool:
    """Chi-square has the mean ``freedom`` and the variance ``2 * freedom``: within five standard deviations."""
    return abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_each_of_five_windows_comes_equally_often_at_each_place():
    counts = np.zeros((5, 5))
    for seed in range(1000):
        counts[np.arange(5), permute(np.arange(5), 5, seed, epoch=11)] += 1
    # Rows and columns of a table of permutations have fixed sums: 4 * 4 free numbers, and a factor of 4 / 5.
    assert is_plausible(((counts - 200) ** 2 / 200).sum() * 4 / 5, freedom=16)


def test_all_orders_of_four_windows_come_equally_often():
    orders = [tuple(permute(np.arange(4), 4, seed=11, epoch=epoch)) for epoch in range(4800)]
    counts = np.array([orders.count(order) for order in itertools.permutations(range(4))])
    assert is_plausible(((counts - 200) ** 2 / 200).sum(), freedom=23)


def batches(sampler: WindowSampler, num_passes: int = 1) -> list[list[int]]:
    return [batch.tolist() for _ in range(num_passes) for batch in sampler]


def epoch_in_batches(num_windows: int, batch_size: int, seed: int, epoch: int, drop_last: bool) -> list[list[int]]:
    """The obvious way: the whole order, cut up."""
    order = permute(np.arange(num_windows), num_windows, seed, epoch).tolist()
    cut = [order[start : start + batch_size] for start in range(0, num_windows, batch_size)]
    return [batch for batch in cut if len(batch) == batch_size or not drop_last]


SIZES = {"num_windows": st.integers(0, 60), "batch_size": st.integers(1, 8), "drop_last": st.booleans()}


@given(**SIZES)
@settings(deadline=None, max_examples=100)
def test_each_pass_is_the_next_epoch(num_windows, batch_size, drop_last):
    sampler = WindowSampler(num_windows, batch_size, seed=5, drop_last=drop_last)
    expected = [epoch_in_batches(num_windows, batch_size, 5, epoch, drop_last) for epoch in range(3)]
    assert [batches(sampler) for _ in range(3)] == expected
    assert len(sampler) == len(expected[0])


def test_an_epoch_longer_than_a_block_is_the_same_as_in_one_piece():
    sampler = WindowSampler(10_001, batch_size=3, seed=5, drop_last=False)
    assert batches(sampler) == epoch_in_batches(10_001, 3, seed=5, epoch=0, drop_last=False)


def test_without_shuffling_windows_come_in_reading_order():
    sampler = WindowSampler(7, batch_size=3, shuffle=False, drop_last=False)
    assert batches(sampler, num_passes=2) == 2 * [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_windows", [0, 5, 24, 47])
def test_processes_together_follow_the_order_of_one(num_windows, world_size):
    ranks = [WindowSampler(num_windows, 3, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = zip(*(batches(rank, num_passes=2) for rank in ranks), strict=True)
    together = [list(itertools.chain(*shares)) for shares in steps]
    one = WindowSampler(num_windows, 3 * world_size, seed=5)
    assert together == batches(one, num_passes=2)
    assert num_windows - sum(map(len, together)) // 2 < 3 * world_size
    assert all(len(rank) == len(one) for rank in ranks)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_windows", [0, 1, 2, 5, 24, 47])
def test_without_drop_last_each_window_comes_once_whatever_the_number_of_processes(num_windows, world_size):
    ranks = [WindowSampler(num_windows, 3, drop_last=False, rank=r, world_size=world_size) for r in range(world_size)]
    shares = [list(itertools.chain(*batches(rank))) for rank in ranks]
    assert all(map(len, itertools.chain(*map(batches, ranks))))
    assert sorted(itertools.chain(*shares)) == list(range(num_windows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(
    num_windows=st.integers(1, 60),
    batch_size=st.integers(1, 8),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
@settings(deadline=None, max_examples=150)
def test_from_any_position_on_come_the_rest_of_the_epoch_and_then_the_next_ones(
    num_windows, batch_size, drop_last, epoch, data
):
    window = data.draw(st.integers(0, num_windows))
    sampler = WindowSampler(
        num_windows, batch_size, seed=5, drop_last=drop_last, position=lambda: Position(epoch, window)
    )
    # From a window within a batch on, as after a change of the batch size, batches are counted from that window.
    order = permute(np.arange(num_windows), num_windows, 5, epoch).tolist()[window:]
    rest = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if drop_last:
        rest = [batch for batch in rest if len(batch) == batch_size]
    tail = rest + epoch_in_batches(num_windows, batch_size, 5, epoch + 1, drop_last)
    assert batches(sampler) == tail[: len(sampler)]


def test_the_position_is_asked_at_the_start_of_each_pass():
    positions = iter([Position(0, 4), Position(2, 0)])
    sampler = WindowSampler(8, 4, shuffle=False, position=lambda: next(positions))
    assert batches(sampler, num_passes=2) == [[4, 5, 6, 7], [0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]


@given(
    num_windows=st.integers(1, 40),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 3),
    drop_last=st.booleans(),
    num_batches=st.integers(0, 60),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_many_batches_on_is_as_many_times_one_batch_on(
    num_windows, batch_size, world_size, drop_last, num_batches, data
):
    sampler = WindowSampler(num_windows, batch_size, drop_last=drop_last, world_size=world_size)
    if not len(sampler):
        return
    start = position = Position(data.draw(st.integers(0, 2)), data.draw(st.integers(0, num_windows)))
    for _ in range(num_batches):
        position = sampler.after(position, 1)
    assert sampler.after(start, num_batches) == position


@pytest.mark.parametrize(
    ("drop_last", "start", "num_batches", "position"),
    [
        (True, (0, 0), 0, (0, 0)),
        (True, (0, 0), 2, (0, 8)),
        (True, (0, 0), 3, (1, 4)),
        (True, (0, 0), 7, (3, 4)),
        (True, (2, 1), 2, (2, 9)),
        (True, (2, 3), 2, (3, 4)),
        (False, (0, 0), 2, (0, 8)),
        (False, (0, 0), 3, (0, 10)),
        (False, (0, 0), 4, (1, 4)),
        (False, (2, 1), 3, (2, 10)),
    ],
)
def test_positions_count_windows(drop_last, start, num_batches, position):
    sampler = WindowSampler(10, batch_size=4, drop_last=drop_last)
    assert sampler.after(Position(*start), num_batches) == position


@given(**SIZES, num_done=st.integers(0, 40))
@settings(deadline=None, max_examples=100)
def test_who_goes_on_after_some_batches_sees_what_an_uninterrupted_training_sees(
    num_windows, batch_size, drop_last, num_done
):
    uninterrupted = WindowSampler(num_windows, batch_size, seed=5, drop_last=drop_last)
    if not len(uninterrupted):
        return
    position = uninterrupted.after(Position(0, 0), num_done)
    rest = WindowSampler(num_windows, batch_size, seed=5, drop_last=drop_last, position=lambda: position)
    num_passes = num_done // len(uninterrupted) + 2
    assert batches(rest) == batches(uninterrupted, num_passes)[num_done:][: len(rest)]


def test_lightning_takes_it_for_a_distributed_sampler_and_leaves_it_alone():
    assert isinstance(WindowSampler(10, 2), DistributedSampler)
