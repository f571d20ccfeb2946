"""tokens on disk -> one long sequence of ids: the format of a token store, which opens in no time at any size.

A store is a folder::

    manifest.json        what the store holds, and the checksums of all that follows; written last
    tokens-KEY.bin       the ids of one shard, two bytes each (four for vocabularies above 65,536), little-endian
    documents-KEY.bin    where the documents of the shard end, in tokens from its start, eight bytes each
    shard-KEY.json       its numbers, as in the manifest; with it the shard is finished
    sources-CRC.json     the files that the tokens were made from, one a line

A shard is made from a part of the sources and named after it, so that a change in one file leaves the shards of the
others as they are. Behind each document stands the end-of-text token; the very last one does not count. No name ends
like a text, so that a store may lie in a folder of texts.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt

FORMAT = "gpt2_lit token store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DOCUMENTS_DTYPE = np.dtype("<i8")

# Source: karpathy/llm.c, dev/data/data_common.py: a header of 256 int32 numbers: magic, version, number of tokens.
LLMC_HEADER_BYTES = 256 * 4
LLMC_DTYPES = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}

RAW_DTYPES = ("uint8", "uint16", "uint32", "uint64")  # of files without a header

_SAMPLES, _SAMPLE_TOKENS = 64, 2048  # of a raw file, to tell it from another in the same time at any size


class StoreError(ValueError):
    """A token store that cannot be read: missing, damaged, or of another version."""


class VersionError(StoreError):
    """A token store that another version of gpt2_lit wrote: not damaged, so that nobody should write over it."""


class Shard(NamedTuple):
    """A shard, as the manifest has it."""

    key: str
    num_tokens: int
    num_documents: int
    num_bytes: int  # of text, in UTF-8
    tokens_crc32: int
    documents_crc32: int
    made_from: str  # the first and the last file in it, for people

    @property
    def tokens_file(self) -> str:
        return f"tokens-{self.key}.bin"

    @property
    def documents_file(self) -> str:
        return f"documents-{self.key}.bin"

    @property
    def receipt_file(self) -> str:
        return f"shard-{self.key}.json"

    def dumps(self) -> bytes:
        """The bytes of its receipt."""
        return _sealed(self._asdict())

    @classmethod
    def loads(cls, receipt: bytes) -> "Shard":
        """The shard of a receipt; a ValueError, TypeError or KeyError if it is damaged."""
        content = json.loads(receipt)
        shard = cls(**{name: content[name] for name in cls._fields})
        if shard.dumps() != receipt:
            raise ValueError("the receipt is damaged")
        return shard

    def file_sizes(self, dtype: np.dtype) -> dict[str, int]:
        """The bytes that each of its files has."""
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
        """Tokens without the end of text behind the last document."""
        return max(sum(shard.num_tokens for shard in self.shards) - 1, 0)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    def dumps(self) -> bytes:
        """The bytes of its file."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            **self._asdict(),
            "shards": [shard._asdict() for shard in self.shards],
        }
        return _sealed(content, indent=1)

    @classmethod
    def load(cls, store: str | os.PathLike) -> "Manifest":
        """The manifest of a store.

        Raises:
            StoreError: If there is none, or it is damaged.
            VersionError: If it is of another version.
        """
        path = Path(store) / MANIFEST
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{store} is not a token store: there is no {path}. Make one: gpt2-lit prepare SOURCE {store}"
            ) from None
        damaged = StoreError(f"{path} is damaged. Prepare the store again, from the same sources: the shards are kept.")
        try:
            content = json.loads(raw)
            if content["format"] == FORMAT and content["format_version"] != FORMAT_VERSION:
                raise VersionError(
                    f"{path} has format version {content['format_version']}, and this gpt2_lit reads version "
                    f"{FORMAT_VERSION}. Prepare the store anew, in another folder."
                )
            fields = {name: content[name] for name in cls._fields}
            manifest = cls(**{**fields, "shards": [Shard(**shard) for shard in fields["shards"]]})
            if manifest.dumps() != raw:
                raise damaged
        except StoreError:
            raise
        except (ValueError, TypeError, KeyError):
            raise damaged from None
        return manifest


