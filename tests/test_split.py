import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2_lit.data.split import STRETCH_TOKENS, Range, Split, split_tokens


def nearest_of(document_ends: list[int]) -> Callable[[int, int], int]:
    """As :meth:`TokenStore.nearest_document_end`, from a list."""

    def nearest(position: int, within: int) -> int:
        near = [end for end in document_ends if abs(end - position) <= within]
        return min(near, key=lambda end: abs(end - position), default=position)

    return nearest


FRACTIONS = st.floats(min_value=0, max_value=0.999)


@st.composite
def texts(draw) -> tuple[int, list[int]]:
    """The length of a text, short or long, and the ends of its documents."""
    num_tokens = draw(st.one_of(st.integers(1, 300), st.integers(1, 3_000_000)))
    ends = draw(st.lists(st.integers(1, num_tokens), unique=True, max_size=draw(st.sampled_from([0, 3, 300]))))
    return num_tokens, sorted(ends)


def check_split(split: Split, num_tokens: int, context_size: int) -> None:
    """No token on both sides and none on neither; one window or more on each side that is not empty."""
    ranges = sorted(split.train + split.val)
    assert split == Split(sorted(split.train), sorted(split.val))
    assert [r.start for r in ranges] == [0, *(r.stop for r in ranges[:-1])]
    assert ranges[-1].stop == num_tokens
    assert all(r.num_tokens > 0 for r in ranges)
    assert any(r.num_tokens > context_size for r in split.train)
    assert all(r.num_tokens > context_size for r in split.val)


@given(texts(), FRACTIONS, st.one_of(st.integers(1, 100), st.integers(1, 10_000)), st.integers(0, 10**6))
@example((6_000_000, list(range(1, 6_000_000, 9_000))), 0.5, 1024, 0)
@settings(deadline=None, max_examples=400)
def test_each_token_is_on_one_side_and_each_side_has_a_window_or_it_is_an_error(text, val_fraction, context_size, seed):
    num_tokens, document_ends = text
    try:
        split = split_tokens(num_tokens, val_fraction, context_size, seed, nearest_of(document_ends))
    except ValueError as error:
        split, message = None, str(error)
    if split:
        check_split(split, num_tokens, context_size)
    else:
        assert f"context_size + 1 = {context_size + 1} tokens" in message
        assert num_tokens < 2 * (context_size + 1) or val_fraction > 0.5


@given(texts(), st.floats(min_value=0.001, max_value=0.5), st.integers(1, 2000), st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=200)
def test_two_windows_are_enough_for_a_split_in_halves_or_less(text, val_fraction, context_size, seed, data):
    num_tokens, document_ends = text
    num_tokens += 2 * (context_size + 1)
    document_ends += data.draw(st.lists(st.integers(num_tokens - context_size, num_tokens), unique=True).map(sorted))
    check_split(
        split_tokens(num_tokens, val_fraction, context_size, seed, nearest_of(document_ends)), num_tokens, context_size
    )


