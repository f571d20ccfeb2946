"""what the user gave -> what is wrong with it: errors that the command line prints without a traceback.

Each is also the built-in error that Python code expects, so that ``except ValueError`` works as everywhere. Anything
else that reaches the command line is a bug or comes from other code, and keeps its traceback.
"""

import errno
import operator
import re
from typing import Any
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


# Settings from Python, where they may be of any type: numbers of numpy, strings of a form.


def whole_number(
    name: str, value: Any, least: int = 1, most: int | None = None, unit: str = "", of: str = "data."
) -> int:
    """A setting, which may be of any integer type, as an int; ``of`` is what stands before its name elsewhere."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidType(f"{name} must be a whole number, got {value!r}. Set {of}{name}.") from None
    if number < least or (most is not None and number > most):
        rule = f"at least {least}{unit}" if most is None else f"from {least} to {most}"
        raise InvalidValue(f"{name} must be {rule}, got {number}. Set {of}{name}.")
    return number


def real_number(name: str, value: Any, of: str = "data.") -> float:
    """A setting, which may be of any type of numbers, as a float."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise InvalidType(f"{name} must be a number, got {value!r}. Set {of}{name}.") from None


def true_or_false(name: str, value: Any, of: str = "data.") -> bool:
    """A setting as a bool; not a string, as "false" would be true."""
    is_number = isinstance(value, int) or "int" in type(value).__name__
    if (is_number and value in (0, 1)) or str(getattr(value, "dtype", "")) == "bool":
        return bool(value)
    raise InvalidType(f"{name} must be true or false, got {value!r}. Set {of}{name}.")


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
