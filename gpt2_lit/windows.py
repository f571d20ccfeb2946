"""token ranges -> windows: cut long token sequences into training examples, computed when they are asked for."""

from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from gpt2_lit.bpe import Encoder, gpt2_tokenizer, token_array
from gpt2_lit.split import Range


class Batch(NamedTuple):
    """Windows of tokens and, for each token, the one that follows: ``input_ids, target_ids = batch``.

    Both are contiguous int64 tensors of shape (B, T), or (T,) for a single window.
    """

    input_ids: Int64[Tensor, "*B T"]
    target_ids: Int64[Tensor, "*B T"]


class GPTDatasetV1(Dataset[Batch]):
    """Every window of ``context_size`` tokens of a text, one each ``stride`` tokens.

    A target is its input moved one token on, so a window needs ``context_size + 1`` tokens.
    Tokens after the last full window are left out. The tokens are kept once, two bytes each; a window is a place
    among them. ``dataset[3]`` is one window, ``dataset[[3, 1, 4]]`` a batch made in one go.

    Args:
        txt: The text.
        tokenizer: Anything with ``encode(text) -> list[int]``.
        context_size: Length of a window, in tokens.
        stride: Distance between the starts of neighbouring windows, in tokens.

    Raises:
        ValueError: If ``context_size`` or ``stride`` is below 1.

    Example:
        >>> dataset = GPTDatasetV1("Once upon a time there were four", gpt2_tokenizer(), context_size=3, stride=2)
        >>> [(window.input_ids.tolist(), window.target_ids.tolist()) for window in dataset]
        [([7454, 2402, 257], [2402, 257, 640]), ([257, 640, 612], [640, 612, 547])]
    """

    def __init__(self, txt: str, tokenizer: Encoder, context_size: int, stride: int) -> None:
        self._set_up(token_array(tokenizer, txt), context_size, stride, ranges=None)

    @classmethod
    def from_token_ids(
        cls, token_ids: np.ndarray, context_size: int, stride: int, ranges: Sequence[Range] | None = None
    ) -> "GPTDatasetV1":
        """The same over tokens that are encoded already, in memory or memory-mapped.

        Args:
            token_ids: The tokens in reading order; shape (N,), any integer type.
            context_size: Length of a window, in tokens.
            stride: Distance between the starts of neighbouring windows of a range, in tokens.
            ranges: The parts of the tokens to cut windows from; no window crosses from one into another.
                None is all of them.

        Example:
            >>> dataset = GPTDatasetV1.from_token_ids(np.arange(9), 2, 2, ranges=[Range(0, 4), Range(5, 9)])
            >>> dataset[[0, 1]].input_ids.tolist()
            [[0, 1], [5, 6]]
        """
        dataset = cls.__new__(cls)
        dataset._set_up(token_ids, context_size, stride, ranges)
        return dataset

    def _set_up(self, token_ids: np.ndarray, context_size: int, stride: int, ranges: Sequence[Range] | None) -> None:
        for name, tokens in (("context_size", context_size), ("stride", stride)):
            if tokens < 1:
                raise ValueError(f"{name} must be at least 1 token, got {tokens}. Set data.{name}.")
        self.token_ids = np.ascontiguousarray(token_ids)
        self.context_size = context_size
        self.stride = stride
        self.ranges = [Range(0, len(token_ids))] if ranges is None else list(ranges)

        windows = np.array([max(0, -((context_size - r.num_tokens) // stride)) for r in self.ranges], dtype=np.int64)
        self._windows_before = np.concatenate([[0], np.cumsum(windows)])
        self._range_starts = np.array([r.start for r in self.ranges], dtype=np.int64)

    @property
    def num_tokens(self) -> int:
        """Tokens in the ranges, those after the last full window among them."""
        return sum(r.num_tokens for r in self.ranges)

    def __len__(self) -> int:
        return int(self._windows_before[-1])

    def __getitem__(self, index: SupportsIndex | Sequence[int] | np.ndarray) -> Batch:
        """One window, shape (T,), or those of several indices, shape (B, T)."""
        windows, num_windows = np.asarray(index), len(self)
        if not windows.size:
            windows = windows.astype(np.int64)
        elif windows.dtype.kind not in "iu":
            raise TypeError(f"a window is named by a whole number, got {index!r}.")
        else:
            lowest = windows.min()
            if not -num_windows <= lowest <= windows.max() < num_windows:
                raise IndexError(f"there is no window {index}: the dataset has {num_windows}, from 0.")
            if lowest < 0:
                windows = windows % num_windows
        rows = self._rows()[self._starts(windows)]
        return Batch(
            torch.from_numpy(rows[..., :-1].astype(np.int64)),
            torch.from_numpy(rows[..., 1:].astype(np.int64)),
        )

    def _starts(self, windows: np.ndarray | np.integer) -> np.ndarray | np.integer:
        """The first token of each window."""
        if len(self.ranges) == 1:
            return self._range_starts[0] + windows * self.stride
        of_range = np.searchsorted(self._windows_before, windows, side="right") - 1
        return self._range_starts[of_range] + (windows - self._windows_before[of_range]) * self.stride

    def _rows(self) -> np.ndarray:
        """Row i is the tokens i to i + context_size: a view that overlaps itself and takes no memory.

        Picking rows of it copies each window in one piece; indexing the tokens one by one took three times as long.
        """
        tokens = self.token_ids
        shape = (max(len(tokens) - self.context_size, 0), self.context_size + 1)
        return np.ndarray(shape, tokens.dtype, tokens, strides=tokens.strides * 2)


def dataloader_v1(
    txt: str,
    batch_size: int = 3,
    context_size: int = 5,
    stride: int = 2,
    shuffle: bool = False,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """Batches of GPT-2 token windows of a text.

    Args:
        txt: The text.
        batch_size: Windows in a batch, B.
        context_size: Tokens in a window, T.
        stride: Distance between the starts of neighbouring windows, in tokens.
        shuffle: Whether to draw the windows in a random order, another each epoch; ``torch.manual_seed`` decides it.
        drop_last: Whether to leave out a last batch that is not full.
        num_workers: Processes that prepare batches; 0 is this one.

    Returns:
        A loader of :class:`Batch`, two tensors of shape (B, T).

    Raises:
        ValueError: If ``batch_size``, ``context_size`` or ``stride`` is below 1.

    Example:
        >>> inputs, targets = next(iter(dataloader_v1("Once upon a time there were four little Rabbits", batch_size=2)))
        >>> inputs.tolist()
        [[7454, 2402, 257, 640, 612], [257, 640, 612, 547, 1440]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 window, got {batch_size}.")
    dataset = GPTDatasetV1(txt, gpt2_tokenizer(), context_size, stride)
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    # batch_size=None hands the dataset a whole list of indices: one gather a batch.
    return DataLoader(
        dataset,
        sampler=BatchSampler(order, batch_size, drop_last),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=as_it_is,
    )


def as_it_is(batch: Any) -> Any:
    """What a DataLoader shall do to a batch that is one already."""
    return batch
