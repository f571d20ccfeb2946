"""files of ids that other programs wrote -> one long sequence of ids: nanoGPT's and llm.c's .bin."""

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gpt2_lit.errors import InvalidValue
from gpt2_lit.store.manifest import StoreError, map_array
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.files import unreadable

# Source: karpathy/llm.c, dev/data/data_common.py: a header of 256 int32 numbers: magic, version, number of tokens.
LLMC_HEADER_BYTES = 256 * 4
LLMC_DTYPES = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
LLMC_VERSIONS = {20240520: (1,), 20240801: (1, 7)}
# Its other files (weights, evaluations, states) have other dates there. GPT-2 has no id that begins in this way.
_LLMC_DATES = range(20240101, 20270101)

_OTHER_FORMATS = {
    b"\x93NUMPY": "NumPy's .npy: write the ids with array.tofile",
    b"PK\x03\x04": "a zip archive, as torch.save writes weights",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file: fetch it with git lfs pull",
    b"\x1f\x8b\x08\x00": "compressed: unpack it with gunzip",
    b"\x1f\x8b\x08\x08": "compressed: unpack it with gunzip",
}

RAW_DTYPES = ("uint8", "uint16", "uint32", "uint64")  # of files without a header

_SAMPLES, _SAMPLE_TOKENS = 64, 2048  # of a file, to tell it from another in the same time at any size
_LEAST_IDS, _HIGHEST_UPPER_PART = 64, 4  # to tell that they are parts of wider ids: below 327,680 if of 16 bits


def check_dtype(dtype: str) -> None:
    """Raise an InvalidValue if files of ids have no such type."""
    if dtype not in RAW_DTYPES:
        raise InvalidValue(f"token_dtype must be one of {', '.join(RAW_DTYPES)}, got {dtype!r}. Set data.token_dtype.")


def open_raw(paths: Sequence[str | os.PathLike], dtype: str = "uint16", vocab_size: int | None = None) -> TokenStore:
    """Open files of ids, one shard each.

    Args:
        paths: The files, in reading order.
        dtype: Type of the ids in files without a header: uint8, uint16 (nanoGPT), uint32 or uint64. llm.c's header
            tells it.
        vocab_size: What all ids should be below; looked at in samples, which a wrong type mostly fails.

    Raises:
        StoreError: If a file is empty, truncated, or ends within an id; if an id is too high.
        ValueError: If the type is another.
    """
    check_dtype(dtype)
    shards, checksum = [], 0
    for path in map(Path, paths):
        shard = _mapped(path, np.dtype(dtype).newbyteorder("<"))
        for sample in _samples(shard):
            checksum = zlib.crc32(sample.data, checksum)
            if vocab_size and sample.max() >= vocab_size:
                raise StoreError(
                    f"{path} read as {shard.dtype.name} has the id {sample.max()}, and the vocabulary ends at "
                    f"{vocab_size - 1}. Set data.token_dtype to the type it was written with, and data.vocab_size to "
                    "that of its tokenizer."
                )
        _check_width(path, shard)
        checksum = zlib.crc32(f"{len(shard)} {shard.dtype}".encode(), checksum)
        shards.append(shard)
    if len({shard.dtype for shard in shards}) > 1:
        raise StoreError(f"the files have ids of different types: {', '.join(str(path) for path in paths[:5])}.")
    names = tuple(str(Path(path).absolute()) for path in paths)
    return TokenStore(names[0], shards, f"{checksum:08x}", reopen=(open_raw, (names, dtype)), files=names)


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        size = path.stat().st_size
        header, offset = np.fromfile(path, "<i4", 3), 0
    except OSError as error:
        raise unreadable(str(path), error) from None
    _check_format(path, header)
    if len(header) == 3 and (magic := int(header[0])) in LLMC_DTYPES:
        offset, dtype = LLMC_HEADER_BYTES, LLMC_DTYPES[magic]
        expected = offset + int(header[2]) * dtype.itemsize
        if size != expected:
            raise StoreError(f"{path} is cut off: its header tells of {expected:,} bytes, and it has {size:,}.")
    count, rest = divmod(size - offset, dtype.itemsize)
    if rest or not count:
        raise StoreError(
            f"{path} has {size:,} bytes, which is not a whole number of {dtype.name} ids above 0. "
            "Set data.token_dtype to the type it was written with."
        )
    return map_array(path, dtype, count, offset)


def _check_format(path: Path, header: np.ndarray) -> None:
    with open(path, "rb") as file:
        start = file.read(32)
    for sign, what in _OTHER_FORMATS.items():
        if start.startswith(sign):
            raise StoreError(f"{path} does not hold plain ids: it is {what}.")
    magic, version = [*header[:2].tolist(), 0, 0][:2]
    if magic in _LLMC_DATES and version not in LLMC_VERSIONS.get(magic, ()):
        known = ", ".join(f"{magic} version {number}" for magic, (*_, number) in LLMC_VERSIONS.items())
        raise StoreError(
            f"{path} has a header of llm.c that is not read: {magic} version {version}. Known are {known}. Write it "
            "anew with llm.c's dev/data, or without a header."
        )


def _check_width(path: Path, shard: np.ndarray) -> None:
    """Of ids read as a narrower type than they were written with, all but each second, or fourth, are almost 0."""
    for name in reversed(RAW_DTYPES):
        ratio = np.dtype(name).itemsize // shard.itemsize
        if ratio < 2 or len(shard) < _LEAST_IDS:
            continue
        samples = (sample[: len(sample) // ratio * ratio] for sample in _samples(shard, ratio))
        words = np.concatenate([sample.reshape(-1, ratio) for sample in samples])
        if words[:, 1:].max() <= _HIGHEST_UPPER_PART < words[:, 0].max():
            raise StoreError(
                f"{path} read as {shard.dtype.name} has almost only 0 after each id, as ids of {name} have. "
                f"Set data.token_dtype to {name}."
            )


def _samples(shard: np.ndarray, multiple: int = 1) -> Iterator[np.ndarray]:
    """Stretches of it, evenly spaced from its start to its end; all of it, if it is short."""
    last = max(len(shard) - _SAMPLE_TOKENS, 0)
    for start in sorted({last * number // (_SAMPLES - 1) // multiple * multiple for number in range(_SAMPLES)}):
        yield shard[start : start + _SAMPLE_TOKENS]
