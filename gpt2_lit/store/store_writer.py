"""tokens of shards -> a store: the one owner of its names, receipts, commit and deletion (docs/store.md)."""

import hashlib
import re
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gpt2_lit.store.manifest import (
    DOCUMENTS_DTYPE,
    MANIFEST,
    Manifest,
    Shard,
    StoreError,
    VersionError,
    is_store,
    read_sources,
    receipt_file,
    tokens_file,
)
from gpt2_lit.store.storage import Storage

_OURS = re.compile(
    r"manifest\.json|(tokens|documents)-[0-9a-f]{16}\.bin|shard-[0-9a-f]{16}\.json|sources-[0-9a-f]{8}\.json"
)


class StoreWriter(NamedTuple):
    """Makes a store, or brings one up to date; until the commit the former one stays whole."""

    storage: Storage

    def check(self) -> None:
        """Raise a StoreError where others' files would lie among those of the store."""
        names = self.storage.list().keys()
        begun = all(_OURS.fullmatch(name) for name in names) and names != {MANIFEST}
        if not (begun or is_store(self.storage)):
            raise StoreError(f"{self.storage} holds other files and no token store. Give an empty or a new directory.")

    def manifest(self) -> Manifest | None:
        """The manifest as it is; None if there is none, or a damaged one, which is made anew."""
        try:
            return Manifest.read(self.storage)
        except VersionError:
            raise
        except StoreError:
            return None

    def sources(self, manifest: Manifest) -> list[list[Any]] | None:
        """The files that a store was made from, as they were committed; None if their list is missing or damaged."""
        with suppress(OSError, ValueError):
            raw = self.storage.read(manifest.sources_file)
            if zlib.crc32(raw) == manifest.sources_crc32:
                return read_sources(raw)
        return None

    def finished(self, keys: Iterable[str], dtype: np.dtype, sha256: bool = False) -> dict[str, Shard]:
        """Of these shards those that are whole, by receipts and file sizes; with ``sha256`` those that have it."""
        sizes, shards = self.storage.list(), {}
        for key in keys:
            if receipt_file(key) in sizes:
                with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                    shard = Shard.loads(self.storage.read(receipt_file(key)))
                    is_whole = shard.key == key and shard.file_sizes(dtype).items() <= sizes.items()
                    if is_whole and (shard.tokens_sha256 or not sha256):
                        shards[key] = shard
        return shards

    @contextmanager
    def put_shard(
        self, key: str, made_from: str, end_of_text: np.ndarray, sha256: bool = False
    ) -> Iterator["ShardWriter"]:
        """Give a shard to write to, which is finished after the block; ``end_of_text`` is in the store's type."""
        with self.storage.put(tokens_file(key)) as file:
            writer = ShardWriter(file, end_of_text, sha256)
            yield writer
        documents = np.array(writer.ends, DOCUMENTS_DTYPE).tobytes()
        counts = (writer.num_tokens, len(writer.ends), writer.num_bytes)
        hashes = (writer.sha256.hexdigest(), hashlib.sha256(documents).hexdigest()) if writer.sha256 else ()
        writer.shard = shard = Shard(key, *counts, writer.checksum, zlib.crc32(documents), made_from, *hashes)
        self._put(shard.documents_file, documents)
        self._put(shard.receipt_file, shard.dumps())  # last: with it the shard is finished

    def commit(self, manifest: Manifest, sources: bytes) -> None:
        """Make the store what the manifest says, in one moment, and delete what it no longer needs."""
        self._put(manifest.sources_file, sources)
        with self.storage.put(MANIFEST, commit=True) as file:
            file.write(manifest.dumps())
        needed = {MANIFEST, manifest.sources_file}
        needed.update(name for s in manifest.shards for name in (s.tokens_file, s.documents_file, s.receipt_file))
        self._delete_all_but(needed)

    def _put(self, name: str, content: bytes) -> None:
        with self.storage.put(name) as file:
            file.write(content)

    def _delete_all_but(self, needed: Collection[str]) -> None:
        """Delete files of a store; never others, which somebody may have put there."""
        for name in self.storage.list():
            if _OURS.fullmatch(name) and name not in needed:
                with suppress(OSError):  # still in use, where that forbids it: next time, then
                    self.storage.delete(name)


class ShardWriter:
    """The tokens of one shard on their way into its file."""

    def __init__(self, file: BinaryIO | BytesIO, end_of_text: np.ndarray, sha256: bool = False) -> None:
        self._file, self._end_of_text = file, end_of_text
        self.num_tokens = self.num_bytes = self.checksum = 0
        self.sha256 = hashlib.sha256() if sha256 else None
        self.ends = array("q")  # of documents, in tokens
        self.shard: Shard | None = None  # once it is finished

    def write(self, ids: np.ndarray, num_bytes: int) -> None:
        """Append the ids of a piece of text that has so many bytes."""
        block = ids.astype(self._end_of_text.dtype, copy=False).data
        self._file.write(block)
        self.checksum = zlib.crc32(block, self.checksum)
        if self.sha256:
            self.sha256.update(block)
        self.num_tokens += len(ids)
        self.num_bytes += num_bytes

    def end_document(self) -> None:
        self.write(self._end_of_text, 0)
        self.ends.append(self.num_tokens)
