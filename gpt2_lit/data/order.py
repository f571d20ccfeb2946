"""(seed, epoch, position) -> which window comes next: a shuffle that is computed, and so can resume anywhere."""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DistributedSampler

from gpt2_lit.errors import InvalidValue

# A checkpoint is a position in this order: whoever changes a line of permute() must count this up.
ORDER_VERSION = 1
_ROUNDS = 8
_AT_A_TIME = 4096  # windows whose order is computed in one go

# Of the shuffle in blocks: at a context of 1024, a block is half a megabyte on disk, and a group 32 of them.
BLOCK_WINDOWS = 256
GROUP_BLOCKS = 64
_FIRST, _GROUP, _BLOCKS = 1, 2, 3  # what a key is for

Shuffle = Literal["global", "block", "length"] | bool


def permute(positions: Int64[np.ndarray, " B"], num_windows: int, seed: int, epoch: int) -> Int64[np.ndarray, " B"]:
    """The windows at these positions of a shuffled epoch: for each seed and epoch a permutation of all windows.

    Any part is computed without the rest: a Feistel network permutes the numbers below a power of two, and a result
    beyond ``num_windows`` goes through it again ("cycle walking").
    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002); mixing constants of splitmix64.

    Example:
        >>> permute(np.arange(10), num_windows=10, seed=42, epoch=0).tolist()
        [3, 2, 4, 8, 6, 9, 0, 7, 1, 5]
    """
    return _permute(positions, num_windows, _keys(seed, epoch))


def permute_in_blocks(
    positions: Int64[np.ndarray, " B"], num_windows: int, seed: int, epoch: int
) -> Int64[np.ndarray, " B"]:
    """The same for cold disks and for stores larger than memory: neighbouring windows stay near each other.

    Blocks of 256 neighbouring windows, which begin at another window each epoch, are permuted, and then the windows of
    each group of 64 blocks in the new order: a batch draws from 64 blocks.

    Example:
        >>> permute_in_blocks(np.arange(10), num_windows=10, seed=42, epoch=0).tolist()
        [6, 2, 5, 1, 0, 8, 9, 4, 3, 7]
    """
    return _in_blocks(positions, num_windows, seed, epoch, BLOCK_WINDOWS, GROUP_BLOCKS)


def permute_near(
    positions: Int64[np.ndarray, " B"], num_windows: int, seed: int, epoch: int
) -> Int64[np.ndarray, " B"]:
    """The same for windows in the order of their lengths: a batch has windows of nearly one length.

    Blocks of 8 to 256 neighbours, which begin at another window each epoch, are permuted, and the windows within each.

    Example:
        >>> permute_near(np.arange(20), num_windows=20, seed=42, epoch=0).tolist()
        [16, 2, 15, 1, 0, 18, 19, 17, 8, 4, 10, 3, 9, 5, 7, 6, 12, 14, 11, 13]
    """
    return _in_blocks(positions, num_windows, seed, epoch, _near_block(num_windows), 1)


def positions_of(windows: Int64[np.ndarray, " B"], num_windows: int, seed: int, epoch: int) -> Int64[np.ndarray, " B"]:
    """The way back from :func:`permute`: at which positions of a shuffled epoch these windows come.

    Example:
        >>> positions_of(np.array([3, 2, 5]), num_windows=10, seed=42, epoch=0).tolist()
        [0, 1, 9]
    """
    return _permute(windows, num_windows, _keys(seed, epoch), backwards=True)


def positions_in_blocks(
    windows: Int64[np.ndarray, " B"], num_windows: int, seed: int, epoch: int
) -> Int64[np.ndarray, " B"]:
    """The way back from :func:`permute_in_blocks`: each of its steps is undone, the last first.

    Example:
        >>> positions_in_blocks(np.array([6, 2, 7]), num_windows=10, seed=42, epoch=0).tolist()
        [0, 1, 9]
    """
    return _in_blocks(windows, num_windows, seed, epoch, BLOCK_WINDOWS, GROUP_BLOCKS, backwards=True)


