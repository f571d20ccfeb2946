import errno
import io
import logging
import sys
import threading
from typing import Any

import pytest

from gpt2_lit.cli.messages import errors_as_messages, prepare_console
from gpt2_lit.errors import FileError, InvalidValue, MissingFile, MissingPackage


@pytest.mark.parametrize("error", [InvalidValue, FileError, MissingFile, MissingPackage])
def test_an_error_of_the_users_ends_with_its_message(error: type[Exception]) -> None:
    with pytest.raises(SystemExit) as end, errors_as_messages():
        raise error("stride must be at least 1.")
    assert end.value.code == "error: stride must be at least 1."


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, IndexError, RuntimeError, OSError, ConnectionError])
def test_any_other_error_keeps_its_traceback(error: type[Exception]) -> None:
    with pytest.raises(error), errors_as_messages():
        raise error("a bug")


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "EPERM"])
def test_an_error_of_the_disk_ends_with_the_name_of_the_file(number: str) -> None:
    with pytest.raises(SystemExit) as end, errors_as_messages():
        raise OSError(getattr(errno, number), "it is full", "logs/last.ckpt")
    assert end.value.code == "error: logs/last.ckpt: it is full."


def test_an_error_of_the_disk_without_a_file_ends_with_its_reason() -> None:
    with pytest.raises(SystemExit) as end, errors_as_messages():
        raise OSError(errno.ENOSPC, "it is full")
    assert end.value.code == "error: it is full."


CLEARS = "\x1b[2J"  # a terminal is wiped


def test_no_message_or_log_record_writes_to_the_terminal(capsys: Any) -> None:
    with pytest.raises(SystemExit) as end, errors_as_messages(RuntimeError):
        raise RuntimeError(f"a{CLEARS}b")
    assert end.value.code == "error: a\\x1b[2Jb"
    with pytest.raises(SystemExit) as end, errors_as_messages():
        raise OSError(errno.ENOSPC, "it is full", f"a{CLEARS}b")
    assert end.value.code == "error: a\\x1b[2Jb: it is full."
    prepare_console()
    logging.getLogger("gpt2_lit.data").info("a%sb", CLEARS)
    assert capsys.readouterr().err == "a\\x1b[2Jb\n"


def test_a_message_is_put_into_the_words_of_the_command_line() -> None:
    with pytest.raises(SystemExit) as end, errors_as_messages(RuntimeError, start="\n", reword=str.upper):
        raise RuntimeError("here")
    assert end.value.code == "\nHERE"


def test_the_log_is_shown_in_plain_lines_once(capsys: Any) -> None:
    prepare_console()
    prepare_console()
    logging.getLogger("gpt2_lit.store.prepare").info("%d shards were encoded", 3)
    logging.getLogger("gpt2_lit.store.prepare").debug("not this")
    assert capsys.readouterr() == ("", "3 shards were encoded\n")


def test_what_a_console_cannot_show_is_escaped(monkeypatch: Any) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    prepare_console()
    print("caf\xe9 \u5c71 \udce9", flush=True)
    assert console.buffer.getvalue() == b"caf\xe9 \\u5c71 \\udce9\n"


def test_what_an_error_quotes_cannot_write_to_the_terminal_nor_fill_it() -> None:
    error = str(InvalidValue("the field \x1b[2J\x07\u202e of data.jsonl\nhas\t" + "k" * 200_000))
    assert error.startswith("the field \\x1b[2J\\x07\\u202e of data.jsonl\nhas\\tkkk")
    assert len(error) < 4_100
    assert "left out" in error


def test_a_full_disk_in_the_thread_of_tensorboard_prints_no_traceback(monkeypatch, capfd):
    def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(logging.getLogger("gpt2_lit"), "handlers", [])
    prepare_console()
    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError("of a network"), KeyError("a bug")):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
    printed = capfd.readouterr().err
    assert "No space" not in printed
    assert printed.count("Traceback") == 2
