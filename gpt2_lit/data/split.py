"""tokens -> train and val ranges: whole stretches of the text, so that no token is on both sides."""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from gpt2_lit.errors import InvalidValue

# Tokens in a stretch of validation. Each loses less than one window at its end: 3 % at a context of 1024.
STRETCH_TOKENS = 32_768
MAX_STRETCHES = 4096  # a store of any size is split in the same few milliseconds


class Range(NamedTuple):
    """The tokens from ``start`` up to, and without, ``stop``."""

    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


class Split(NamedTuple):
    """Disjoint token ranges in reading order."""

    train: list[Range]
    val: list[Range]


def split_tokens(
    num_tokens: int,
    val_fraction: float,
    context_size: int,
    seed: int,
    nearest_document_end: Callable[[int, int], int] = lambda position, within: position,
) -> Split:
    """Set stretches of a text aside for validation, at positions that the seed decides; at least one window of it.

    They begin and end where ``nearest_document_end`` says, within an eighth of their length.

    Example:
        >>> split_tokens(100, val_fraction=0.2, context_size=4, seed=1)
        Split(train=[Range(start=20, stop=100)], val=[Range(start=0, stop=20)])
    """
    window = context_size + 1
    val_tokens = max(round(num_tokens * val_fraction), window) if val_fraction else 0
    if num_tokens - val_tokens < window:
        raise _too_short(num_tokens, val_tokens, window, val_fraction)
    if not val_tokens:
        return Split([Range(0, num_tokens)], [])

    num_stretches = min(max(val_tokens // max(STRETCH_TOKENS, 8 * window), 1), MAX_STRETCHES)
    length = val_tokens // num_stretches
    num_slots = max(num_tokens // length, 2)
    slack = math.floor(min(length / 8, (length - window) / 2))

    val: list[Range] = []
    owed = 0  # tokens that validation has too few so far, or too many
    for slot in _choose(num_slots, num_stretches, seed):
        start = nearest_document_end((num_tokens - length) * slot // (num_slots - 1), slack)
        start = max(start, val[-1].stop if val else 0)
        stop = min(nearest_document_end(start + length + owed, slack), num_tokens)
        owed += length - (stop - start)
        val.append(Range(start, stop))

    borders = [0, *(border for stretch in val for border in stretch), num_tokens]
    train = [Range(start, stop) for start, stop in zip(borders[::2], borders[1::2], strict=True) if start < stop]
    assert borders == sorted(borders), "train and val must be disjoint"
    if all(stretch.num_tokens < window for stretch in train):
        raise InvalidValue(
            f"val_fraction {val_fraction} leaves no stretch of context_size + 1 = {window} tokens for train. "
            "Lower data.val_fraction or data.context_size."
        )
    return Split(train, val)


def _choose(num_slots: int, num_chosen: int, seed: int) -> list[int]:
    """Different numbers below ``num_slots``, ascending. Python keeps what random() gives for a seed, not sample()."""
    rng = random.Random(seed)
    chosen: set[int] = set()
    while len(chosen) < num_chosen:
        chosen.add(int(rng.random() * num_slots))
    return sorted(chosen)


def _too_short(num_tokens: int, val_tokens: int, window: int, val_fraction: float) -> InvalidValue:
    val_part = f" and {val_tokens} for val" if val_tokens else ""
    # A window needs one token more; train and val need one each, or train what val leaves.
    largest = min(num_tokens // 2, num_tokens - round(num_tokens * val_fraction)) - 1 if val_tokens else num_tokens - 1
    lower = f"Lower data.context_size to at most {largest}" if largest > 0 else "Lower data.context_size"
    return InvalidValue(
        f"the text is too short: one window needs context_size + 1 = {window} tokens in train{val_part}, "
        f"and the text has {num_tokens}. {lower}{', or data.val_fraction' * bool(val_tokens)}, "
        "or give more text."
    )
