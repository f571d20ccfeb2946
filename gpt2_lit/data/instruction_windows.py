"""records of a store -> windows: each record padded, or several packed, with targets that do not count."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int64

from gpt2_lit.data.packing import PACKING_VERSION, Packs
from gpt2_lit.data.windows import IGNORED, Batch, DocumentBatch, Windows
from gpt2_lit.store.token_store import TokenStore


class Records(NamedTuple):
    """Where the records of a store are: each one's texts, in turn a prompt and a response.

    In the store an empty document ends a record; one that was skipped has no texts.
    """

    starts: Int64[np.ndarray, " M"]  # of each text, in tokens
    stops: Int64[np.ndarray, " M"]  # where the end of text stands that ends it
    firsts: Int64[np.ndarray, " _"]  # the first text of each record, and M after the last

    @classmethod
    def of(cls, store: TokenStore) -> "Records":
        ends = store.document_ends(0, len(store))
        starts, stops = np.append(0, ends), np.append(ends - 1, len(store))
        is_text = starts < stops
        firsts = np.append(0, np.cumsum(is_text)[~is_text])
        return cls(starts[is_text], stops[is_text], firsts)

    @property
    def is_complete(self) -> np.ndarray:
        """Whether a record has a response to each prompt; shape (number of records,)."""
        num_texts = np.diff(self.firsts)
        return (num_texts > 0) & (num_texts % 2 == 0)

    @property
    def lengths(self) -> Int64[np.ndarray, " _"]:
        """Tokens of each record, the ends of text after its responses included."""
        tokens = np.append(0, np.cumsum(self.stops - self.starts))[self.firsts]
        return np.diff(tokens) + np.diff(self.firsts) // 2


class InstructionWindows(Windows):
    """Windows of whole records, each cut after ``context_size`` tokens.

    A target is its input moved one token on. It is -100, and does not count in the loss, where the next token is
    padding or another record's; with ``mask_prompt``, also where it is a prompt's.

    Args:
        store: The tokens of the records.
        records: Where they are.
        packs: Which of them stand in which window.
        context_size: Tokens of a window, at most.
        end_of_text: The id after each response, and of padding.
        mask_prompt: Whether only responses are targets.
        is_packed: Whether all windows have ``context_size`` tokens, and batches are :class:`DocumentBatch`; else a
            batch is as long as its longest record.

    Example:
        >>> tokens = np.array([1, 2, 0, 3, 0, 0, 4, 0, 5, 6, 0])  # 1 2 -> 3, and 4 -> 5 6; after each text a 0
        >>> store = TokenStore.of_array(tokens, ends=np.array([3, 5, 6, 8, 11, 12]))
        >>> packs = Packs(records=np.array([0, 1]), starts=np.array([0, 1, 2]))
        >>> windows = InstructionWindows(store, Records.of(store), packs, 9, end_of_text=0, mask_prompt=True)
        >>> windows[[0, 1]]
        Batch(input_ids=tensor([[1, 2, 3],
                [4, 5, 6]]), target_ids=tensor([[-100,    3,    0],
                [   5,    6,    0]]))
    """

    def __init__(
        self,
        store: TokenStore,
        records: Records,
        packs: Packs,
        context_size: int,
        end_of_text: int,
        mask_prompt: bool = False,
        is_packed: bool = False,
    ) -> None:
        self.tokens = store
        self.records = records
        self.packs = packs
        self.context_size = context_size
        self.end_of_text = end_of_text
        self.mask_prompt = mask_prompt
        self.is_packed = is_packed

    @property
    def num_tokens(self) -> int:
        """Tokens of the records, without what is cut."""
        return int(np.minimum(self.records.lengths[self.packs.records], self.context_size + 1).sum())

    @property
    def identity(self) -> dict[str, Any]:
        records = zlib.crc32(self.packs.records.tobytes() + self.packs.starts.tobytes())
        return {"packing": PACKING_VERSION if self.is_packed else 0, "records": records}

    @property
    def num_documents(self) -> int:
        return len(self.records.firsts) - 1

    def with_documents(self, first: int, last: int) -> Int64[np.ndarray, " _"]:
        slots = np.flatnonzero((first <= self.packs.records) & (self.packs.records <= last))
        return np.unique(np.searchsorted(self.packs.starts, slots, side="right") - 1)

    def records_of(self, window: int) -> list[int]:
        """The numbers in the source of the records that stand in a window."""
        return self.packs.records[self.packs.starts[window] : self.packs.starts[window + 1]].tolist()

    def __len__(self) -> int:
        return len(self.packs.starts) - 1

    def __getitem__(self, index: SupportsIndex | Sequence[int] | np.ndarray) -> Batch | DocumentBatch:
        """One window, shape (T,), or those of several indices, shape (B, T)."""
        windows = self._checked(index)
        rows = self._rows(windows.reshape(-1))
        batch = [torch.from_numpy(row.reshape(*windows.shape, row.shape[-1]).copy()) for row in rows]
        return DocumentBatch(*batch) if self.is_packed else Batch(*batch[:2])

    def _rows(self, windows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Inputs, targets, positions and documents of some windows, each of shape (B, T)."""
        # One flat array for each level: what the windows hold, and the number of its owner in the level above.
        slots, row = _ranges(self.packs.starts[windows], self.packs.starts[windows + 1])
        records = self.packs.records[slots]
        texts, slot = _ranges(self.records.firsts[records], self.records.firsts[records + 1])
        is_response = (texts - self.records.firsts[records][slot]) % 2 == 1
        starts, stops = self.records.starts[texts], self.records.stops[texts] + is_response  # with its end of text
        _, text = _ranges(starts, stops)
        slot, is_response = slot[text], is_response[text]

        position, column = _numbers(slot), _numbers(row[slot])
        most = self.context_size + 1
        width = most if self.is_packed or not column.size else min(int(column.max()) + 1, most)
        is_in = column < width
        at = row[slot][is_in], column[is_in]

        def placed(values: np.ndarray, around: Any) -> np.ndarray:
            table = np.full((len(windows), width), around)
            table[at] = values[is_in]
            return table

        tokens = placed(self._ids(starts, stops), np.int64(self.end_of_text))
        is_kept = placed((position > 0) & (is_response | (not self.mask_prompt)), False)
        # Padding is one more document.
        documents = placed(_numbers(row)[slot], np.bincount(row, minlength=len(windows))[:, None])
        positions = placed(position, np.arange(width) - np.bincount(at[0], minlength=len(windows))[:, None])
        return tokens[:, :-1], np.where(is_kept, tokens, IGNORED)[:, 1:], positions[:, :-1], documents[:, :-1]

    def _ids(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        ids = [self.tokens.read(start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        return np.concatenate(ids) if ids else np.empty(0, np.int64)


def _ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of several ranges, concatenated, and for each number which range it is of."""
    which = np.repeat(np.arange(len(starts)), stops - starts)
    return starts[which] + _numbers(which), which


def _numbers(groups: np.ndarray) -> np.ndarray:
    """For each element of sorted groups its number in its group, from 0."""
    numbers = np.arange(len(groups))
    return numbers - np.searchsorted(groups, groups)
