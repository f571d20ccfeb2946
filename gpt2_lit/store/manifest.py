"""what a store holds -> the names, bytes and checksums of its files. docs/store.md describes the format."""

import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2_lit.errors import printable
from gpt2_lit.store.storage import LocalStorage, Storage, StoreError, leads_out

FORMAT = "gpt2_lit token store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DOCUMENTS_DTYPE = np.dtype("<i8")

MISSING = "is missing"
LINK = "is a link that leads out of the store (cp -rL makes a copy of a store without links)"
_KEY = re.compile("[0-9a-f]{16}")  # part of file names, so nothing else: ../ would lead out of the store
_SHA256 = re.compile("[0-9a-f]{64}")


class VersionError(StoreError):
    """A token store that another version of gpt2_lit wrote: not damaged, so that nobody should write over it."""


WRONG_ENDS = "has document ends that do not ascend, or lie outside of its shard"


class Damage(NamedTuple):
    """A file of a store that is not as the manifest says."""

    file: str
    problem: str
    made_from: str  # empty for the list of the sources

    def __str__(self) -> str:
        made_from = f" It was made from {self.made_from}." if self.made_from else ""
        delete = "" if self.problem == MISSING else "delete it and "
        return printable(
            f"{self.file} {self.problem}.{made_from} To mend it, {delete}prepare the store again from the same "
            "sources: the other shards are kept."
        )


class Shard(NamedTuple):
    """A shard, as its receipt and the manifest describe it."""

    key: str
    num_tokens: int
    num_documents: int
    num_bytes: int  # of text, in UTF-8
    tokens_crc32: int
    documents_crc32: int
    made_from: str  # the first and the last file in it, for people
    tokens_sha256: str = ""  # if it was asked for: finds changes that somebody has made on purpose, too
    documents_sha256: str = ""

    @property
    def tokens_file(self) -> str:
        return tokens_file(self.key)

    @property
    def documents_file(self) -> str:
        return f"documents-{self.key}.bin"

    @property
    def receipt_file(self) -> str:
        return receipt_file(self.key)

    def dumps(self) -> bytes:
        """The bytes of its receipt."""
        return _sealed(self.recorded())

    def recorded(self) -> dict[str, Any]:
        """Its fields, without those that it does not have."""
        defaults = self._field_defaults.items()
        return {name: value for name, value in self._asdict().items() if (name, value) not in defaults}

    @classmethod
    def loads(cls, receipt: bytes) -> "Shard":
        """The shard of a receipt; a ValueError, TypeError or KeyError if it is damaged."""
        shard = cls.of(json.loads(receipt))
        if shard.dumps() != receipt:
            raise ValueError("the receipt is damaged")
        return shard

    @classmethod
    def of(cls, content: Any) -> "Shard":
        """A shard of JSON from anybody; a ValueError, TypeError or KeyError unless every field is what it must be."""
        given = [name for name in cls._fields if name in content or name not in cls._field_defaults]
        shard = cls(**{name: content[name] for name in given})
        _check(isinstance(shard.key, str) and _KEY.fullmatch(shard.key))
        _check(all(map(_is_count, (shard.num_tokens, shard.num_documents, shard.num_bytes))))
        _check(shard.num_documents <= shard.num_tokens)  # each ends with one
        _check(_is_crc32(shard.tokens_crc32) and _is_crc32(shard.documents_crc32))
        _check(isinstance(shard.made_from, str))
        hashes = (shard.tokens_sha256, shard.documents_sha256)
        _check(hashes == ("", "") or all(isinstance(sha, str) and _SHA256.fullmatch(sha) for sha in hashes))
        return shard

    def has_ends(self, ends: np.ndarray) -> bool:
        """Whether these may be its document ends: they ascend, and lie within it."""
        return not len(ends) or bool(ends[0] > 0 and ends[-1] <= self.num_tokens and (ends[:-1] < ends[1:]).all())

    def file_sizes(self, dtype: np.dtype) -> dict[str, int]:
        """The bytes of its tokens and of its document ends, by file name."""
        return {
            self.tokens_file: self.num_tokens * dtype.itemsize,
            self.documents_file: self.num_documents * DOCUMENTS_DTYPE.itemsize,
        }