class TokenStore:
    """One long sequence of token ids, which lies in shards that are mapped into memory.

    Made by :func:`open_store` and :func:`open_raw`. To another process it goes as its path, not as its tokens.

    Attributes:
        path: Where it lies.
        shards: The ids of each shard; shape (N of the shard,).
        starts: The place of each shard's first token among all, and behind the last the number of tokens, N.
        content: A checksum of all tokens (of samples, for raw files), the same wherever the store lies.
        manifest: What is known of a prepared store; None of raw files.
    """

    def __init__(
        self,
        path: str,
        shards: Sequence[np.ndarray],
        content: str,
        manifest: Manifest | None = None,
        reopen: tuple[Callable[..., "TokenStore"], tuple] | None = None,
    ) -> None:
        self.path = path
        self.shards = list(shards)
        self.starts = np.cumsum([0, *map(len, shards)])
        self.content = content
        self.manifest = manifest
        self._reopen = reopen
        self._ends: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __reduce__(self) -> tuple:
        assert self._reopen, "a store knows how it was opened"
        return (_reopen_same, (*self._reopen, self.content))

    def read(self, start: int, stop: int) -> UInt[np.ndarray, " N"]:
        """A copy of the tokens from ``start`` up to, and without, ``stop``, over shards."""
        pieces = [
            shard[max(start - first, 0) : max(stop - first, 0)]
            for shard, first in zip(self.shards, self.starts.tolist(), strict=False)
        ]
        return np.concatenate([piece for piece in pieces if len(piece)] or [self.shards[0][:0]])

    def nearest_document_end(self, position: int, within: int) -> int:
        """The place itself, or the document end nearest to it if one is ``within`` so many tokens of it.

        The start and the end of all tokens count among them.
        """
        first, last = np.searchsorted(self.starts[1:-1], [position - within, position + within])
        ends = [
            int(self.starts[shard]) + int(end)
            for shard in range(first, last + 1)
            for end in _neighbours(self._document_ends(shard), position - int(self.starts[shard]))
        ]
        near = [end for end in (0, *ends, len(self)) if abs(end - position) <= within]
        return min(near, key=lambda end: abs(end - position), default=position)

    def _document_ends(self, shard: int) -> Int64[np.ndarray, " M"]:
        if shard not in self._ends:
            self._ends[shard] = np.empty(0, np.int64)
            if self.manifest and self.manifest.shards[shard].num_documents:
                path = Path(self.path) / self.manifest.shards[shard].documents_file
                self._ends[shard] = np.memmap(path, DOCUMENTS_DTYPE, mode="r")
        return self._ends[shard]


def is_store(path: str | os.PathLike) -> bool:
    """Whether a path is a token store, be it damaged or of another version. Other programs write manifests too."""
    try:
        manifest = (Path(path) / MANIFEST).read_bytes()
    except OSError:
        return False
    return FORMAT.encode() in manifest or b"tokens_crc32" in manifest


def open_store(path: str | os.PathLike) -> TokenStore:
    """Open a prepared store. It takes the same time and memory at any size: the tokens are mapped, not read.

    Raises:
        StoreError: If there is no store, or a file of it is missing or has another size than the manifest says.
            Other damage is found by :func:`verify`.
    """
    path = Path(path).absolute()
    manifest = Manifest.load(path)
    if damages := _wrong_sizes(path, manifest):
        more = f" {len(damages) - 1} more of its files are damaged: gpt2-lit verify names them." if damages[1:] else ""
        raise StoreError(f"{damages[0]}{more}")
    shards = [_map(path / shard.tokens_file, manifest.dtype, count=shard.num_tokens) for shard in manifest.shards]
    last = max((number for number, shard in enumerate(shards) if len(shard)), default=None)
    if last is not None:
        shards[last] = shards[last][:-1]  # the end of text behind the last document separates it from nothing
    contents = json.dumps([(shard.num_tokens, shard.tokens_crc32) for shard in manifest.shards])
    return TokenStore(str(path), shards, f"{zlib.crc32(contents.encode()):08x}", manifest, (open_store, (str(path),)))


def open_raw(paths: Sequence[str | os.PathLike], dtype: str = "uint16", vocab_size: int | None = None) -> TokenStore:
    """Open files of ids as other programs write them, one shard each: nanoGPT's and llm.c's ``.bin``.

    Args:
        paths: The files, in reading order.
        dtype: Type of the ids in files without a header: uint8, uint16 (nanoGPT), uint32 or uint64. llm.c's header
            tells it.
        vocab_size: What all ids should be below; looked at in samples, which a wrong type mostly fails.

    Raises:
        StoreError: If a file is empty, cut off, or of a size that is not whole ids; if an id is too high.
        ValueError: If the type is another.
    """
    if dtype not in RAW_DTYPES:
        raise ValueError(f"token_dtype must be one of {', '.join(RAW_DTYPES)}, got {dtype!r}. Set data.token_dtype.")
    shards, checksum = [], 0
    for path in map(Path, paths):
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", 3)
        offset, ids = 0, np.dtype(dtype).newbyteorder("<")
        if len(header) == 3 and int(header[0]) in LLMC_DTYPES:
            offset, ids = LLMC_HEADER_BYTES, LLMC_DTYPES[int(header[0])]
            expected = offset + int(header[2]) * ids.itemsize
            if size != expected:
                raise StoreError(f"{path} is cut off: its header tells of {expected:,} bytes, and it has {size:,}.")
        count, rest = divmod(size - offset, ids.itemsize)
        if rest or not count:
            raise StoreError(
                f"{path} has {size:,} bytes, which is not a whole number of {ids.name} ids above 0. "
                "Set data.token_dtype to the type it was written with."
            )
        shards.append(_map(path, ids, count, offset))
        for sample in _samples(shards[-1]):
            checksum = zlib.crc32(sample.data, checksum)
            if vocab_size and sample.max() >= vocab_size:
                raise StoreError(
                    f"{path} read as {ids.name} has the id {sample.max()}, and the vocabulary ends at "
                    f"{vocab_size - 1}. Set data.token_dtype to the type it was written with, or write it with this "
                    "tokenizer."
                )
        checksum = zlib.crc32(f"{count} {ids}".encode(), checksum)
    if len({shard.dtype for shard in shards}) > 1:
        raise StoreError(f"the files have ids of different types: {', '.join(str(path) for path in paths[:5])}.")
    names = tuple(str(Path(path).absolute()) for path in paths)
    return TokenStore(names[0], shards, f"{checksum:08x}", None, (open_raw, (names, dtype)))


