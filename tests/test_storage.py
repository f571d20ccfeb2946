import errno
import logging
import os
import platform
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gpt2_lit.errors import FileError
from gpt2_lit.store import storage as storage_module
from gpt2_lit.store.storage import LocalStorage, Storage, StoreError, path_aside, put_in_place, write_aside


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    (tmp_path / "store").mkdir()
    return LocalStorage(tmp_path / "store")


def put(storage: Storage, name: str, content: bytes) -> None:
    with storage.put(name) as file:
        file.write(content)


def test_files_are_put_listed_read_and_deleted(storage):
    assert isinstance(storage, Storage)
    assert storage.list() == {}
    put(storage, "a", b"123")
    put(storage, "b", b"")
    put(storage, "a", b"12345")
    assert storage.list() == {"a": 5, "b": 0}
    assert storage.read("a") == b"12345"
    storage.delete("a")
    storage.delete("a")
    assert storage.list() == {"b": 0}
    with pytest.raises(FileNotFoundError):
        storage.read("a")


def test_a_file_is_seen_when_it_is_whole_and_not_before(storage):
    put(storage, "a", b"before")
    with storage.put("a") as file:
        file.write(b"after")
        file.flush()
        assert storage.list() == {"a": 6}
        assert storage.read("a") == b"before"
    assert storage.read("a") == b"after"
    with pytest.raises(TypeError), storage.put("a") as file:
        file.write(b"never", 5)
    assert storage.read("a") == b"after"
    assert os.listdir(storage.path) == ["a"]


def test_a_place_that_is_not_there_is_empty_and_a_file_is_refused(tmp_path):
    assert LocalStorage(tmp_path / "nowhere" / "store").list() == {}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"file is a file. Give a directory for the tokens"):
        LocalStorage(tmp_path / "file").list()
    with (
        pytest.raises(FileError, match=r"cannot be made \(Not a directory\). Or give another directory"),
        LocalStorage(tmp_path / "file" / "store").lock(),
    ):
        pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), write_aside(path) as file:
        file.write(b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO])
def test_an_error_of_the_disk_says_what_to_do(storage, code):
    with pytest.raises(FileError, match=r"cannot be written: .* resumes. Or give another directory"), storage.put("a"):
        raise OSError(code, os.strerror(code))
    with pytest.raises(OSError, match="of a source"), storage.put("a"):
        raise OSError("of a source")


def test_a_file_system_that_syncs_no_directories_is_written_to(storage, monkeypatch):
    fsync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", of_files_alone)
    with storage.put("a", commit=True) as file:
        file.write(b"1")
    assert storage.read("a") == b"1"


def test_no_link_is_followed_to_a_file_of_somebody_else(tmp_path, monkeypatch):
    (tmp_path / "theirs").write_text("theirs")
    monkeypatch.setattr("secrets.token_hex", lambda num_bytes: "0" * 8)
    path_aside(tmp_path / "file").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError), write_aside(tmp_path / "file") as file:
        file.write(b"mine")
    assert (tmp_path / "theirs").read_text() == "theirs"


DIRECTORY = ["sync now", "sync sharded", "name sharded", "name sharded"]


def test_a_directory_written_aside_replaces_the_former_one(disk, tmp_path):
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "former").touch()
    aside = path_aside(tmp_path / "sharded")
    with put_in_place(aside, tmp_path / "sharded"):
        aside.mkdir()
        (aside / "now").touch()
    assert [path.name for path in (tmp_path / "sharded").iterdir()] == ["now"]
    assert disk.events == [*DIRECTORY, "delete former"]
    aside.mkdir()
    with pytest.raises(TypeError), put_in_place(aside, tmp_path / "sharded"):
        raise TypeError
    assert [path.name for path in tmp_path.iterdir()] == ["sharded"]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_error_at_any_moment_leaves_the_former_directory(disk, tmp_path, number):
    path = tmp_path / "sharded"
    path.mkdir()
    (path / "former").touch()
    aside = path_aside(path)
    aside.mkdir()
    (aside / "now").touch()
    disk.failing_at = number
    with pytest.raises(OSError, match="Input/output"), put_in_place(aside, path):
        pass
    assert disk.events[:number] == DIRECTORY[:number]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["sharded", "sharded/former"]


