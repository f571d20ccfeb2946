"""a file, here or elsewhere -> its bytes."""

import io
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_lit.errors import FileError, InvalidValue, MissingFile, NotPermitted
from gpt2_lit.text.web import content_stamp, look, open_url

SHIPPED_TEXT = Path(__file__).parents[1] / "assets" / "tale.txt"
SHIPPED_INSTRUCTIONS = SHIPPED_TEXT.with_name("instructions.json")

_BUFFER = 1 << 17  # bytes read at a time from a file elsewhere


class SourceFile(NamedTuple):
    """A file as it was when it was found."""

    path: str  # as the user named it: a local path or a URL
    size: int  # bytes, as stored; 0 where a server does not say
    stamp: str  # what changes when the content does: time of change in ns, ETag, ...
    serves_ranges: bool = True  # False: a server that sends a file from its start only


# Of those that fsspec knows, the ones that store files; others run commands, or read what this process holds.
_PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "file", "memory")

_PACKED = "gzip "  # in front of the stamp of a file that a web server sends packed


def open_file(file: SourceFile) -> io.BufferedReader:
    """The bytes of a file as they are stored; an error is the file system's own.

    Example:
        >>> tale = local_file(str(SHIPPED_TEXT))
        >>> with open_file(tale) as stream:
        ...     len(stream.read()) == tale.size
        True
    """
    if not is_url(file.path):
        return open(file.path, "rb")
    if is_http(file.path):
        stamp = file.stamp.removeprefix(_PACKED)
        return open_url(file.path, file.size, stamp, is_packed=stamp != file.stamp)
    filesystem, path = filesystem_of(file.path)
    return io.BufferedReader(filesystem.open(path, "rb"), _BUFFER)


_URL = re.compile(r"[\w+.:-]+://")


def is_url(name: str) -> bool:
    """Whether a name is that of a file elsewhere."""
    return _URL.match(name) is not None


def portable(path: str) -> str:
    """A path as it is sorted, in the same order on every system."""
    return path.replace(os.sep, "/")


def identity(path: str) -> str:
    """What is the same for all names of one file: through links, and on Windows in letters of either case."""
    return os.path.normcase(os.path.realpath(path))


def is_http(url: str) -> bool:
    """Whether a URL is a web server's, where * and ? are plain letters and directories are pages."""
    return url.startswith(("http://", "https://"))


def local_file(path: str) -> SourceFile:
    """A file of this machine.

    Raises:
        InvalidValue: If it is a pipe or a device.
        OSError: The file system's own.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidValue(
            f"data.source: {path} is a pipe or a device, which can be read only once. Write what it gives to a file."
        )
    return SourceFile(path, status.st_size, _time_of_change(status))


def _time_of_change(status: os.stat_result) -> str:
    """When the content changed, and when anything did: a file that replaces another may have kept its old time."""
    return f"{status.st_mtime_ns} {status.st_ctime_ns}"


def web_file(url: str) -> SourceFile:
    """A file of a web server; one that nothing tells from another is told by its content, if it is small."""
    page = look(url)
    stamp = page.stamp or content_stamp(url, page.is_packed)
    return SourceFile(url, page.size, (_PACKED if page.is_packed else "") + stamp, page.serves_ranges)


def remote_file(filesystem: Any, name: str, info: dict[str, Any]) -> SourceFile:
    """A file elsewhere, of what its file system says of it."""
    path = name if is_url(name) else filesystem.unstrip_protocol(name)
    return SourceFile(path, info.get("size") or 0, _stamp(filesystem, name, info))


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the file's name in it."""
    import fsspec

    protocol = re.split("::|://", url)[0].lower()
    if protocol not in _PROTOCOLS:
        raise InvalidValue(
            f"data.source: {url} cannot be read: {protocol} is none of {', '.join(_PROTOCOLS)}. Download it and give "
            "the file."
        )
    try:
        return fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one that takes a package
        raise InvalidValue(f"data.source: {url} cannot be read: {error}.") from None


def check_unchanged(file: SourceFile) -> None:
    """Raise a FileError if a local file is no longer the one that was found."""
    if is_url(file.path) or not os.path.exists(file.path):
        return
    now = os.stat(file.path)
    if (now.st_size, _time_of_change(now)) != (file.size, file.stamp):
        raise FileError(
            f"{file.path} changed while it was read: it had {file.size} bytes and has {now.st_size}. Start again when "
            "nothing writes to it."
        )


def unreadable(path: str, error: Exception) -> OSError:
    """What to raise where a file cannot be read, of what its file system raised."""
    kinds = (MissingFile, FileNotFoundError), (NotPermitted, PermissionError), (FileError, Exception)
    kind = next(kind for kind, builtin in kinds if isinstance(error, builtin))
    if not is_url(path):
        reason = getattr(error, "strerror", None) or error
        return kind(f"{path} cannot be read: {reason}. Check its permissions and its disk.")
    cause = error.__cause__ or getattr(error, "reason", error)
    status = getattr(error, "code", None)
    if status:
        kind = {404: MissingFile, 410: MissingFile, 401: NotPermitted, 403: NotPermitted}.get(status, FileError)
        reason = f"HTTP status {status} {cause}"
        if kind is NotPermitted:
            reason += ". If it takes a password or a token, give it in data.source: the config.yaml of a run keeps none"
    else:
        reason = f"{type(cause).__name__}: {cause}"
    return kind(f"{path} cannot be read: {reason.strip()}. Check the address, the network and the rights to read it.")


def _stamp(filesystem: Any, name: str, info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created"):
        if info.get(key):
            return str(info[key])
    return filesystem.ukey(name)