class Manifest(NamedTuple):
    """What a store holds. Its file is the commit point: without it there is no store."""

    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    options: dict[str, Any]  # how the sources were read
    shard_bytes: int  # of the sources for one shard, about
    num_sources: int
    sources_crc32: int
    shards: list[Shard]

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.vocab_size)

    @property
    def sources_file(self) -> str:
        return f"sources-{self.sources_crc32:08x}.json"

    @property
    def num_tokens(self) -> int:
        """Tokens without the end of text after the last document."""
        return max(sum(shard.num_tokens for shard in self.shards) - 1, 0)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @property
    def has_sha256(self) -> bool:
        return all(shard.tokens_sha256 for shard in self.shards)

    @property
    def content(self) -> str:
        """A checksum of all tokens: the same for the same tokens in the same shards, wherever the store lies."""
        return content_of([(shard.num_tokens, shard.tokens_crc32) for shard in self.shards])

    def dumps(self) -> bytes:
        """The bytes of its file."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            **self._asdict(),
            "shards": [shard.recorded() for shard in self.shards],
        }
        return _sealed(content, indent=1)

    @classmethod
    def load(cls, store: str | os.PathLike) -> "Manifest":
        """The manifest of a store.

        Raises:
            StoreError: If there is none, or it is damaged.
            VersionError: If it is of another version.
        """
        return cls.read(LocalStorage(Path(store)))

    @classmethod
    def read(cls, storage: Storage) -> "Manifest":
        """The same, from wherever the store lies."""
        path = f"{storage}/{MANIFEST}"
        try:
            raw = storage.read(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{storage} is not a token store: there is no {path}. Make one: gpt2-lit prepare SOURCE {storage}"
            ) from None
        damaged = StoreError(f"{path} is damaged. Prepare the store again, from the same sources: the shards are kept.")
        try:
            content = json.loads(raw)
            if content["format"] == FORMAT and content["format_version"] != FORMAT_VERSION:
                raise VersionError(
                    f"{path} has format version {content['format_version']}, and this gpt2_lit reads version "
                    f"{FORMAT_VERSION}. Prepare the store anew, in another directory."
                )
            manifest = cls.of(content)
            if manifest.dumps() != raw:
                raise damaged
        except StoreError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError):
            raise damaged from None
        return manifest

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Manifest":
        """A manifest of JSON from anybody; a ValueError, TypeError or KeyError unless each field is what it must be."""
        fields = {name: content[name] for name in cls._fields}
        manifest = cls(**{**fields, "shards": [Shard.of(shard) for shard in fields["shards"]]})
        _check(isinstance(manifest.tokenizer, str) and isinstance(manifest.tokenizer_hash, str))
        _check(_is_count(manifest.vocab_size) and 0 < manifest.vocab_size <= 1 << 32)
        _check(isinstance(manifest.options, dict) and _is_crc32(manifest.sources_crc32))
        _check(_is_count(manifest.shard_bytes) and _is_count(manifest.num_sources))
        _check(manifest.shards)
        return manifest

    def damages(self, storage: Storage) -> list[Damage]:
        """The files that are missing or cut off, by their sizes."""
        sizes = storage.list()
        expected = [(shard, name, size) for shard in self.shards for name, size in shard.file_sizes(self.dtype).items()]
        damages = []
        for shard, name, size in expected:
            if leads_out(f"{storage}/{name}"):
                damages.append(Damage(f"{storage}/{name}", LINK, shard.made_from))
            elif sizes.get(name) != size:
                problem = f"has {sizes[name]:,} bytes, not {size:,}" if name in sizes else MISSING
                damages.append(Damage(f"{storage}/{name}", problem, shard.made_from))
        if self.sources_file not in sizes:
            damages.append(Damage(f"{storage}/{self.sources_file}", MISSING, ""))
        return damages


def content_of(shards: Sequence[tuple[int, int]]) -> str:
    """A checksum of all tokens, from the number and the checksum of those of each shard."""
    return f"{zlib.crc32(json.dumps(shards).encode()):08x}"


def is_store(path: str | os.PathLike | Storage) -> bool:
    """Whether a path is a token store, be it damaged or of another version. Other programs write manifests too."""
    try:
        manifest = (path if isinstance(path, Storage) else LocalStorage(Path(path))).read(MANIFEST)
    except OSError:
        return False
    return FORMAT.encode() in manifest or b"tokens_crc32" in manifest


def sources_bytes(files: Iterable[Any]) -> bytes:
    """The list of the files that a store was made from, one a line."""
    return ("[" + ",\n".join(map(json.dumps, files)) + "]\n").encode()


def read_sources(raw: bytes) -> list[list[Any]]:
    """What :func:`sources_bytes` wrote: path, size and more of each file; a ValueError if it is damaged."""
    try:
        files = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check(isinstance(files, list) and all(isinstance(file, list) and file for file in files))
    _check(all(isinstance(file[0], str) for file in files))
    return files


def tokens_file(key: str) -> str:
    return f"tokens-{key}.bin"


def receipt_file(key: str) -> str:
    return f"shard-{key}.json"


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that ids of a vocabulary are stored as: little-endian, two bytes where they are enough, or four."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def map_array(path: Path, dtype: np.dtype, count: int | None = None, offset: int = 0) -> np.ndarray:
    """``count`` numbers of a file, or all, mapped into memory."""
    count = path.stat().st_size // dtype.itemsize if count is None else count
    if not count:  # nothing can be mapped
        return np.empty(0, dtype)
    # As a plain array: a memmap's slices cost three times as long.
    return np.asarray(np.memmap(path, dtype, mode="r", offset=offset, shape=(count,)))


def _sealed(content: dict[str, Any], indent: int | None = None) -> bytes:
    """JSON, the last value of which is the checksum of the rest."""
    checksum = zlib.crc32(json.dumps(content).encode())
    return (json.dumps({**content, "checksum": checksum}, indent=indent) + "\n").encode()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_crc32(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _check(is_right: Any) -> None:
    if not is_right:
        raise ValueError("a field is not what it must be")
