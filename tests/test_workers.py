import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gpt2_lit.store import workers
from gpt2_lit.store.plan import Recipe, ShardPlan, plan_shards
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.workers import Encoded, encode_in_processes, encode_in_threads, encode_shard, share_out
from gpt2_lit.text.sources import Source
from gpt2_lit.text.tokenizer import make_tokenizer


@pytest.fixture
def plans(tmp_path: Path) -> list[ShardPlan]:
    """A file in eight ranges."""
    (tmp_path / "text.txt").write_text("".join(f"word number {number}\n" for number in range(4000)))
    return plan_shards(Source.of(tmp_path / "text.txt").find_files(), Recipe(), 10_000)


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


class OneAtATime(ThreadPoolExecutor):
    """The least that an executor is: submit, and futures."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


EXECUTORS = {
    "one at a time": OneAtATime,
    "threads": lambda: ThreadPoolExecutor(3),
    "processes": lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn")),
}


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
def test_any_executor_makes_the_same_shards(plans, tmp_path, make):
    stores = [tmp_path / name for name in ("expected", "store")]
    for store in stores:
        store.mkdir()
    expected = [encode_shard(plan, LocalStorage(stores[0]), Recipe()) for plan in plans]
    told: list[tuple[ShardPlan, Encoded]] = []
    with make() as executor:
        work = partial(encode_shard, storage=LocalStorage(stores[1]), recipe=Recipe())
        made = share_out(plans, executor, work, lambda plan, encoded: told.append((plan, encoded)))
    assert made == expected
    assert sorted(told) == sorted(zip(plans, made, strict=True))
    assert files_of(stores[0]) == files_of(stores[1])


@pytest.mark.parametrize("encode", [encode_in_threads, encode_in_processes])
def test_all_progress_is_told(plans, tmp_path, encode):
    told = []
    made = encode(plans, LocalStorage(tmp_path), Recipe(), 2, lambda *progress: told.append(progress))
    assert np.sum(told, axis=0).tolist() == [
        (tmp_path / "text.txt").stat().st_size,
        sum(encoded.shard.num_tokens for encoded in made),
    ]


# A user's script, which is not guarded by ``if __name__ == "__main__"`` and has a tokenizer of its own.
SCRIPT = """
import pathlib, sys, time
from gpt2_lit.store.plan import Recipe, plan_shards
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.workers import encode_in_processes
from gpt2_lit.text.sources import Source
from gpt2_lit.text.tokenizer import make_tokenizer

class Letters:
    n_vocab, eot_token = 70_000, 69_999

    def encode(self, text):
        print("encoding")
        if "broken" in text:
            raise ValueError("a broken text")
        time.sleep(float(sys.argv[2]))
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

print("the script runs")
directory = pathlib.Path(sys.argv[1])
recipe = Recipe(tokenizer=make_tokenizer(Letters()))
plans = plan_shards(Source.of(directory / "texts").find_files(), recipe, 10)
with LocalStorage(directory / "store").lock():
    encode_in_processes(plans, LocalStorage(directory / "store"), recipe, 2, lambda *progress: print("progress"))
