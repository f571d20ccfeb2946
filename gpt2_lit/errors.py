"""what the user gave -> what is wrong with it: errors that the command line prints without a traceback.

Each is also the built-in error that Python code expects, so that ``except ValueError`` works as everywhere. Anything
else that reaches the command line is a bug or comes from other code, and keeps its traceback.
"""


class UserError(Exception):
    """The message names the setting, the rule, the value and the way out."""


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
