import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from gpt2_lit.data.order import (
    BLOCK_WINDOWS,
    GROUP_BLOCKS,
    ORDER_VERSION,
    Position,
    Shuffle,
    WindowSampler,
    _keys,
    _mix,
    permute,
    permute_in_blocks,
    permute_near,
    positions_in_blocks,
    positions_near,
    positions_of,
)

GROUP = GROUP_BLOCKS * BLOCK_WINDOWS
SHUFFLES = {"global": permute, "block": permute_in_blocks}


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


def place_of(window: int, num_windows: int, seed: int, epoch: int) -> int:
    """The order backwards, one number at a time: each round undoes itself, the last first."""
    bits = max((num_windows - 1).bit_length(), 6)
    right_bits, left_bits = bits // 2, bits - bits // 2
    while True:
        left, right = window >> right_bits, window & ((1 << right_bits) - 1)
        for i, key in reversed(list(enumerate(_keys(seed, epoch).tolist()))):
            if i % 2:
                right ^= int(_mix(np.array([left ^ key], np.uint64))[0]) >> (64 - right_bits)
            else:
                left ^= int(_mix(np.array([right ^ key], np.uint64))[0]) >> (64 - left_bits)
        window = left << right_bits | right
        if window < num_windows:
            return window


@given(st.integers(1, 2**62), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=50)
def test_from_each_window_there_is_a_way_back_to_its_one_place(num_windows, seed, epoch, data):
    place = data.draw(st.integers(0, num_windows - 1))
    (window,) = permute(np.array([place]), num_windows, seed, epoch).tolist()
    assert place_of(window, num_windows, seed, epoch) == place


@given(st.integers(1, 2**62), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=50)
def test_positions_are_the_way_back_from_windows(num_windows, seed, epoch, data):
    places = st.lists(st.integers(0, num_windows - 1), unique=True, max_size=50)
    positions = np.array(data.draw(places), dtype=np.int64)
    pairs = ((permute, positions_of), (permute_in_blocks, positions_in_blocks), (permute_near, positions_near))
    for there, back in pairs:
        assert np.array_equal(back(there(positions, num_windows, seed, epoch), num_windows, seed, epoch), positions)


# Around a block, a group, and a group with a block that is not full.
BLOCK_SIZES = [*range(1, 10), 255, 256, 257, 511, 512, 1000, GROUP - 1, GROUP, GROUP + 1, GROUP + 257, 3 * GROUP + 1000]


@pytest.mark.parametrize("num_windows", BLOCK_SIZES)
def test_each_window_has_one_place_in_an_epoch_in_blocks(num_windows):
    for seed, epoch in [(7, 3), (-1, 0)]:
        windows = permute_in_blocks(np.arange(num_windows), num_windows, seed, epoch)
        assert windows.dtype == np.int64
        assert np.array_equal(np.sort(windows), np.arange(num_windows))


@given(st.integers(1, 2**62), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=100)
def test_windows_of_any_places_are_different_and_in_range_in_blocks(num_windows, seed, epoch, data):
    places = st.lists(st.integers(0, num_windows - 1), unique=True, max_size=50)
    positions = np.array(data.draw(places), dtype=np.int64)
    windows = permute_in_blocks(positions, num_windows, seed, epoch).tolist()
    assert len(set(windows)) == len(positions)
    assert all(0 <= window < num_windows for window in windows)


@given(st.sampled_from(BLOCK_SIZES), st.data())
@settings(deadline=None, max_examples=50)
def test_a_part_of_the_order_in_blocks_can_be_had_alone(num_windows, data):
    places = np.array(data.draw(st.lists(st.integers(0, num_windows - 1), max_size=20)), dtype=np.int64)
    whole = permute_in_blocks(np.arange(num_windows), num_windows, seed=1, epoch=2)
    assert np.array_equal(permute_in_blocks(places, num_windows, seed=1, epoch=2), whole[places])