"""


def start_script(tmp_path: Path, seconds: float, first: str = "text 0...", **options) -> subprocess.Popen:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate([first, *(f"text {number}..." for number in range(1, 6))]):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_users_script_is_not_run_again_and_its_tokenizer_is_known(tmp_path):
    output, errors = start_script(tmp_path, 0).communicate(timeout=60)
    assert output.split("\n") == ["the script runs", *["progress"] * 6, ""], errors
    assert errors.count("encoding") == 6
    tokens = [np.fromfile(file, "<u4") for file in (tmp_path / "store").glob("tokens-*")]
    assert {"".join(map(chr, ids[:-1])) for ids in tokens} == {f"text {number}..." for number in range(6)}


def test_no_file_of_the_working_directory_is_imported(tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    for module in ("random", "json", "signal", "shutil", "multiprocessing", "numpy", "loky", "threading", "gpt2_lit"):
        (strange / f"{module}.py").write_text(f"print('imported'); open({str(strange / 'imported')!r}, 'w')")
    output, errors = start_script(tmp_path, 0, cwd=strange).communicate(timeout=60)
    assert output.count("progress") == 6, errors
    assert not (strange / "imported").exists()


def test_ctrl_c_stops_all_processes_at_once_and_leaves_nothing_half_done(tmp_path):
    process = start_script(tmp_path, 30, start_new_session=True)
    assert process.stderr
    while "encoding" not in process.stderr.readline():  # by a worker
        pass
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    assert errors.count("Traceback") == 1, errors
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock"}


def test_an_error_in_one_process_stops_the_others_at_once(tmp_path):
    began = time.monotonic()
    process = start_script(tmp_path, 30, first="broken")
    _, errors = process.communicate(timeout=25)
    assert time.monotonic() - began < 20
    assert "ValueError: a broken text" in errors
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock"}


def test_a_worker_that_dies_says_what_to_do(tmp_path):
    process = start_script(tmp_path, 30)
    assert process.stderr
    while "encoding" not in process.stderr.readline():
        pass
    workers = subprocess.check_output(["pgrep", "-f", "-P", str(process.pid), "popen_loky"], text=True).split()
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert "a process that tokenizes has died, possibly out of memory. What was finished is kept" in errors
    assert {file.name for file in (tmp_path / "store").iterdir()} == {".lock"}


def test_an_error_stops_the_threads_within_a_piece_of_text(tmp_path):
    class Broken:
        n_vocab, eot_token = 9, 8

        def __init__(self):
            self.num_calls = 0

        def encode(self, text):
            self.num_calls += 1
            time.sleep(0.01)
            if "broken" in text:
                raise ValueError("broken")
            return [1]

        def decode(self, ids):
            return ""

    (tmp_path / "broken.txt").write_text("broken")
    (tmp_path / "lines.jsonl").write_text('{"text": "whole"}\n' * 10_000)
    broken = Broken()
    recipe = Recipe(tokenizer=make_tokenizer(broken))
    plans = plan_shards(Source.of([tmp_path / "broken.txt", tmp_path / "lines.jsonl"]).find_files(), recipe, 10)
    with pytest.raises(ValueError, match="broken"):
        encode_in_threads(plans, LocalStorage(tmp_path), recipe, 2, lambda *progress: None)
    assert broken.num_calls < 20
    assert not list(tmp_path.glob("*.tmp"))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


def test_a_text_that_must_not_be_cut_is_encoded_whole(tmp_path):
    class Lengths:
        n_vocab, eot_token, fingerprint = 1 << 20, (1 << 20) - 1, "lengths"

        def encode(self, text):
            return [len(text)]

        def decode(self, ids):
            return ""

    text = "many words " * 50_000
    (tmp_path / "text.txt").write_text(text)
    recipe = Recipe(tokenizer=make_tokenizer(Lengths()))
    [plan] = plan_shards(Source.of(tmp_path / "text.txt").find_files(), recipe, 1000)
    shard = encode_shard(plan, LocalStorage(tmp_path), recipe).shard
    assert np.fromfile(tmp_path / shard.tokens_file, "<u4").tolist() == [len(text), (1 << 20) - 1]


def test_ctrl_c_while_processes_start_counts_once_they_have(monkeypatch, tmp_path):
    pool, started = workers._process_pool, []

    def interrupted(num_processes: int) -> Executor:
        signal.raise_signal(signal.SIGINT)
        started.append(pool(num_processes))
        return started[0]

    monkeypatch.setattr(workers, "_process_pool", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_in_processes([], LocalStorage(tmp_path), Recipe(), 1, print)
    with pytest.raises(RuntimeError):  # it is shut down
        started[0].submit(int)
