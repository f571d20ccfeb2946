"""files of a store -> what is damaged, by their checksums."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

from gpt2_lit.store.manifest import MISSING, Damage, Manifest
from gpt2_lit.store.storage import LocalStorage


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
    damages = manifest.damages(LocalStorage(path))
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
            damages.append(Damage(file, MISSING, made_from))
        except OSError as error:
            damages.append(Damage(file, f"cannot be read ({error.strerror})", made_from))
        else:
            if found != expected:
                damages.append(Damage(file, f"is damaged: its CRC-32 is {found:08x}, not {expected:08x}", made_from))
    return damages


def _crc32(file: str, on_progress: Callable[[int], object]) -> int:
    with open(file, "rb") as opened:
        checksum = 0
        while block := opened.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
            on_progress(len(block))
        return checksum