def positions_near(
    windows: Int64[np.ndarray, " B"], num_windows: int, seed: int, epoch: int
) -> Int64[np.ndarray, " B"]:
    """The way back from :func:`permute_near`.

    Example:
        >>> positions_near(np.array([16, 2, 13]), num_windows=20, seed=42, epoch=0).tolist()
        [0, 1, 19]
    """
    return _in_blocks(windows, num_windows, seed, epoch, _near_block(num_windows), 1, backwards=True)


def _near_block(num_windows: int) -> int:
    return min(max(num_windows // 16, 8), BLOCK_WINDOWS)


def _in_blocks(
    numbers: np.ndarray, num_windows: int, seed: int, epoch: int, block: int, group: int, backwards: bool = False
) -> np.ndarray:
    """Permute within groups of blocks, then whole blocks, then begin at another window; backwards undoes all of it."""
    first = int(_keys(seed, epoch, _FIRST)[0] % np.uint64(num_windows))
    if backwards:
        moved = _move_blocks((numbers - first) % num_windows, num_windows, seed, epoch, block, backwards)
        return _within_groups(moved, num_windows, seed, epoch, group * block, backwards)
    windows = _within_groups(numbers, num_windows, seed, epoch, group * block, backwards)
    return (_move_blocks(windows, num_windows, seed, epoch, block, backwards) + first) % num_windows


def _within_groups(
    numbers: np.ndarray, num_windows: int, seed: int, epoch: int, size: int, backwards: bool
) -> np.ndarray:
    permuted, groups = np.empty_like(numbers), numbers // size
    for group in np.unique(groups).tolist():
        start = group * size
        # The rest after the last whole block goes with the last group.
        stop = min(start + size, num_windows)
        of_group = groups == group
        keys = _keys(seed, epoch, _GROUP, group)
        permuted[of_group] = start + _permute(numbers[of_group] - start, stop - start, keys, backwards)
    return permuted


def _move_blocks(
    numbers: np.ndarray, num_windows: int, seed: int, epoch: int, block: int, backwards: bool
) -> np.ndarray:
    num_blocks, blocks = num_windows // block, numbers // block
    whole = blocks < num_blocks  # the rest after them stays where it is
    moved = numbers.copy()
    places = _permute(blocks[whole], num_blocks, _keys(seed, epoch, _BLOCKS), backwards)
    moved[whole] += (places - blocks[whole]) * block
    return moved


def _keys(*what: int) -> np.ndarray:
    """The keys of one permutation, others for each seed, epoch and purpose."""
    digest = hashlib.blake2b(struct.pack(f"<{len(what)}q", *what), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8")


def _permute(positions: np.ndarray, num_windows: int, keys: np.ndarray, backwards: bool = False) -> np.ndarray:
    bits = max((num_windows - 1).bit_length(), 6)  # fewer shuffle badly
    rounds = list(enumerate(keys))[:: -1 if backwards else 1]
    windows = _feistel(positions.astype(np.uint64), bits, rounds)
    while (outside := windows >= num_windows).any():
        windows[outside] = _feistel(windows[outside], bits, rounds)
    return windows.astype(np.int64)


def _feistel(numbers: np.ndarray, bits: int, rounds: Sequence[tuple[int, np.uint64]]) -> np.ndarray:
    """A permutation of 0 .. 2**bits - 1: each half in turn is changed by a hash of the other, which can be undone.

    By the same rounds in reverse.
    """
    right_bits = bits // 2
    left_bits = bits - right_bits
    left, right = numbers >> right_bits, numbers & ((1 << right_bits) - 1)
    for i, key in rounds:
        if i % 2:
            right = right ^ (_mix(left ^ key) >> (64 - right_bits))
        else:
            left = left ^ (_mix(right ^ key) >> (64 - left_bits))
    return left << right_bits | right


def _mix(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> 30)) * 0xBF58476D1CE4E5B9
    numbers = (numbers ^ (numbers >> 27)) * 0x94D049BB133111EB
    return numbers ^ (numbers >> 31)


class Position(NamedTuple):
    """How far a training has come: ``window`` windows of epoch ``epoch``, by all processes together."""

    epoch: int
    window: int


class LeftOut(NamedTuple):
    """What training leaves out of the order; all that comes after it keeps its place."""

    windows: Int64[np.ndarray, " _"] = np.empty(0, np.int64)  # of each epoch, ascending
    stretches: tuple[tuple[int, int, int], ...] = ()  # (epoch, start, stop): positions of one epoch


class WindowSampler(DistributedSampler):
    """The batches of window indices of one process, for ``DataLoader(batch_size=None)``.

    Processes take equal shares of each global batch. A pass that starts within an epoch continues into the next one, so
    that it is always as long as an epoch. A DistributedSampler, because Lightning would wrap any other in its own,
    which repeats windows.

    Args:
        num_windows: Windows in the dataset, W.
        batch_size: Windows that one process takes at a time, B.
        seed: Decides the order.
        shuffle: global (or True), block (see :func:`permute_in_blocks`), length (see :func:`permute_near`), or False,
            for the order of the dataset.
        drop_last: Whether to leave out the windows after the last full global batch of an epoch. If not, several
            processes share those of the last two evenly; with too few windows some batches are empty.
        rank: Which of the processes this is, from 0.
        world_size: Number of processes.
        position: Called at the start of each pass, which begins there. None begins pass number k at epoch k.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        seed: int = 0,
        shuffle: Shuffle = "global",
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], Position] | None = None,
    ) -> None:
        if position and world_size > 1 and not drop_last:
            raise ValueError("several processes that begin within an epoch need drop_last.")
        super().__init__(range(num_windows), world_size, rank, bool(shuffle), seed, drop_last)  # type: ignore[arg-type]
        there, back = {
            False: (None, None),
            "block": (permute_in_blocks, positions_in_blocks),
            "length": (permute_near, positions_near),
        }.get(shuffle, (permute, positions_of))
        self.permute, self.positions_of = there, back
        self.leave_out(LeftOut())
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.position = position

    @property
    def global_batch(self) -> int:
        """Windows that all processes together take at a time."""
        return self.batch_size * self.num_replicas

    def leave_out(self, left_out: LeftOut) -> None:
        """Take only the others from now on."""
        self.left_out = left_out
        self._left_out_of: dict[int, np.ndarray] = {}  # positions, by the epoch

    def __len__(self) -> int:
        """Batches in one whole epoch."""
        return self._num_batches(self.num_windows - len(self.left_out.windows))

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.position:
            epoch, window = self.position()
        else:
            epoch, window = self.epoch, 0
            self.epoch += 1
        if self.num_replicas > 1 and not self.drop_last:
            yield from self._even_batches(epoch)
            return
        remaining = len(self) if self.position else self.batches_from(Position(epoch, 0))
        while remaining:
            left = self.batches_from(Position(epoch, window))
            num_batches = min(left, remaining, max(_AT_A_TIME // self.batch_size, 1))
            if not num_batches:
                epoch, window = epoch + 1, 0
                continue
            first = self._num_kept(epoch, window) + self.rank * self.batch_size
            batches = np.arange(num_batches)[:, None] * self.global_batch + np.arange(self.batch_size)
            windows = self._windows(epoch, first + batches.ravel())
            for start in range(0, len(windows), self.batch_size):
                yield windows[start : start + self.batch_size]
            window, remaining = self._reached(epoch, window, num_batches), remaining - num_batches

    def check_batches(self) -> None:
        """Raise an InvalidValue if there are too few windows for one full batch."""
        if not len(self):
            or_keep_it = ", or set data.drop_last to false" if self.num_replicas == 1 else ""
            num_windows = self.num_windows - len(self.left_out.windows)
            at_most = f" to at most {num_windows // self.num_replicas}" if num_windows >= self.num_replicas else ""
            raise InvalidValue(
                f"too few windows for one full batch: {self.num_replicas} x batch_size {self.batch_size} windows, and "
                f"the train split has {num_windows}. Lower data.batch_size{at_most}, data.stride or data.context_size"
                f"{or_keep_it}."
            )

    def after(self, position: Position, num_batches: int) -> Position:
        """The position ``num_batches`` global batches after ``position``."""
        epoch, window = position
        last_uneven = max((stretch[0] for stretch in self.left_out.stretches), default=-1)
        while num_batches > (left := self.batches_from(Position(epoch, window))):
            if epoch < last_uneven:
                epoch, window, num_batches = epoch + 1, 0, num_batches - left
            else:  # from here on each epoch is as long as any other
                epochs, num_batches = divmod(num_batches - left - 1, len(self))
                epoch, window, num_batches = epoch + 1 + epochs, 0, num_batches + 1
        return Position(epoch, self._reached(epoch, window, num_batches))

    def batches_from(self, position: Position) -> int:
        """Global batches between a position and the end of its epoch."""
        return self._num_batches(self._num_kept(position.epoch) - self._num_kept(*position))

    def next_batch(self, position: Position) -> tuple[Position, Int64[np.ndarray, " _"]]:
        """This process's windows of the next global batch after a position, and where that one begins."""
        while not self.batches_from(position):
            position = Position(position.epoch + 1, 0)
        first = self._num_kept(*position) + self.rank * self.batch_size
        return position, self._windows(position.epoch, np.arange(first, first + self.batch_size))

    def _num_batches(self, num_windows: int) -> int:
        full, rest = divmod(num_windows, self.global_batch)
        return full + (rest > 0 and not self.drop_last)

    def _num_kept(self, epoch: int, before: int | None = None) -> int:
        """Windows of an epoch that are trained on: all, or those before a position."""
        before = self.num_windows if before is None else before
        return before - int(np.searchsorted(self._positions_left_out(epoch), before))

    def _reached(self, epoch: int, window: int, num_batches: int) -> int:
        """The position after so many global batches of one epoch, from another position on."""
        kept = min(self._num_kept(epoch, window) + num_batches * self.global_batch, self._num_kept(epoch))
        return self._position(epoch, np.array([kept - 1])).item() + 1 if num_batches and kept else window

    def _position(self, epoch: int, kept: np.ndarray) -> np.ndarray:
        """The positions of windows that are trained on, by their numbers among these."""
        left_out = self._positions_left_out(epoch)
        return kept + np.searchsorted(left_out - np.arange(len(left_out)), kept, side="right")

    def _positions_left_out(self, epoch: int) -> np.ndarray:
        if epoch not in self._left_out_of:
            windows, stretches = self.left_out
            if not (len(windows) or stretches):
                return windows
            if len(windows) and self.positions_of:
                windows = self.positions_of(windows, self.num_windows, self.seed, epoch)
            parts = [np.arange(start, stop) for where, start, stop in stretches if where == epoch]
            self._left_out_of = {epoch: np.unique(np.concatenate([windows, *parts]))}  # the last one asked for
        return self._left_out_of[epoch]

    def _even_batches(self, epoch: int) -> Iterator[np.ndarray]:
        """This process's batches of an epoch, the last two global batches of which are cut into pieces of one size."""
        num_full = max(len(self) - 2, 0)
        rest_from = num_full * self.global_batch
        for start in range(self.rank * self.batch_size, rest_from, self.global_batch):
            yield self._windows(epoch, np.arange(start, start + self.batch_size))
        rest, pieces = self._num_kept(epoch) - rest_from, (len(self) - num_full) * self.num_replicas
        for piece in range(self.rank, pieces, self.num_replicas):
            # Rounded up, so that no process has more windows than the first.
            start, stop = (rest_from + -(-rest * number // pieces) for number in (piece, piece + 1))
            yield self._windows(epoch, np.arange(start, stop))

    def _windows(self, epoch: int, kept: np.ndarray) -> np.ndarray:
        """The windows of an epoch by their numbers, which ascend, among those that are trained on."""
        positions = self._position(epoch, kept[: np.searchsorted(kept, self._num_kept(epoch))])
        return self.permute(positions, self.num_windows, self.seed, epoch) if self.permute else positions
