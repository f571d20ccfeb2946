"""errors and log records -> lines that a person reads."""

import io
import logging
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from gpt2_lit.errors import DISK_ERRORS, UserError, printable

PACKAGE = Path(__file__).parents[1]


@contextmanager
def errors_as_messages(
    *others: type[Exception], start: str = "error: ", reword: Callable[[str], str] = str
) -> Iterator[None]:
    """End the program with a message where an error is for the user to mend; all others keep their traceback.

    Args:
        others: Classes beside UserError whose errors are for the user.
        start: Stands before the message.
        reword: Puts the message into the words of this command line.
    """
    try:
        yield
    except (UserError, *others) as error:
        sys.exit(f"{start}{reword(printable(str(error)))}")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        file = printable(f"{error.filename}: ") if error.filename else ""
        sys.exit(f"{start}{file}{error.strerror}.")


def program_name() -> str:
    """The program as it was called, for the commands that messages advise."""
    script = Path(sys.argv[0])
    if script.parent in (PACKAGE, PACKAGE / "cli"):
        return "python -m gpt2_lit"
    return f"python {shlex.quote(sys.argv[0])}" if script.suffix == ".py" else "gpt2-lit"


def prepare_console(level: int = logging.INFO, *others: str) -> None:
    """Show what the package logs, a plain line a record, on standard error, and escape what the console cannot show.

    Args:
        level: The least level of the package's records to show.
        others: Names of loggers whose records are shown likewise, from the level that they have.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = _AboveBars()
    handler.setFormatter(_Printable("%(message)s"))
    logger = logging.getLogger("gpt2_lit")
    logger.handlers = [handler]
    logger.setLevel(level)
    for name in others:
        logging.getLogger(name).handlers = [handler]
    threading.excepthook = _thread_error


def _thread_error(args: threading.ExceptHookArgs) -> None:
    """No traceback of TensorBoard's thread where a disk is full: it raises the same error at the next value."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in DISK_ERRORS):
        threading.__excepthook__(args)


class _AboveBars(logging.Handler):
    """Writes a record above the progress bars of tqdm, if there are any, which stay in one piece below it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        with tqdm.tqdm.external_write_mode(file=sys.stderr) if tqdm else nullcontext():
            print(self.format(record), file=sys.stderr, flush=True)


class _Printable(logging.Formatter):
    """A record may quote a file name, which can hold whatever a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