def blocks_read(windows: np.ndarray, num_windows: int) -> int:
    """The fewest stretches of 256 neighbours that hold these windows; the last window has the first as neighbour."""
    windows = np.sort(windows)
    gaps = np.diff(windows, append=windows[0] + num_windows)
    starts = np.flatnonzero(gaps > 1)
    stretches = np.diff(starts, append=starts[0] + len(windows)) if len(starts) else np.array([len(windows)])
    return int((-(-stretches // BLOCK_WINDOWS)).sum())


def test_a_group_of_positions_reads_only_as_many_blocks_as_it_has():
    num_windows = 5 * GROUP + 1000
    order = permute_in_blocks(np.arange(num_windows), num_windows, seed=3, epoch=1)
    groups = [order[start : start + GROUP] for start in range(0, num_windows, GROUP)]
    assert [blocks_read(group, num_windows) for group in groups] == [*[GROUP_BLOCKS] * 5, 4]
    assert blocks_read(permute(np.arange(GROUP), num_windows, seed=3, epoch=1), num_windows) > 100 * GROUP_BLOCKS


def test_within_a_group_the_blocks_mix_evenly():
    num_windows = 3 * GROUP
    order = permute_in_blocks(np.arange(num_windows), num_windows, seed=3, epoch=1)
    first = int(_keys(3, 1, 1)[0] % np.uint64(num_windows))
    blocks = (order[:GROUP] - first) % num_windows // BLOCK_WINDOWS
    names, blocks = np.unique(blocks, return_inverse=True)
    assert len(names) == GROUP_BLOCKS
    # In each sixteenth of the group a block has about 16 of its 256 windows.
    counts = np.zeros((16, GROUP_BLOCKS))
    np.add.at(counts, (np.arange(GROUP) * 16 // GROUP, blocks), 1)
    assert is_plausible(((counts - 16) ** 2 / 16).sum(), freedom=15 * 63)
    assert np.diff(names).max() > 1, "which are not neighbours"


def test_in_blocks_too_other_windows_sit_out_each_epoch():
    """What is left behind the last whole block comes last, so that it is what drop_last leaves out."""
    num_windows = 2 * BLOCK_WINDOWS + 3
    last = [
        set(permute_in_blocks(np.arange(num_windows - 3, num_windows), num_windows, 5, epoch)) for epoch in range(60)
    ]
    assert len(set.union(*last)) > 120, "of at most 180"


def test_the_order_in_blocks_never_changes_within_a_version():
    """As for the global order: checkpoints are places in it."""
    assert ORDER_VERSION == 1
    ten = {key: permute_in_blocks(np.arange(10), 10, *key).tolist() for key in [(42, 0), (42, 1), (-1, 0)]}
    assert ten == {
        (42, 0): [6, 2, 5, 1, 0, 8, 9, 4, 3, 7],
        (42, 1): [2, 8, 9, 5, 3, 4, 0, 7, 1, 6],
        (-1, 0): [9, 0, 8, 3, 7, 6, 4, 2, 5, 1],
    }
    n = 10**12
    places = np.array([0, 1, 2, GROUP, n // 2, n - 1])
    assert permute_in_blocks(places, n, seed=42, epoch=0).tolist() == [
        871736993480,
        576131259696,
        156394836984,
        134324643862,
        696542859898,
        492144873001,
    ]


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
    for seed in range(500):
        counts[np.arange(5), permute(np.arange(5), 5, seed, epoch=11)] += 1
    # Rows and columns of a table of permutations have fixed sums: 4 * 4 free numbers, and a factor of 4 / 5.
    assert is_plausible(((counts - 100) ** 2 / 100).sum() * 4 / 5, freedom=16)


def test_all_orders_of_four_windows_come_equally_often():
    orders = [tuple(permute(np.arange(4), 4, seed=11, epoch=epoch)) for epoch in range(1200)]
    counts = np.array([orders.count(order) for order in itertools.permutations(range(4))])
    assert is_plausible(((counts - 50) ** 2 / 50).sum(), freedom=23)


def batches(sampler: WindowSampler, num_passes: int = 1) -> list[list[int]]:
    return [batch.tolist() for _ in range(num_passes) for batch in sampler]


def epoch_in_batches(
    num_windows: int, batch_size: int, seed: int, epoch: int, drop_last: bool, shuffle: str = "global"
) -> list[list[int]]:
    """The obvious way: the whole order, cut up."""
    order = SHUFFLES[shuffle](np.arange(num_windows), num_windows, seed, epoch).tolist() if num_windows else []
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


@given(
    num_windows=st.integers(0, 700),
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 5),
    shuffle=st.sampled_from(["global", "block", False]),
    data=st.data(),
)
@settings(deadline=None, max_examples=150)
def test_processes_together_follow_the_order_of_one(num_windows, batch_size, world_size, shuffle, data):
    start = Position(2, data.draw(st.integers(0, num_windows)))
    position = data.draw(st.sampled_from([None, lambda: start]))

    def sampler(batch_size: int, rank: int = 0, world_size: int = 1) -> WindowSampler:
        return WindowSampler(num_windows, batch_size, 5, shuffle, True, rank, world_size, position)

    one = sampler(batch_size * world_size)
    ranks = [sampler(batch_size, rank, world_size) for rank in range(world_size)]
    steps = zip(*(batches(rank, num_passes=2) for rank in ranks), strict=True)
    together = [list(itertools.chain(*shares)) for shares in steps]
    assert together == batches(one, num_passes=2)
    assert all(len(rank) == len(one) == len(together) / 2 for rank in ranks)
    assert num_windows - len(one) * one.global_batch < batch_size * world_size, "less than a global batch sits out"


@given(
    num_windows=st.integers(0, 100),
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 5),
    shuffle=st.sampled_from(["global", "block", False]),
)
@settings(deadline=None, max_examples=150)
def test_without_drop_last_each_window_comes_once_and_all_processes_have_as_many_batches(
    num_windows, batch_size, world_size, shuffle
):
    ranks = [
        WindowSampler(num_windows, batch_size, 5, shuffle, drop_last=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches_of = [batches(rank) for rank in ranks]
    windows_of = [list(itertools.chain(*of_rank)) for of_rank in batches_of]
    assert sorted(itertools.chain(*windows_of)) == list(range(num_windows))
    assert {len(of_rank) for of_rank in batches_of} == {len(rank) for rank in ranks} == {len(ranks[0])}
    assert len(windows_of[0]) == max(map(len, windows_of)) <= min(map(len, windows_of)) + 2
    one = batches(WindowSampler(num_windows, batch_size * world_size, 5, shuffle, drop_last=False))
    together = [list(itertools.chain(*shares)) for shares in zip(*batches_of, strict=True)]
    assert together[:-2] == one[:-2], "so that limit_val_batches means the same"
    sizes = [len(batch) for of_rank in batches_of for batch in of_rank]
    assert max(sizes, default=0) <= batch_size
    if num_windows >= world_size and batch_size > 1:
        assert min(sizes) > 0


def test_a_place_within_an_epoch_has_no_meaning_for_processes_that_share_what_is_left():
    with pytest.raises(ValueError, match="need drop_last"):
        WindowSampler(10, 2, drop_last=False, world_size=2, position=lambda: Position(0, 4))


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_other_windows_sit_out_each_epoch(shuffle: Shuffle):
    ranks = [WindowSampler(45, 2, seed=5, shuffle=shuffle, rank=rank, world_size=4) for rank in range(4)]
    epochs = [set(itertools.chain(*itertools.chain(*map(batches, ranks)))) for _ in range(40)]
    assert {len(windows) for windows in epochs} == {40}
    left_out = [set(range(45)) - windows for windows in epochs]
    assert len(set.union(*left_out)) > 40, "in turns"


@given(
    num_windows=st.integers(1, 60),
    batch_size=st.integers(1, 8),
    drop_last=st.booleans(),
    shuffle=st.sampled_from(list(SHUFFLES)),
    epoch=st.integers(0, 3),
    data=st.data(),
)
@settings(deadline=None, max_examples=150)
def test_from_any_position_on_come_the_rest_of_the_epoch_and_then_the_next_ones(
    num_windows, batch_size, drop_last, shuffle, epoch, data
):
    window = data.draw(st.integers(0, num_windows))
    sampler = WindowSampler(num_windows, batch_size, 5, shuffle, drop_last, position=lambda: Position(epoch, window))
    # From a window within a batch on, as after a change of the batch size, batches are counted from that window.
    order = SHUFFLES[shuffle](np.arange(num_windows), num_windows, 5, epoch).tolist()[window:]
    rest = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if drop_last:
        rest = [batch for batch in rest if len(batch) == batch_size]
    tail = rest + epoch_in_batches(num_windows, batch_size, 5, epoch + 1, drop_last, shuffle)
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
