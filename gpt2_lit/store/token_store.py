"""files of a store -> one long sequence of ids, read without loading it."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer
from numpy.lib.stride_tricks import sliding_window_view

from gpt2_lit.store.manifest import DOCUMENTS_DTYPE, WRONG_ENDS, Damage, Manifest, StoreError, map_array
from gpt2_lit.store.storage import LocalStorage, store_directory
from gpt2_lit.store.verify import verify


class TokenStore:
    """One long sequence of token ids, of which any part can be read: shards, one after the other, all of one type.

    Made by :func:`open_store`, :func:`open_raw` and :meth:`of_array`. Its pickled state is how to reopen it, not the
    tokens; ``content`` is a checksum of them (of samples, for raw files), the same wherever the store lies.
    """

    def __init__(
        self,
        path: str,
        shards: Sequence[Integer[np.ndarray, " _"]],
        content: str = "",
        manifest: Manifest | None = None,
        reopen: tuple[Callable[..., "TokenStore"], tuple] | None = None,
    ) -> None:
        self.path = path
        self.content = content
        self._shards = list(shards)
        self._starts = np.cumsum([0, *map(len, shards)])
        self._manifest = manifest
        self._reopen = reopen
        self._ends: dict[int, Int64[np.ndarray, " _"]] = {}
        self._views: dict[int, np.ndarray] = {}

    @classmethod
    def of_array(
        cls, ids: Integer[np.ndarray, " N"], ends: Int64[np.ndarray, " _"] | None = None, content: str = ""
    ) -> "TokenStore":
        """The same over ids that are in memory, or mapped into it; ``ends`` are the positions after each document."""
        store = cls("", [ids], content, reopen=(cls.of_array, (ids, ends, content)))
        if ends is not None:
            store._ends[0] = ends
        return store

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple:
        assert self._reopen, "a store knows how it was opened"
        return (_reopen_same, (*self._reopen, self.content))

    @property
    def dtype(self) -> np.dtype:
        return self._shards[0].dtype

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Stretches (start, stop) in which :meth:`rows` is fastest: no window should cross their borders."""
        borders = self._starts.tolist()
        return [(start, stop) for start, stop in pairwise(borders) if start < stop]

    @property
    def num_documents(self) -> int:
        """0 if it is not known where documents end."""
        return self._manifest.num_documents if self._manifest else len(self._ends.get(0, ()))

    @property
    def num_sources(self) -> int:
        """Files that the store was prepared from; 0 if it was not."""
        return self._manifest.num_sources if self._manifest else 0

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of text, in UTF-8; 0 if not known."""
        return sum(shard.num_bytes for shard in self._manifest.shards) if self._manifest else 0

    @property
    def tokenizer(self) -> str | None:
        """The name of the tokenizer that made the ids; None if not known."""
        return self._manifest.tokenizer if self._manifest else None

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """What tells tokenizers apart; None if not known."""
        return (self._manifest.tokenizer_hash or None) if self._manifest else None

    @property
    def vocab_size(self) -> int | None:
        return self._manifest.vocab_size if self._manifest else None

    def rows(self, starts: Int64[np.ndarray, " B"], length: int) -> Integer[np.ndarray, "B {length}"]:
        """A copy of the ``length`` tokens from each of ``starts`` on; an IndexError if there are fewer."""
        if len(self._shards) == 1 and length <= len(self):
            if length not in self._views:
                self._views[length] = sliding_window_view(self._shards[0], length)
            return self._views[length][starts]
        if not len(starts):
            return np.empty((0, length), self.dtype)
        numbers, itemsize = np.searchsorted(self._starts, starts, side="right") - 1, self.dtype.itemsize
        firsts = ((starts - self._starts[numbers]) * itemsize).tolist()
        # As bytes: slicing and joining them takes two thirds of the time of arrays.
        shards, num_bytes = self._bytes, length * itemsize
        rows = [shards[n][first : first + num_bytes] for n, first in zip(numbers.tolist(), firsts, strict=True)]
        ids = np.frombuffer(bytearray().join(rows), self.dtype)
        if ids.size != starts.size * length:  # some rows end in the next shard
            ids = np.concatenate([self.read(start, start + length) for start in starts.tolist()])
            if ids.size != starts.size * length:
                raise IndexError(f"there are {len(self)} tokens, fewer than {int(starts.max()) + length}")
        return ids.reshape(len(starts), length)

    @cached_property
    def _bytes(self) -> list[memoryview]:
        return [shard.view(np.uint8).data for shard in self._shards]

    def read(self, start: int, stop: int) -> Integer[np.ndarray, " _"]:
        """A copy of the tokens from ``start`` up to, and without, ``stop``."""
        first, last = np.searchsorted(self._starts[1:-1], [start, stop])
        parts = range(first, last + 1)
        pieces = [self._shards[n][max(start - self._starts[n], 0) : max(stop - self._starts[n], 0)] for n in parts]
        return np.concatenate(pieces)

    def document_ends(self, start: int, stop: int) -> Int64[np.ndarray, " _"]:
        """The positions after each end of text that separates two documents: those above ``start``, up to ``stop``.

        The end of the last document is not among them: it is ``len(self)``.
        """
        start, stop = max(start, 0), min(stop, len(self))
        first, last = np.searchsorted(self._starts[1:-1], [start, stop])
        found = []
        for number in range(first, last + 1):
            ends, before = self._ends_of(number), int(self._starts[number])
            low, high = np.searchsorted(ends, [start - before, stop - before], side="right")
            found.append(before + ends[low:high].astype(np.int64))
        return np.concatenate(found)

    def nearest_document_end(self, position: int, within: int) -> int:
        """The position itself, or the document end nearest to it if one is ``within`` so many tokens of it.

        The start and the end of all tokens count among them.
        """
        first, last = np.searchsorted(self._starts[1:-1], [position - within, position + within])
        ends = [0, len(self)]
        for number in range(first, last + 1):
            before = int(self._starts[number])
            of_shard = self._ends_of(number)
            after = int(np.searchsorted(of_shard, position - before))
            ends += [before + int(end) for end in of_shard[max(after - 1, 0) : after + 1]]
        near = [end for end in ends if abs(end - position) <= within]
        return min(near, key=lambda end: abs(end - position), default=position)

    def _ends_of(self, shard: int) -> Int64[np.ndarray, " _"]:
        """Where the documents of a shard end, in tokens from its start."""
        if shard not in self._ends:
            self._ends[shard] = np.empty(0, np.int64)
            if self._manifest and (described := self._manifest.shards[shard]).num_documents:
                path = Path(self.path) / described.documents_file
                ends = map_array(path, DOCUMENTS_DTYPE, described.num_documents)
                if not described.has_ends(ends):  # of a store from elsewhere, as its checksums may be
                    raise StoreError(str(Damage(str(path), WRONG_ENDS, described.made_from)))
                self._ends[shard] = ends
        return self._ends[shard]


def open_store(path: str | os.PathLike, check: bool = False) -> TokenStore:
    """Open a prepared store in milliseconds and little memory at any size: the tokens are mapped, not read.

    Raises:
        StoreError: If there is no store, or a file of it is missing or has another size than the manifest says. With
            ``check`` all of it is read once, and compared with its checksums.
    """
    path = store_directory(path)
    manifest = Manifest.load(path)
    if damages := verify(path, show_progress=True) if check else manifest.damages(LocalStorage(path)):
        more = f" {len(damages) - 1} more of its files are damaged: gpt2-lit verify names them." if damages[1:] else ""
        raise StoreError(f"{damages[0]}{more}")
    shards = [map_array(path / shard.tokens_file, manifest.dtype, shard.num_tokens) for shard in manifest.shards]
    last = max((number for number, shard in enumerate(shards) if len(shard)), default=None)
    if last is not None:
        shards[last] = shards[last][:-1]  # the end of text after the last document separates it from nothing
    return TokenStore(str(path), shards, manifest.content, manifest, reopen=(open_store, (str(path),)))


def _reopen_same(opener: Callable[..., TokenStore], args: tuple, content: str) -> TokenStore:
    store = opener(*args)
    if store.content != content:
        raise StoreError(f"{store.path} has changed since it was opened. Start the program anew.")
    return store
