"""a directory of the cache -> who used it last, and when: one that a process uses is not deleted."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpt2_lit.store.manifest import MANIFEST
from gpt2_lit.store.storage import LAST_USE, LocalStorage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_HELD: dict[Path, int] = {}  # open files, which the system closes when the process ends, however it does
_DAY = 24 * 3600  # seconds that a directory counts as used where no lock tells


class LastUse(NamedTuple):
    """When a directory was used last, in seconds since 1970, and the note that was left."""

    time: float
    note: str


def hold(directory: Path, note: str) -> None:
    """Keep a directory from being removed until this process ends."""
    file = directory / LAST_USE
    with suppress(OSError):  # a cache may be read-only
        # Not through a link, which somebody may have put there to have another file of the user's overwritten.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(file, flags, 0o666), "w", encoding="utf-8", errors="surrogateescape") as opened:
            opened.write(note)
    with suppress(OSError):  # not every file system has locks
        if fcntl and directory not in _HELD:
            _HELD[directory] = os.open(file, os.O_RDONLY)
            fcntl.flock(_HELD[directory], fcntl.LOCK_SH | fcntl.LOCK_NB)


def last_use(directory: Path) -> LastUse | None:
    """None if it was never held: then it is none of the cache's."""
    with suppress(OSError):
        file = directory / LAST_USE
        return LastUse(file.stat().st_mtime, file.read_text(encoding="utf-8", errors="surrogateescape"))
    return None


def remove(directory: Path) -> bool:
    """Delete a directory, unless a process holds it or works on it; returns whether it is gone."""
    storage = LocalStorage(directory)
    with suppress(OSError), storage.lock(wait=False), open(directory / LAST_USE, "rb") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif time.time() - os.fstat(file.fileno()).st_mtime < _DAY:
            return False
        storage.delete(MANIFEST)  # first: what is left is no store
        shutil.rmtree(directory)
        return True
    return False
