"""What several test files need: the program as a process of its own, and the scalars that it logged."""

import os

# Before torch is imported, and for the programs that tests start: threads wait for each other longer than these small
# models compute, most of all beside other programs.
os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import logging
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROJECT = Path(__file__).parents[1]

# A job in the background of a script ignores Ctrl-C, and so would all programs that tests start and stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROGRAM = [sys.executable, str(PROJECT / "train_stub.py")]

# Steps of a few milliseconds: the ids of the words of the tale, vectors of 8 numbers.
SMALL = ["--data.tokenizer=words", "--model.embed_dim=8", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]

# With the tokenizer `words`, the id of a word is its position.
DIFFERENT_WORDS = " ".join(f"w{i:03}" for i in range(300))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all tests keep their tokens and their key, instead of the user's own directories."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("GPT2_LIT_CACHE", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))  # the key that runs are signed with
        yield folder


@pytest.fixture(scope="session", autouse=True)
def handlers_of_lightning() -> None:
    """A program that a test runs in this process lets records of Lightning through a handler of its own: not here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).__class__ = KeepsHandlers


class KeepsHandlers(logging.Logger):
    """Its handlers are not replaced."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "handlers":
            super().__setattr__(name, value)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A text of 300 different words."""
    path = tmp_path / "words.txt"
    path.write_text(DIFFERENT_WORDS)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Start train_stub.py with these arguments in an empty folder, its two outputs as one stream of text."""

    def start(*args: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*PROGRAM, *args],
            cwd=tmp_path,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def program(start: Callable[..., subprocess.Popen]) -> Callable[..., tuple[int, str]]:
    """Run train_stub.py to its end: its exit status, and all that it printed."""

    def program(*args: str, **env: str) -> tuple[int, str]:
        process = start(*args, **env)
        output, _ = process.communicate(timeout=200)
        return process.returncode, output

    return program


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., str]:
    """Run a command line in this process, in an empty directory: what it printed, and the exit message."""
    from gpt2_lit.cli.main import train  # not before pytest has installed the checks of shapes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_stub.py"])
    monkeypatch.setattr(sys, "path", sys.path[:])  # the program may add its directory

    def here(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train_stub.py", *args])
        message = ""
        try:
            train()
        except SystemExit as end:
            message = "" if end.code in (0, None, 2) else str(end.code)
        captured = capfd.readouterr()
        return captured.out + captured.err + message

    return here


@pytest.fixture
def in_terminal(tmp_path: Path) -> Callable[..., list[str]]:
    """Run train_stub.py in a terminal of 80 columns: the lines that are seen at its end."""
    if sys.platform == "win32":
        pytest.skip("it needs a terminal that a program can read")
    import fcntl
    import pty
    import termios

    def in_terminal(*args: str) -> list[str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "TQDM_MINITERS")}
        process = subprocess.Popen([*PROGRAM, *args], cwd=tmp_path, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(ours, 65536):
                written += part
        os.close(ours)
        assert process.wait(timeout=200) == 0
        return seen(written.decode())

    return in_terminal


def seen(written: str) -> list[str]:
    """What a terminal shows of a text with carriage returns, as progress bars write them."""
    lines = [""]
    for part in re.findall(r"\x1b\[[\d;]*m|\n|\r|[^\x1b\n\r]+|.", written):
        if part == "\n":
            lines.append("")
        elif part == "\r":
            lines[-1] = "\r" + lines[-1].lstrip("\r")  # the next characters replace these
        elif not part.startswith("\x1b"):
            line = lines[-1]
            lines[-1] = part + line[1 + len(part) :] if line.startswith("\r") else line + part
    return [line.strip("\r").rstrip() for line in lines]


class Disk:
    """Notes each fsync, rename and deletion with the name of the file, and fails at the one with a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.failing_at = 0
        fsync, replace, unlink = os.fsync, os.replace, os.unlink

        def noted_fsync(descriptor: int) -> None:
            self._note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def noted_replace(source: Path, target: Path) -> None:
            self._note("name", target)
            replace(source, target)

        def noted_unlink(path: Path, **options: int) -> None:
            if not str(path).endswith(".tmp"):
                self._note("delete", path)
            unlink(path, **options)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "replace", noted_replace)
        monkeypatch.setattr(os, "unlink", noted_unlink)

    def _note(self, event: str, path: str | os.PathLike) -> None:
        name = os.path.basename(path)
        self.events.append(f"{event} {re.split('[-.]', name)[0]}")  # tokens, documents, shard, sources, manifest, store
        if len(self.events) == self.failing_at:
            raise OSError(5, "Input/output error")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    if sys.platform != "linux":
        pytest.skip("it finds the names of files by /proc")
    return Disk(monkeypatch)


class Marker:
    """What a pickle from somebody else may hold: reading it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a run as TensorBoard reads them: for each tag its (step, value) pairs."""
    events = EventAccumulator(str(folder)).Reload()
    # Files of one second come in any order.
    return {
        tag: sorted(((event.step, event.value) for event in events.Scalars(tag)), key=lambda pair: pair[0])
        for tag in events.Tags()["scalars"]
    }
