"""token ranges -> windows: cut long token sequences into training examples, computed when they are asked for."""

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Dataset

from gpt2_lit.data.split import Range
from gpt2_lit.errors import InvalidIndex, InvalidType, InvalidValue, whole_number
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.tokenizer import Encoder, token_array

IGNORED = -100  # the target of a token that does not count, as F.cross_entropy has it


class Batch(NamedTuple):
    """Windows of tokens and, for each token, the one that follows: ``input_ids, target_ids = batch``.

    Both are contiguous int64 tensors of shape (B, T), or (T,) for a single window. A target of -100 does not count: of
    padding, or of a prompt.
    """

    input_ids: Int64[Tensor, "*B T"]
    target_ids: Int64[Tensor, "*B T"]


class DocumentBatch(NamedTuple):
    """A batch for models that keep documents apart: it has the position and the document of each token, too."""

    input_ids: Int64[Tensor, "*B T"]
    target_ids: Int64[Tensor, "*B T"]
    position_ids: Int64[Tensor, "*B T"]  # in its document, from 0 where the document begins in the window
    document_ids: Int64[Tensor, "*B T"]  # 0 for the first document of the window, 1 for the second


class Windows(Dataset[Batch | DocumentBatch]):
    """Training examples, computed when asked for: ``windows[3]`` is one window, ``windows[[3, 1, 4]]`` a batch."""

    context_size: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the windows are made of."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """What tells which windows they are, in plain numbers and strings, beside their number, size and tokens."""
        raise NotImplementedError

    @property
    def num_documents(self) -> int:
        """Documents of the source, as far as it is known where they end."""
        raise NotImplementedError

    def with_documents(self, first: int, last: int) -> Int64[np.ndarray, " _"]:
        """The windows that have a token of documents ``first`` to ``last``, as input or target."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def _checked(self, index: SupportsIndex | Sequence[int] | np.ndarray) -> np.ndarray:
        """The windows that an index names, from 0."""
        windows, num_windows = np.asarray(index), len(self)
        if not windows.size:
            return windows.astype(np.int64)
        if windows.dtype.kind not in "iu":
            raise InvalidType(f"a window is named by a whole number, got {index!r}.")
        lowest = windows.min()
        if not -num_windows <= lowest <= windows.max() < num_windows:
            raise InvalidIndex(f"there is no window {index}: the dataset has {num_windows}, from 0.")
        windows = windows.astype(np.int64, copy=False)  # smaller types do not hold the positions of tokens
        return np.where(windows < 0, windows + num_windows, windows) if lowest < 0 else windows


