"""files of a store -> what is damaged, by their checksums and values."""

import hashlib
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from gpt2_lit.store.manifest import (
    DOCUMENTS_DTYPE,
    MANIFEST,
    MISSING,
    WRONG_ENDS,
    Damage,
    Manifest,
    Shard,
    map_array,
)
from gpt2_lit.store.storage import LocalStorage, open_to_read, store_directory

_BLOCK = 1 << 20


def verify(path: str | os.PathLike, show_progress: bool = False) -> list[Damage]:
    """Read all files of a store and compare them with their checksums.

    Args:
        path: The store.
        show_progress: Whether to show a bar on standard error.

    Returns:
        What is damaged: nothing, if the tokens are those that were written.

    Raises:
        StoreError: If the manifest itself is missing or damaged.
    """
    path = store_directory(path)
    manifest = Manifest.load(path)
    damages = manifest.damages(LocalStorage(path))
    known = {damage.file for damage in damages}
    files = [_File(manifest.sources_file, manifest.sources_crc32)]
    for shard in manifest.shards:
        ids, ends = partial(_wrong_ids, manifest), partial(_wrong_ends, shard)
        files += [
            _File(shard.tokens_file, shard.tokens_crc32, shard.tokens_sha256, shard.made_from, ids),
            _File(shard.documents_file, shard.documents_crc32, shard.documents_sha256, shard.made_from, ends),
            _File(shard.receipt_file, zlib.crc32(shard.dumps()), "", shard.made_from),
        ]
    sizes = LocalStorage(path).list()
    num_bytes = sum(sizes.get(file.name, 0) for file in files)
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc="verifying", delay=1, disable=not show_progress) as bar:
        for file in files:
            name = str(path / file.name)
            if name not in known and (problem := _problem(name, file, bar.update)):
                damages.append(Damage(name, problem, file.made_from))
    return damages


def checked_by(path: str | os.PathLike) -> str:
    """What :func:`verify` compares in this store, and what that finds."""
    if not Manifest.load(path).has_sha256:
        return "by CRC-32: finds accidents, not people."
    found = hashlib.sha256((Path(path) / MANIFEST).read_bytes()).hexdigest()
    return f"by SHA-256. That of {MANIFEST}, which holds the others, is {found}: compare it with what its maker says."


class _File(NamedTuple):
    name: str
    crc32: int
    sha256: str = ""
    made_from: str = ""
    wrong_values: Callable[[str], str] = lambda path: ""  # what no checksum of somebody else's tells


def _problem(path: str, file: _File, on_progress: Callable[[int], object]) -> str:
    """What is wrong with a file; empty if it is as the manifest says, and has values that can be."""
    try:
        found, found_sha256 = _checksums(path, bool(file.sha256), on_progress)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found != file.crc32:
        return f"is damaged: its CRC-32 is {found:08x}, not {file.crc32:08x}"
    if found_sha256 != file.sha256:
        return f"was changed: its SHA-256 is {found_sha256}, not {file.sha256}"
    return file.wrong_values(path)


def _wrong_ids(manifest: Manifest, path: str) -> str:
    ids = map_array(Path(path), manifest.dtype)
    highest = max((int(ids[start : start + _BLOCK].max()) for start in range(0, len(ids), _BLOCK)), default=0)
    last = manifest.vocab_size - 1
    return f"has the id {highest}, and its vocabulary ends at {last}" if highest > last else ""


def _wrong_ends(shard: Shard, path: str) -> str:
    return "" if shard.has_ends(map_array(Path(path), DOCUMENTS_DTYPE)) else WRONG_ENDS


def _checksums(file: str, with_sha256: bool, on_progress: Callable[[int], object]) -> tuple[int, str]:
    """Its CRC-32 and, if asked for, its SHA-256."""
    crc32, sha256 = 0, hashlib.sha256()
    with open_to_read(file) as opened:
        while block := opened.read(_BLOCK):
            crc32 = zlib.crc32(block, crc32)
            if with_sha256:
                sha256.update(block)
            on_progress(len(block))
    return crc32, sha256.hexdigest() if with_sha256 else ""
