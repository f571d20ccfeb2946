"""files of a store -> what is damaged, by their checksums."""

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from gpt2_lit.store.manifest import MANIFEST, MISSING, Damage, Manifest
from gpt2_lit.store.storage import LocalStorage, store_directory


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
    checksums = [(manifest.sources_file, manifest.sources_crc32, "", "")]
    for shard in manifest.shards:
        checksums.append((shard.tokens_file, shard.tokens_crc32, shard.tokens_sha256, shard.made_from))
        checksums.append((shard.documents_file, shard.documents_crc32, shard.documents_sha256, shard.made_from))
        checksums.append((shard.receipt_file, zlib.crc32(shard.dumps()), "", shard.made_from))
    sizes = LocalStorage(path).list()
    num_bytes = sum(sizes.get(name, 0) for name, *_ in checksums)
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc="verifying", delay=1, disable=not show_progress) as bar:
        for name, crc32, sha256, made_from in checksums:
            file = str(path / name)
            if file not in known and (problem := _problem(file, crc32, sha256, bar.update)):
                damages.append(Damage(file, problem, made_from))
    return damages


def checked_by(path: str | os.PathLike) -> str:
    """What :func:`verify` compares in this store, and what that finds."""
    if not Manifest.load(path).has_sha256:
        return "by CRC-32: finds accidents, not people."
    found = hashlib.sha256((Path(path) / MANIFEST).read_bytes()).hexdigest()
    return f"by SHA-256. That of {MANIFEST}, which holds the others, is {found}: compare it with what its maker says."


def _problem(file: str, crc32: int, sha256: str, on_progress: Callable[[int], object]) -> str:
    """What is wrong with a file; empty if it has these checksums, of which it may lack the second."""
    try:
        found, found_sha256 = _checksums(file, bool(sha256), on_progress)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found != crc32:
        return f"is damaged: its CRC-32 is {found:08x}, not {crc32:08x}"
    return "" if found_sha256 == sha256 else f"was changed: its SHA-256 is {found_sha256}, not {sha256}"


def _checksums(file: str, with_sha256: bool, on_progress: Callable[[int], object]) -> tuple[int, str]:
    """Its CRC-32 and, if asked for, its SHA-256."""
    crc32, sha256 = 0, hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            crc32 = zlib.crc32(block, crc32)
            if with_sha256:
                sha256.update(block)
            on_progress(len(block))
    return crc32, sha256.hexdigest() if with_sha256 else ""