class TokenWindows(Windows):
    """Every window of ``context_size`` tokens, one each ``stride`` tokens, computed when asked for.

    A target is its input moved one token on. ``windows[3]`` is one window, ``windows[[3, 1, 4]]`` a batch.

    Args:
        tokens: A store, or an array of shape (N,), in reading order.
        context_size: Length of a window, in tokens.
        stride: Distance between the starts of neighbouring windows, in tokens.
        ranges: Where windows are cut; none crosses the border of a range or of a store's segment. None is everywhere.
        end_of_text: The id that ends a document. With it, windows are :class:`DocumentBatch`.

    Example:
        >>> windows = TokenWindows(np.arange(9), context_size=2, stride=2, ranges=[Range(0, 4), Range(5, 9)])
        >>> windows[[0, 1]].input_ids.tolist()
        [[0, 1], [5, 6]]
    """

    def __init__(
        self,
        tokens: np.ndarray | TokenStore,
        context_size: SupportsIndex,
        stride: SupportsIndex,
        ranges: Sequence[Range] | None = None,
        end_of_text: int | None = None,
    ) -> None:
        self.tokens = tokens if isinstance(tokens, TokenStore) else TokenStore.of_array(tokens)
        self.context_size = whole_number("context_size", context_size, unit=" token")
        self.stride = whole_number("stride", stride, unit=" token")
        self.ranges = [Range(0, len(self.tokens))] if ranges is None else list(ranges)
        self.end_of_text = end_of_text
        pieces = list(_pieces(self.ranges, self.tokens.segments))
        num_windows = [max(0, -((self.context_size - piece.num_tokens) // self.stride)) for piece in pieces]
        self._piece_starts = np.array([piece.start for piece in pieces], np.int64)
        self._windows_before = np.cumsum([0, *num_windows])

    @property
    def num_tokens(self) -> int:
        """Tokens in the ranges, including those after the last full window."""
        return sum(r.num_tokens for r in self.ranges)

    @property
    def identity(self) -> dict[str, Any]:
        return {"stride": self.stride, "ranges": zlib.crc32(np.array(self.ranges).data)}

    @property
    def num_documents(self) -> int:
        return self.tokens.num_documents

    def with_documents(self, first: int, last: int) -> Int64[np.ndarray, " _"]:
        return self.with_tokens(self.tokens.document(first)[0], self.tokens.document(last)[1])

    def check_not_empty(self, name: str) -> None:
        """Raise an InvalidValue if the tokens, called by ``name``, have no window."""
        if not len(self):
            raise self._too_short(name)

    def __len__(self) -> int:
        return int(self._windows_before[-1])

    def __getitem__(self, index: SupportsIndex | Sequence[int] | np.ndarray) -> Batch | DocumentBatch:
        """One window, shape (T,), or those of several indices, shape (B, T)."""
        windows = self._checked(index)
        starts = self._starts(windows.reshape(-1))
        rows = self.tokens.rows(starts, self.context_size + 1).reshape(*windows.shape, self.context_size + 1)
        batch = Batch(
            torch.from_numpy(rows[..., :-1].astype(np.int64)),
            torch.from_numpy(rows[..., 1:].astype(np.int64)),
        )
        return batch if self.end_of_text is None else DocumentBatch(*batch, *_documents(rows, self.end_of_text))

    def starts(self, windows: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """The position of the first token of each window."""
        return self._starts(self._checked(windows))

    def with_tokens(self, start: int, stop: int) -> Int64[np.ndarray, " _"]:
        """The windows that have one of the tokens from ``start`` up to, and without, ``stop``, as input or target.

        Example:
            >>> TokenWindows(np.arange(20), context_size=4, stride=4).with_tokens(8, 9).tolist()
            [1, 2]
        """
        sizes = np.diff(self._windows_before)
        # Window k of a piece has the tokens k * stride to k * stride + context_size of it.
        first = -((self._piece_starts + self.context_size - start) // self.stride)
        last = -((self._piece_starts - stop) // self.stride)
        ranges = zip(self._windows_before, np.clip(first, 0, sizes), np.clip(last, 0, sizes), strict=False)
        return np.concatenate([np.empty(0, np.int64), *(before + np.arange(low, high) for before, low, high in ranges)])

    def _starts(self, windows: np.ndarray) -> np.ndarray:
        """The position of the first token of each window."""
        if len(self._piece_starts) == 1:
            return self._piece_starts[0] + windows * self.stride
        piece = np.searchsorted(self._windows_before, windows, side="right") - 1
        return self._piece_starts[piece] + (windows - self._windows_before[piece]) * self.stride

    def _too_short(self, name: str) -> InvalidValue:
        lengths = [piece.num_tokens for piece in _pieces(self.ranges, self.tokens.segments)]
        pieces = f" in {len(lengths)} pieces of at most {max(lengths)}" if len(lengths) > 1 else ""
        at_most = f" to at most {max(lengths) - 1}" if max(lengths, default=0) > 1 else ""
        return InvalidValue(
            f"{name} is too short: one window needs context_size + 1 = {self.context_size + 1} tokens, and it has "
            f"{self.num_tokens}{pieces}. Lower context_size{at_most} or give more text."
        )


class GPTDatasetV1(TokenWindows):
    """Every window of ``context_size`` tokens of a text, one each ``stride`` tokens; see :class:`TokenWindows`.

    Args:
        txt: The text.
        tokenizer: Anything with ``encode(text) -> list[int]``.
        context_size: Length of a window, in tokens.
        stride: Distance between the starts of neighbouring windows, in tokens.

    Raises:
        ValueError: If the text has no window.

    Example:
        >>> from gpt2_lit import gpt2_tokenizer
        >>> dataset = GPTDatasetV1("Once upon a time there were four", gpt2_tokenizer(), context_size=3, stride=2)
        >>> [(window.input_ids.tolist(), window.target_ids.tolist()) for window in dataset]
        [([7454, 2402, 257], [2402, 257, 640]), ([257, 640, 612], [640, 612, 547])]
    """

    def __init__(self, txt: str, tokenizer: Encoder, context_size: SupportsIndex, stride: SupportsIndex) -> None:
        super().__init__(token_array(tokenizer, txt), context_size, stride)
        self.check_not_empty("the text")


def _pieces(ranges: Sequence[Range], segments: Sequence[tuple[int, int]]) -> Iterator[Range]:
    """What the ranges and the segments of a store have in common; a window lies within one piece."""
    for part in ranges:
        number = bisect_right(segments, part.start, key=lambda segment: segment[1])
        while number < len(segments) and segments[number][0] < part.stop:
            start, stop = segments[number]
            yield Range(max(part.start, start), min(part.stop, stop))
            number += 1


def _documents(rows: np.ndarray, end_of_text: int) -> tuple[Tensor, Tensor]:
    """The position in its document, and the number of the document, of each token of rows but their last."""
    begins = np.zeros((*rows.shape[:-1], rows.shape[-1] - 1), dtype=np.int64)
    begins[..., 1:] = rows[..., :-2] == end_of_text
    positions = np.arange(begins.shape[-1])
    document_starts = np.maximum.accumulate(begins * positions, axis=-1)
    return torch.from_numpy(positions - document_starts), torch.from_numpy(begins.cumsum(axis=-1))