@given(st.integers(1, 10**8), st.floats(min_value=0.001, max_value=0.5), st.integers(1, 1000), st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_validation_has_the_tokens_asked_for_and_one_window_at_least(num_tokens, val_fraction, context_size, seed):
    num_tokens += 2 * (context_size + 1)
    split = split_tokens(num_tokens, val_fraction, context_size, seed)
    wanted = max(round(num_tokens * val_fraction), context_size + 1)
    # Stretches are equally long, so that a remainder smaller than their number is left.
    assert 0 <= wanted - sum(r.num_tokens for r in split.val) < max(len(split.val), wanted // STRETCH_TOKENS, 1)


@given(texts(), st.floats(min_value=0.001, max_value=0.5), st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_with_documents_validation_has_what_was_asked_for_within_one_stretch(text, val_fraction, seed):
    num_tokens, document_ends = text
    num_tokens += 4
    plain = split_tokens(num_tokens, val_fraction, 1, seed).val
    moved = split_tokens(num_tokens, val_fraction, 1, seed, nearest_of(document_ends)).val
    stretch = plain[0].num_tokens
    assert len(moved) == len(plain)
    assert abs(sum(r.num_tokens for r in moved) - sum(r.num_tokens for r in plain)) < stretch
    for old, new in zip(plain, moved, strict=True):
        assert abs(new.start - old.start) < stretch / 2
        assert abs(new.num_tokens - stretch) < stretch / 2


@pytest.mark.parametrize(
    ("document_ends", "val"),
    [
        ([], Range(200, 400)),
        ([180, 390], Range(180, 390)),
        ([190, 205, 395], Range(205, 395)),
        ([175, 400], Range(175, 400)),
        ([174, 426], Range(200, 400)),
        ([380], Range(200, 380)),
        ([210, 211, 700], Range(210, 410)),
    ],
    ids=["none", "both near", "the nearest", "an eighth", "beyond an eighth", "only one near", "the nearer of a pair"],
)
def test_a_stretch_begins_and_ends_at_a_document_end_near_it(document_ends, val):
    # Of five places this seed takes the second.
    split = split_tokens(1000, 0.2, context_size=10, seed=3, nearest_document_end=nearest_of(document_ends))
    assert split == Split([Range(0, val.start), Range(val.stop, 1000)], [val])


def test_the_split_of_a_long_text_is_the_same_on_every_machine_and_in_every_version():
    assert split_tokens(1_000_000, val_fraction=0.1, context_size=64, seed=42) == Split(
        train=[Range(33_333, 266_666), Range(299_999, 633_333), Range(666_666, 1_000_000)],
        val=[Range(0, 33_333), Range(266_666, 299_999), Range(633_333, 666_666)],
    )


def test_another_seed_takes_other_stretches():
    splits = [split_tokens(10**6, 0.1, 64, seed).val for seed in range(5)]
    assert all(splits.count(val) == 1 for val in splits)


def test_validation_may_lie_anywhere():
    splits = [split_tokens(100, 0.1, 4, seed) for seed in range(200)]
    assert {split.val[0].start for split in splits} == set(range(0, 100, 10))


@given(st.integers(100, 10**6), st.integers(0, 10**6), st.integers(1, 99))
@settings(deadline=None, max_examples=50)
def test_the_context_size_does_not_move_the_split_while_validation_has_room_for_a_window(num_tokens, seed, percent):
    context_size = max(num_tokens * percent // 1000 - 1, 1)
    num_val_tokens = round(num_tokens * 0.1)
    assert context_size < num_val_tokens
    if context_size < 4096:
        assert split_tokens(num_tokens, 0.1, context_size, seed) == split_tokens(num_tokens, 0.1, 1, seed)


def test_a_val_fraction_of_0_leaves_all_for_training():
    assert split_tokens(5, 0.0, context_size=4, seed=1, nearest_document_end=nearest_of([2])) == Split(
        [Range(0, 5)], []
    )


@pytest.mark.parametrize(
    ("num_tokens", "val_fraction", "message"),
    [
        (
            4,
            0.0,
            r"= 5 tokens in train, and the text has 4. Lower data.context_size to at most 3, or give",
        ),
        (9, 0.1, r"= 5 tokens in train and 5 for val, and the text has 9. Lower .* or data.val_fraction, or give"),
        (100, 0.98, r"= 5 tokens in train and 98 for val, and the text has 100"),
    ],
)
def test_a_text_that_is_too_short_is_an_error_with_the_numbers(num_tokens, val_fraction, message):
    with pytest.raises(ValueError, match=message):
        split_tokens(num_tokens, val_fraction, context_size=4, seed=1)


@pytest.mark.parametrize("val_fraction", [0.0, 0.1, 0.5, 0.7, 0.98])
def test_the_context_size_that_the_error_names_is_the_largest(val_fraction):
    for num_tokens in (9, 10, 101, 150):
        with pytest.raises(ValueError, match=r"Lower data.context_size") as raised:
            split_tokens(num_tokens, val_fraction, context_size=10**4, seed=1)
        found = re.search(r"at most (\d+)", str(raised.value))
        largest = int(found[1]) if found else 0
        if largest:
            split_tokens(num_tokens, val_fraction, context_size=largest, seed=1)
        with pytest.raises(ValueError, match=r"too short"):
            split_tokens(num_tokens, val_fraction, context_size=largest + 1, seed=1)


def test_stretches_that_leave_no_window_between_them_are_an_error():
    # 30 of 30 places: what is left between two of them is 344 tokens.
    split_tokens(10**6, 0.99, context_size=300, seed=1)
    with pytest.raises(ValueError, match=r"val_fraction 0.99 leaves no stretch of context_size \+ 1 = 401 tokens"):
        split_tokens(10**6, 0.99, context_size=400, seed=1)


def test_a_stretch_for_validation_has_at_least_eight_windows():
    window = STRETCH_TOKENS
    split = split_tokens(160 * window, val_fraction=0.1, context_size=window - 1, seed=1)
    assert [stretch.num_tokens for stretch in split.val] == [8 * window] * 2
