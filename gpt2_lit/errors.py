"""what the user gave -> what is wrong with it: errors that the command line prints without a traceback.

Each is also the built-in error that Python code expects, so that ``except ValueError`` works as everywhere. Anything
else that reaches the command line is a bug or comes from other code, and keeps its traceback.
"""

import errno
import re
from urllib.parse import unquote

_SECRET = re.compile(r"(?i)token|key|sig|secret|passw|pwd|credential|auth|session")

# What a disk says. Any other OSError is a bug, or comes from other code.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


def without_secrets(text: str) -> str:
    """The same text, with no password or token of a URL in it, so that it may be shown and kept.

    Example:
        >>> without_secrets("s3://id:secret@bucket/a.txt, https://host/a?page=2&%74oken=abc#access_token=d")
        's3://bucket/a.txt, https://host/a?page=2&%74oken=...#access_token=...'
    """
    # Not of file://, whose names may have an @; and also within the parameters of another URL.
    text = re.sub(
        r"(?i)\b(?!file:)([a-z][a-z\d+.-]{0,20}(?:://|%3a%2f%2f))(?:(?!%2f)[^/\s])*(?:@|%40)(?=[^/])", r"\1", text
    )
    return re.sub(
        r"((?:[?&#]|%3f|%26)([\w.%-]{1,100}?)(?:=|%3d))((?:(?!%26|%3f[\w.-]{1,100}?(?:=|%3d))[^&#\s,'\"])*)",
        _hidden,
        text,
        flags=re.IGNORECASE,
    )


def _hidden(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}..." if _SECRET.search(unquote(parameter[2])) else parameter[0]


def printable(text: str, most: int = 4000) -> str:
    r"""The same text for a terminal or a log: control characters escaped but for line ends, the middle cut if long.

    Example:
        >>> print(printable("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... ({len(text) - most:,} characters left out) ... {text[-(most // 2) :]}"
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def shown(text: object) -> str:
    """How a name or a message from outside is logged or printed: on one line, without secrets."""
    return printable(without_secrets(str(text)), 1000).replace("\n", "\\n")


class UserError(Exception):
    """The message names the setting, the rule, the value and the way out."""

    def __str__(self) -> str:
        return printable(without_secrets(super().__str__()))


class InvalidValue(UserError, ValueError):
    """A setting or a file has a value that does not work."""


class InvalidType(UserError, TypeError):
    """A value is of a type that does not work."""


class InvalidIndex(UserError, IndexError):
    """A token id or position is out of its range."""


class FileError(UserError, OSError):
    """A file or a disk cannot be read or written."""


class MissingFile(UserError, FileNotFoundError):
    """There is no such file or directory."""


class NotPermitted(UserError, PermissionError):
    """A file may not be read or written."""


class MissingPackage(UserError, ImportError):
    """An optional package is not installed."""


class WorkerDied(UserError, RuntimeError):
    """A process of ours was killed from outside, by the system if memory ran out."""
