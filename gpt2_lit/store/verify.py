"""files of a store -> what is damaged, by their checksums."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from gpt2_lit.store.manifest import MISSING, Damage, Manifest
from gpt2_lit.store.storage import LocalStorage


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
    path = Path(path).absolute()
    manifest = Manifest.load(path)
    damages = manifest.damages(LocalStorage(path))
    known = {damage.file for damage in damages}
    checksums = [(manifest.sources_file, manifest.sources_crc32, "")]
    for shard in manifest.shards:
        checksums.append((shard.tokens_file, shard.tokens_crc32, shard.made_from))
        checksums.append((shard.documents_file, shard.documents_crc32, shard.made_from))
        checksums.append((shard.receipt_file, zlib.crc32(shard.dumps()), shard.made_from))
    sizes = LocalStorage(path).list()
    num_bytes = sum(sizes.get(name, 0) for name, _, _ in checksums)
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc="verifying", delay=1, disable=not show_progress) as bar:
        for name, expected, made_from in checksums:
            file = str(path / name)
            if file not in known and (problem := _problem(file, expected, bar.update)):
                damages.append(Damage(file, problem, made_from))
    return damages


def _problem(file: str, expected: int, on_progress: Callable[[int], object]) -> str:
    """What is wrong with a file; empty if it has this checksum."""
    try:
        found = _crc32(file, on_progress)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == expected else f"is damaged: its CRC-32 is {found:08x}, not {expected:08x}"


def _crc32(file: str, on_progress: Callable[[int], object]) -> int:
    with open(file, "rb") as opened:
        checksum = 0
        while block := opened.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
            on_progress(len(block))
        return checksum
