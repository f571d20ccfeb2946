import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lit.data.packing import pack


def contents(packs) -> list[list[int]]:
    return [packs.records[start:stop].tolist() for start, stop in zip(packs.starts, packs.starts[1:], strict=False)]


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The room left in each window, by looking at all of them."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(0, 3))
@settings(deadline=None)
def test_each_record_is_in_one_window_that_holds_it_by_best_fit(lengths, seed):
    packs = contents(pack(np.array(lengths, np.int64), 20, seed))
    assert sorted(record for members in packs for record in members) == list(range(len(lengths)))
    rooms = [20 - sum(lengths[record] for record in members) for members in packs]
    assert sorted(rooms) == slow_best_fit(lengths, 20)


def test_the_seed_decides_which_records_meet():
    lengths = np.full(40, 5)
    one, other = (contents(pack(lengths, 10, seed)) for seed in (0, 1))
    assert one == contents(pack(lengths, 10, 0))
    assert sorted(one) != sorted(other)
    assert len(one) == len(other) == 20


def test_a_thousand_records_are_packed_as_ever():
    """A checkpoint is a position among packs: see PACKING_VERSION."""
    lengths = 1 + np.arange(1000) ** 2 % 97
    packs = pack(lengths, 128, seed=42)
    assert lengths.sum() / 128 == pytest.approx(381.6, abs=0.1)
    assert len(packs.starts) - 1 == 383
    assert contents(packs)[:4] == [[92, 390, 895], [30, 507, 956], [14, 455, 463], [127, 269, 374]]
