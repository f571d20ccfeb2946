"""token ranges -> windows: cut long token sequences into training examples, computed when they are asked for."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from gpt2_lit.data.split import Range
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.bpe import Encoder, gpt2_tokenizer, token_array


class Batch(NamedTuple):
    """Windows of tokens and, for each token, the one that follows: ``input_ids, target_ids = batch``.

    Both are contiguous int64 tensors of shape (B, T), or (T,) for a single window.
    """

    input_ids: Int64[Tensor, "*B T"]
    target_ids: Int64[Tensor, "*B T"]


class DocumentBatch(NamedTuple):
    """A batch that also tells its documents apart, for models that shall not look from one into another.

    All are contiguous int64 tensors of shape (B, T), or (T,) for a single window.
    """

    input_ids: Int64[Tensor, "*B T"]
    target_ids: Int64[Tensor, "*B T"]
    position_ids: Int64[Tensor, "*B T"]  # places in the document, from 0 where one begins in the window
    document_ids: Int64[Tensor, "*B T"]  # 0 for the first document of the window, 1 for the second


class GPTDatasetV1(Dataset[Batch | DocumentBatch]):
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
        self._set_up(token_array(tokenizer, txt), context_size, stride)

    @classmethod
    def from_token_ids(
        cls,
        token_ids: np.ndarray | TokenStore,
        context_size: int,
        stride: int,
        ranges: Sequence[Range] | None = None,
        end_of_text: int | None = None,
    ) -> "GPTDatasetV1":
        """The same over tokens that are encoded already.

        Args:
            token_ids: The tokens in reading order: an array of shape (N,), in memory or memory-mapped, or a store.
            context_size: Length of a window, in tokens.
            stride: Distance between the starts of neighbouring windows of a range, in tokens.
            ranges: The parts of the tokens to cut windows from; no window crosses from one into another, nor from one
                shard of a store into the next. None is all of them.
            end_of_text: The id that ends a document. With it, windows are :class:`DocumentBatch`.

        Example:
            >>> dataset = GPTDatasetV1.from_token_ids(np.arange(9), 2, 2, ranges=[Range(0, 4), Range(5, 9)])
            >>> dataset[[0, 1]].input_ids.tolist()
            [[0, 1], [5, 6]]
        """
        dataset = cls.__new__(cls)
        dataset._set_up(token_ids, context_size, stride, ranges, end_of_text)
        return dataset

    def _set_up(
        self,
        token_ids: np.ndarray | TokenStore,
        context_size: int,
        stride: int,
        ranges: Sequence[Range] | None = None,
        end_of_text: int | None = None,
    ) -> None:
        for name, tokens in (("context_size", context_size), ("stride", stride)):
            if tokens < 1:
                raise ValueError(f"{name} must be at least 1 token, got {tokens}. Set data.{name}.")
        self.token_ids = token_ids if isinstance(token_ids, TokenStore) else np.ascontiguousarray(token_ids)
        self.context_size = context_size
        self.stride = stride
        self.end_of_text = end_of_text
        tokens = self.token_ids if isinstance(self.token_ids, TokenStore) else TokenStore.of_array(self.token_ids)
        self._tokens = tokens
        self.ranges = [Range(0, len(tokens))] if ranges is None else list(ranges)
        segments = tokens.segments
        windows, starts = [], []
        for part in self.ranges:
            segment = bisect_right(segments, part.start, key=lambda segment: segment[1])
            while segment < len(segments) and segments[segment][0] < part.stop:
                start = max(part.start, segments[segment][0])
                num_tokens = min(part.stop, segments[segment][1]) - start
                windows.append(max(0, -((context_size - num_tokens) // stride)))
                starts.append(start)
                segment += 1
        self._windows_before = np.cumsum([0, *windows])
        self._first_starts = np.array(starts, dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: of a store the path, not the tokens."""
        return {name: getattr(self, name) for name in ("token_ids", "context_size", "stride", "ranges", "end_of_text")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(**state)

    @property
    def num_tokens(self) -> int:
        """Tokens in the ranges, those after the last full window among them."""
        return sum(r.num_tokens for r in self.ranges)

    def __len__(self) -> int:
        return int(self._windows_before[-1])

    def __getitem__(self, index: SupportsIndex | Sequence[int] | np.ndarray) -> Batch | DocumentBatch:
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
            windows = windows.astype(np.int64, copy=False)  # places among the tokens are beyond smaller types
            if lowest < 0:
                windows = windows % num_windows
        starts = np.atleast_1d(self._starts_of(windows))
        rows = self._tokens.rows(starts, self.context_size + 1).reshape(*windows.shape, self.context_size + 1)
        batch = Batch(
            torch.from_numpy(rows[..., :-1].astype(np.int64)),
            torch.from_numpy(rows[..., 1:].astype(np.int64)),
        )
        return batch if self.end_of_text is None else DocumentBatch(*batch, *_documents(rows, self.end_of_text))

    def _starts_of(self, windows: np.ndarray | np.integer) -> np.ndarray | np.integer:
        """The position of the first token of each window."""
        if len(self._first_starts) == 1:
            return self._first_starts[0] + windows * self.stride
        part = np.searchsorted(self._windows_before, windows, side="right") - 1
        return self._first_starts[part] + (windows - self._windows_before[part]) * self.stride


def _documents(rows: np.ndarray, end_of_text: int) -> tuple[Tensor, Tensor]:
    """The position in its document, and the number of the document, of each token of rows but their last."""
    begins = np.zeros((*rows.shape[:-1], rows.shape[-1] - 1), dtype=np.int64)
    begins[..., 1:] = rows[..., :-2] == end_of_text
    places = np.arange(begins.shape[-1])
    document_starts = np.maximum.accumulate(begins * places, axis=-1)
    return torch.from_numpy(places - document_starts), torch.from_numpy(begins.cumsum(axis=-1))


class BatchLoader(DataLoader[Batch | DocumentBatch]):
    """A DataLoader for a sampler that gives whole batches of indices; in one process it asks the dataset itself.

    torch's iterator, which is for all that a DataLoader can do, takes longer for a small batch than making it.
    """

    def __iter__(self) -> Iterator[Batch | DocumentBatch]:  # type: ignore[override]
        if self.num_workers or self.pin_memory:
            return super().__iter__()
        # torch draws a seed for its workers, also where it has none: what is drawn after it shall be the same.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return map(self.dataset.__getitem__, self.sampler)


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
    return BatchLoader(
        dataset,
        sampler=BatchSampler(order, batch_size, drop_last),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=as_it_is,
    )


def as_it_is(batch: Any) -> Any:
    """What a DataLoader shall do to a batch that is one already."""
    return batch