@pytest.mark.parametrize(("is_directory", "was_directory"), [(True, False), (False, True)])
def test_a_directory_replaces_a_file_and_a_file_a_directory(tmp_path, is_directory, was_directory):
    path, aside = tmp_path / "last.ckpt", tmp_path / "aside"
    path.mkdir() if was_directory else path.touch()
    with put_in_place(aside, path):
        aside.mkdir() if is_directory else aside.touch()
    assert path.is_dir() == is_directory
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_two_files_of_one_name_and_process_do_not_meet(storage):
    with storage.put("a") as first, storage.put("a") as second:
        first.write(b"first")
        second.write(b"second")
    assert storage.read("a") == b"first"
    host = platform.node().replace(".", "-")
    with storage.put("a"):
        [aside] = [name for name in os.listdir(storage.path) if name != "a"]
    assert aside.startswith(f"a.{host}.{os.getpid()}.")


ENDED = """
import os, sys
from pathlib import Path
from gpt2_lit.store.storage import LocalStorage
with LocalStorage(Path(sys.argv[1])).put("killed") as file:
    file.write(b"half")
    file.flush()
    os._exit(0)
"""


def test_what_killed_processes_left_goes_and_what_others_write_stays(storage):
    subprocess.run([sys.executable, "-c", ENDED, str(storage.path)], check=True)
    [killed] = os.listdir(storage.path)
    other_host = killed.replace(storage_module._HOST, "another-host")
    others = ["x.tmp", "tokens.bin.tmp", killed + ".bak"]
    for name in (other_host, *others):
        (storage.path / name).write_text("mine")
    long_ago = time.time() - 2 * 24 * 3600
    abandoned = other_host.replace("killed", "abandoned")
    (storage.path / abandoned).write_text("half")
    os.utime(storage.path / abandoned, (long_ago, long_ago))
    with storage.put("running") as file:
        file.write(b"more")
        with storage.lock():
            names = set(os.listdir(storage.path))
    assert {name for name in names if not name.startswith("running.")} == {other_host, *others, ".lock"}
    assert storage.read("running") == b"more"
    assert storage.list().keys() == {"running", *others}


def test_a_lock_is_held_by_one_and_the_others_wait(storage, caplog):
    caplog.set_level(logging.INFO)
    order = []

    def wait() -> None:
        with LocalStorage(storage.path).lock():
            order.append("the other")

    with storage.lock():
        thread = threading.Thread(target=wait)
        thread.start()
        with pytest.raises(BlockingIOError, match="in use"), LocalStorage(storage.path).lock(wait=False):
            pass
        time.sleep(0.2)
        order.append("the first")
    thread.join()
    assert order == ["the first", "the other"]
    assert "is being prepared by another process: waiting for it" in caplog.text


def test_a_directory_that_goes_while_one_waits_is_made_again(storage):
    def wait() -> None:
        with LocalStorage(storage.path).lock():
            put(storage, "a", b"1")

    with storage.lock():
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        os.unlink(storage.path / ".lock")
        os.rmdir(storage.path)
    thread.join()
    assert storage.list() == {"a": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc to tell it")
def test_what_a_process_left_that_nobody_has_waited_for_is_deleted(tmp_path):
    storage, code = LocalStorage(tmp_path), "import sys, os, signal; from gpt2_lit.store.storage import write_aside\n"
    code += "with write_aside(__import__('pathlib').Path(sys.argv[1]) / 'a'): os.kill(os.getpid(), signal.SIGKILL)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still among the processes
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    with storage.lock():
        assert not list(tmp_path.glob("*.tmp"))
    assert process.wait() == -signal.SIGKILL


def test_on_macos_bytes_leave_the_cache_of_the_disk_too(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    asked = []
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: asked.append(command))
    with write_aside(tmp_path / "file") as file:
        file.write(b"text")
    assert asked == [51]


def test_a_file_that_somebody_reads_where_that_forbids_it_is_replaced_once_they_have(tmp_path, monkeypatch):
    replace, tries = os.replace, []

    def in_use_twice(*paths: Path) -> None:
        tries.append(paths)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "in use by another process")
        replace(*paths)

    monkeypatch.setattr("os.replace", in_use_twice)
    with pytest.raises(PermissionError), write_aside(tmp_path / "file") as file:
        file.write(b"at once, elsewhere")
    tries.clear()
    monkeypatch.setattr(storage_module, "_IN_USE_DELAYS", (0.01, 0.01))
    with write_aside(tmp_path / "file") as file:
        file.write(b"text")
    assert (len(tries), (tmp_path / "file").read_bytes()) == (3, b"text")