class Damage(NamedTuple):
    """A file of a store that is not as the manifest says."""

    file: str
    problem: str
    made_from: str  # empty for the list of the sources

    def __str__(self) -> str:
        made_from = f" It was made from {self.made_from}." if self.made_from else ""
        delete = "" if self.problem == _MISSING else "delete it and "
        return (
            f"{self.file} {self.problem}.{made_from} To mend it, {delete}prepare the store again from the same "
            "sources: the other shards are kept."
        )


_MISSING = "is missing"


def verify(path: str | os.PathLike, on_progress: Callable[[int], object] = lambda num_bytes: None) -> list[Damage]:
    """Read all files of a store and compare them with their checksums.

    Args:
        path: The store.
        on_progress: Called with the number of bytes that were read since the last call.

    Returns:
        What is damaged: nothing, if the tokens are those that were written.

    Raises:
        StoreError: If the manifest itself is missing or damaged.
    """
    path = Path(path).absolute()
    manifest = Manifest.load(path)
    damages = _wrong_sizes(path, manifest)
    known = {damage.file for damage in damages}
    checksums = [(manifest.sources_file, manifest.sources_crc32, "")]
    for shard in manifest.shards:
        checksums.append((shard.tokens_file, shard.tokens_crc32, shard.made_from))
        checksums.append((shard.documents_file, shard.documents_crc32, shard.made_from))
        checksums.append((shard.receipt_file, zlib.crc32(shard.dumps()), shard.made_from))
    for name, expected, made_from in checksums:
        file = str(path / name)
        if file in known:
            continue
        try:
            found = _crc32(file, on_progress)
        except FileNotFoundError:
            damages.append(Damage(file, _MISSING, made_from))
        except OSError as error:
            damages.append(Damage(file, f"cannot be read ({error.strerror})", made_from))
        else:
            if found != expected:
                damages.append(Damage(file, f"is damaged: its CRC-32 is {found:08x}, not {expected:08x}", made_from))
    return damages


def token_dtype(vocab_size: int) -> np.dtype:
    """The type that ids of a vocabulary are stored as: little-endian, two bytes where they are enough, or four."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after the power has gone."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Let the names of the files in a folder reach the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sealed(content: dict[str, Any], indent: int | None = None) -> bytes:
    """JSON, the last value of which is the checksum of the rest."""
    checksum = zlib.crc32(json.dumps(content).encode())
    return (json.dumps({**content, "checksum": checksum}, indent=indent) + "\n").encode()


def _wrong_sizes(path: Path, manifest: Manifest) -> list[Damage]:
    damages = []
    for shard in manifest.shards:
        for name, expected in shard.file_sizes(manifest.dtype).items():
            file = path / name
            size = file.stat().st_size if file.exists() else None
            if size != expected:
                problem = _MISSING if size is None else f"has {size:,} bytes, not {expected:,}"
                damages.append(Damage(str(file), problem, shard.made_from))
    if not (path / manifest.sources_file).exists():
        damages.append(Damage(str(path / manifest.sources_file), _MISSING, ""))
    return damages


def _crc32(file: str, on_progress: Callable[[int], object]) -> int:
    with open(file, "rb") as opened:
        checksum = 0
        while block := opened.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
            on_progress(len(block))
        return checksum


def _map(path: Path, dtype: np.dtype, count: int, offset: int = 0) -> np.ndarray:
    if not count:  # nothing can be mapped
        return np.empty(0, dtype)
    # As a plain array: a memmap's slices cost three times as long.
    return np.asarray(np.memmap(path, dtype, mode="r", offset=offset, shape=(count,)))


def _samples(shard: np.ndarray) -> Iterator[np.ndarray]:
    """Stretches of it, evenly spaced from its start to its end; all of it, if it is short."""
    last = max(len(shard) - _SAMPLE_TOKENS, 0)
    for start in sorted({last * number // (_SAMPLES - 1) for number in range(_SAMPLES)}):
        yield shard[start : start + _SAMPLE_TOKENS]


def _neighbours(ends: np.ndarray, position: int) -> np.ndarray:
    i = int(np.searchsorted(ends, position))
    return ends[max(i - 1, 0) : i + 1]


def _reopen_same(opener: Callable[..., TokenStore], args: tuple, content: str) -> TokenStore:
    store = opener(*args)
    if store.content != content:
        raise StoreError(f"{store.path} has changed since it was opened. Start the program anew.")
    return store
