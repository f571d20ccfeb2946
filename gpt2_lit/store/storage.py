"""bytes -> named files, each whole or not at all: five verbs, and how the local file system does them."""

import errno
import io
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from filelock import BaseFileLock, FileLock, Timeout

from gpt2_lit.errors import DISK_ERRORS, FileError, InvalidType, InvalidValue
from gpt2_lit.text.files import is_url

_LOG = getLogger(__name__)
_LOCK = ".lock"
LAST_USE = ".last_use"  # of the cache
_HOST = re.sub(r"[^\w-]", "-", platform.node()) or "host"
# NAME.HOST.PID.RANDOM.tmp: of one host's process there may be several, and two hosts may have processes of one number.
_ASIDE = re.compile(r".+\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_ABANDONED = 24 * 3600  # seconds after its last change for which a file of another host is left alone
_IN_USE_DELAYS = (0.05, 0.2, 1, 2) if os.name == "nt" else ()  # seconds
_SMALL_FILE = 1 << 20  # bytes that are written without asking what is left
_LEFT_BYTES, _LEFT_SHARE = 1 << 30, 0.05  # of a disk: the smaller of both stays free
_OTHER_DIRECTORY = "Or give another directory: data.cache_dir of a training, STORE of gpt2-lit prepare."


class StoreError(InvalidValue):
    """A token store that cannot be used: missing, damaged, of another version, or in the way of other files."""


@runtime_checkable
class Storage(Protocol):
    """Where the files of one store lie. It is pickled to the processes that encode, so it must not hold secrets."""

    def list(self) -> dict[str, int]:
        """The size of each file, in bytes; empty if there is nothing yet. Files that are being put are left out."""
        ...

    def read(self, name: str) -> bytes:
        """All of a file; a FileNotFoundError if there is none."""
        ...

    def put(self, name: str, *, commit: bool = False) -> AbstractContextManager[BinaryIO]:
        """Give a file to write to, which is there under its name after the block: whole, or after an error not at all.

        Its bytes survive a power failure from then on. With ``commit`` so does its name, which comes after the names
        of all files that were put before.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove a file; nothing if there is none."""
        ...

    def lock(self, *, wait: bool = True) -> AbstractContextManager[None]:
        """Be the only one to work on the store. The lock of a process that was killed is free.

        Raises:
            BlockingIOError: If another holds it and ``wait`` is False.
        """
        ...


@dataclass(frozen=True)
class LocalStorage:
    """A directory, made by the first lock or put."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def list(self) -> dict[str, int]:
        sizes = {}
        try:
            for entry in os.scandir(self.path):
                if entry.name not in (_LOCK, LAST_USE) and not _ASIDE.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # deleted in this moment
                        sizes[entry.name] = entry.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            if self.path.exists():
                raise StoreError(f"{self} is a file. Give a directory for the tokens.") from None
        return sizes

    def read(self, name: str) -> bytes:
        with open_to_read(self.path / name) as file:
            return file.read()

    @contextmanager
    def put(self, name: str, *, commit: bool = False) -> Iterator[BinaryIO]:
        with self._explained():
            if commit:
                sync_directory(self.path)
            with write_aside(self.path / name) as file:
                yield file
            if commit:
                sync_directory(self.path)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._explained():
            (self.path / name).unlink()

    @contextmanager
    def lock(self, *, wait: bool = True) -> Iterator[None]:
        lock = FileLock(self.path / _LOCK)
        with self._explained():
            while not lock.is_locked:
                self.make_directory()
                with suppress(FileNotFoundError):  # it was removed from a cache while this process waited
                    self._acquire(lock, wait)
        try:
            self._delete_abandoned()
            yield
        finally:
            self._delete_abandoned()
            lock.release()

    def make_directory(self, mode: int = 0o777) -> None:
        """Make it unless it is there; ``mode`` says for whom, within the umask."""
        try:
            self.path.mkdir(mode, parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{self} cannot be made ({error.strerror}). {_OTHER_DIRECTORY}") from None

    def _acquire(self, lock: BaseFileLock, wait: bool) -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise BlockingIOError(f"{self} is in use by another process") from None
            _LOG.info("%s is being prepared by another process: waiting for it.", self)
            lock.acquire()

    def check_room(self, num_bytes: int) -> None:
        """Find out before hours of work that a disk is too small."""
        free = shutil.disk_usage(self.path).free
        if num_bytes > free:
            raise FileError(
                f"the tokens take {num_bytes / 1e9:,.1f} GB or more, and the disk of {self} has {free / 1e9:,.1f} GB "
                f"left. Make room. {_OTHER_DIRECTORY}"
            )

    def _delete_abandoned(self) -> None:
        """Delete what killed processes left half done; never a file that somebody may still be writing to."""
        with suppress(OSError):  # gone already, or in use, where that forbids it: next time, then
            for entry in os.scandir(self.path):
                if (aside := _ASIDE.fullmatch(entry.name)) and not _is_being_written(aside, entry.stat().st_mtime):
                    os.unlink(entry)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_ERRORS:  # the sources have errors of their own, which name the file
                raise
            raise FileError(
                f"{self} cannot be written: {error.strerror}. What was finished is kept: once that is mended, the "
                f"same command resumes. {_OTHER_DIRECTORY}"
            ) from None


def open_to_read(path: str | Path) -> BinaryIO:
    """A file's bytes; of a pipe, which would wait for somebody to write, none."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def leads_out(path: str) -> bool:
    """Whether a file is a link to one in another directory."""
    directory = os.path.dirname(path)
    return os.path.islink(path) and os.path.dirname(os.path.realpath(path)) != os.path.realpath(directory)


def store_directory(name: str | os.PathLike) -> Path:
    """The directory of a store, from what a user gave."""
    path = os.fspath(name) if isinstance(name, str | os.PathLike) else name
    if not isinstance(path, str) or not path:
        raise InvalidType(f"a store is named by the path of its directory, got {name!r}.")
    if is_url(path):
        raise InvalidValue(f"a store is a directory of this machine, got {path}. Prepare it here, and copy it there.")
    return Path(os.path.expanduser(path)).absolute()


@contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that replaces ``path`` after the block, or goes if there was an error."""
    aside = path_aside(path)
    with put_in_place(aside, path), io.BufferedWriter(_NewFile(aside, "x")) as file:  # x: no file or link that is there
        yield file


class _NewFile(io.FileIO):
    """A file that does not take the last room of a disk, which others need: checkpoints, the system."""

    _unchecked = 0  # bytes since the disk was looked at

    def write(self, data: Any, /) -> int:
        self._unchecked += memoryview(data).nbytes
        if self._unchecked > _SMALL_FILE:
            self._unchecked = 0
            disk = shutil.disk_usage(Path(os.fsdecode(self.name)).parent)
            if disk.free < min(_LEFT_BYTES, _LEFT_SHARE * disk.total):
                raise OSError(errno.ENOSPC, f"its disk has {disk.free / 1e9:,.2f} GB left, which are kept for others")
        return super().write(data)


def path_aside(path: Path) -> Path:
    """Where to write what is to replace ``path``: a name beside it that nobody can foresee."""
    return path.with_name(f"{path.name}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextmanager
def put_in_place(aside: Path, path: Path) -> Iterator[None]:
    """Rename what the block writes to ``aside``, once its bytes are on the disk; on an error it goes.

    It may also be a directory, such as a checkpoint that a strategy has sharded.
    """
    former = path_aside(path)
    try:
        yield
        _sync(aside)
        if path.exists() and (path.is_dir() or aside.is_dir()):  # which no rename replaces
            _rename(path, former)
        _rename(aside, path)
    except BaseException:
        if former.exists():
            _rename(former, path)
        _remove(aside)
        raise
    with suppress(OSError):  # in use, where that forbids it
        _remove(former)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Let the bytes of a file, or of all files below a directory, reach the disk."""
    if not path.is_dir():
        with open(path, "rb+") as file:
            _flush(file.fileno())
        return
    for entry in path.iterdir():
        _sync(entry)
    sync_directory(path)


def _flush(descriptor: int) -> None:
    """Let bytes reach the disk: on macOS fsync alone leaves them in the disk's own cache."""
    os.fsync(descriptor)
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # which disks of a network do not have
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)


def _rename(path: Path, target: Path) -> None:
    """Put a file in the place of another, which on Windows fails while somebody, such as a virus scanner, reads it."""
    for delay in _IN_USE_DELAYS:
        with suppress(PermissionError):
            return os.replace(path, target)
        time.sleep(delay)
    return os.replace(path, target)


def sync_directory(path: Path) -> None:
    """Let the names of the files in a directory reach the disk."""
    if os.name == "posix":  # elsewhere a directory cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _flush(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # as some network file systems say that they have none
                raise
        finally:
            os.close(descriptor)


def _is_being_written(aside: re.Match[str], changed: float) -> bool:
    if aside["host"] == _HOST and os.name == "posix":
        try:
            os.kill(int(aside["pid"]), 0)
            status = Path("/proc", aside["pid"], "stat").read_text(encoding="utf-8")  # "PID (NAME) STATE ...", on Linux
            if status.rpartition(")")[2].split()[0] == "Z":  # dead, and its parent has not asked how it ended
                return False
        except ProcessLookupError:
            return False
        except OSError:  # of another user, or of another system
            pass
    return time.time() < changed + _ABANDONED
