"""a file, here or elsewhere -> its bytes."""

import io
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_lit.errors import FileError, InvalidValue, MissingFile, NotPermitted

SHIPPED_TEXT = Path(__file__).parents[1] / "assets" / "tale.txt"

_BUFFER = 1 << 17  # bytes read at a time from a file elsewhere


class SourceFile(NamedTuple):
    """A file as it was when it was found."""

    path: str  # as the user named it: a local path or a URL
    size: int  # bytes, as stored; 0 where a server does not say
    stamp: str  # what changes when the content does: time of change in ns, ETag, ...
    serves_ranges: bool = True  # False: a server that sends a file from its start only


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
    filesystem, path = filesystem_of(file.path)
    options = {} if file.serves_ranges else {"block_size": 0}  # fsspec's sign for: as one stream
    return io.BufferedReader(filesystem.open(path, "rb", **options), _BUFFER)


def is_url(name: str) -> bool:
    """Whether a name is that of a file elsewhere."""
    return re.match(r"[\w+.:-]+://", name) is not None


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
    return SourceFile(path, status.st_size, str(status.st_mtime_ns))


def remote_file(filesystem: Any, name: str, info: dict[str, Any]) -> SourceFile:
    """A file elsewhere, of what its file system says of it."""
    serves_ranges = not is_http(name) or _serves_ranges(filesystem, name, info.get("size"))
    path = name if is_url(name) else filesystem.unstrip_protocol(name)
    return SourceFile(path, info.get("size") or 0, _stamp(filesystem, name, info), serves_ranges)


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the file's name in it."""
    import fsspec

    options = {}
    if is_http(url):
        import aiohttp

        # The bytes as they are stored, so that sizes and ranges mean them; proxies of the environment; no limit to the
        # time of a whole file (aiohttp's is five minutes), but to that of silence.
        options["client_kwargs"] = {
            "headers": {"Accept-Encoding": "identity"},
            "auto_decompress": False,
            "trust_env": True,
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=300),
        }
    try:
        return fsspec.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one that takes a package
        raise InvalidValue(f"data.source: {url} cannot be read: {error}.") from None


def check_unchanged(file: SourceFile) -> None:
    """Raise a FileError if a local file is no longer the one that was found."""
    if is_url(file.path) or not os.path.exists(file.path):
        return
    now = os.stat(file.path)
    if (now.st_size, str(now.st_mtime_ns)) != (file.size, file.stamp):
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
    cause = error.__cause__ or error  # fsspec's own for HTTP is a FileNotFoundError, whatever happened
    status = getattr(cause, "status", None)
    reason = f"HTTP status {status} {getattr(cause, 'message', '')}" if status else f"{type(cause).__name__}: {cause}"
    return kind(f"{path} cannot be read: {reason.strip()}. Check the address, the network and the rights to read it.")


def _stamp(filesystem: Any, name: str, info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created"):
        if info.get(key):
            return str(info[key])
    return filesystem.ukey(name)


def _serves_ranges(filesystem: Any, path: str, size: int | None) -> bool:
    """Whether an HTTP server answers with a part of a file, found out by its last byte."""
    if not size:
        return False
    try:
        with filesystem.open(path, block_size=1, cache_type="none") as stream:
            stream.seek(size - 1)
            return len(stream.read(1)) == 1
    except ValueError:  # fsspec's, at an answer that is no part
        return False
