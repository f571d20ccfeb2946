"""shards that are planned -> shards that are finished: encoded by threads, processes or any executor."""

import os
import pickle
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from multiprocessing import resource_tracker
from typing import NamedTuple

import cloudpickle
import numpy as np

from gpt2_lit.errors import InvalidValue, UserError, WorkerDied
from gpt2_lit.store.manifest import Shard, token_dtype
from gpt2_lit.store.plan import Recipe, ShardPlan
from gpt2_lit.store.storage import Storage
from gpt2_lit.store.store_writer import ShardWriter, StoreWriter
from gpt2_lit.text.readers import Piece, read_pieces, whole_documents
from gpt2_lit.text.tokenizer import Tokenizer

Progress = Callable[[int, int], object]  # told the bytes and tokens since the last call


class Encoded(NamedTuple):
    """What :func:`encode_shard` did."""

    shard: Shard
    num_ends_kept: int  # times that the texts have the tokenizer's end of text in them, which stays text


def encode_shard(
    plan: ShardPlan, storage: Storage, recipe: Recipe, on_progress: Progress = lambda num_bytes, num_tokens: None
) -> Encoded:
    """Make one shard, whole or not at all. It depends on the plan alone, so any machine may do it, and twice."""
    tokenizer, num_ends_kept = recipe.tokenizer, 0
    shard = StoreWriter(storage).put_shard(plan.key, plan.made_from, end_of_text(tokenizer), recipe.sha256)
    with shard as writer:
        for part in plan.parts:
            pieces = read_pieces(part.file, recipe.options, part.start, part.stop, tokenizer.cut_before)
            num_ends_kept += write_tokens(pieces, tokenizer, writer, str(part), on_progress)
    assert writer.shard, "it is finished after the block"
    return Encoded(writer.shard, num_ends_kept)


def write_tokens(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    writer: ShardWriter,
    source: str,
    on_progress: Progress = lambda num_bytes, num_tokens: None,
) -> int:
    """Encode documents into a shard; returns how often they have the end of text in them, which stays text."""
    num_ends_kept, end_of_text_name = 0, tokenizer.end_of_text_name
    for text, ends_document in pieces if tokenizer.cut_before else whole_documents(pieces):
        try:
            ids = tokenizer.encode_to_array(text)
        except UserError as error:
            raise InvalidValue(f"{source}: {error}") from None
        num_ends_kept += text.count(end_of_text_name) if end_of_text_name else 0
        num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        writer.write(ids, num_bytes)
        if ends_document:
            writer.end_document()
        on_progress(num_bytes, len(ids) + ends_document)
    return num_ends_kept


def end_of_text(tokenizer: Tokenizer) -> np.ndarray:
    """The id after each document, in the type of a store's ids; shape (1,)."""
    return np.array([tokenizer.end_of_text]).astype(token_dtype(tokenizer.vocab_size))


def share_out(
    plans: Sequence[ShardPlan],
    executor: Executor,
    encode: Callable[[ShardPlan], Encoded],
    on_shard: Callable[[ShardPlan, Encoded], object] = lambda plan, encoded: None,
) -> list[Encoded]:
    """Have any executor make the shards, in any order, by :func:`encode_shard` with its other arguments.

    At the first error it is for the executor's owner to shut it down.
    """
    futures = {executor.submit(encode, plan): plan for plan in plans}
    for future in as_completed(futures):
        on_shard(futures[future], future.result())
    return [future.result() for future in futures]


def encode_in_threads(
    plans: Sequence[ShardPlan], storage: Storage, recipe: Recipe, num_threads: int, on_progress: Progress
) -> list[Encoded]:
    """Make shards in this process. An error or Ctrl-C stops all threads within a piece of text."""
    stopped = threading.Event()

    def progress(num_bytes: int, num_tokens: int) -> None:
        if stopped.is_set():
            raise CancelledError
        on_progress(num_bytes, num_tokens)

    executor = ThreadPoolExecutor(num_threads)
    try:
        return share_out(plans, executor, partial(encode_shard, storage=storage, recipe=recipe, on_progress=progress))
    finally:
        stopped.set()
        executor.shutdown(cancel_futures=True)


def encode_in_processes(
    plans: Sequence[ShardPlan], storage: Storage, recipe: Recipe, num_processes: int, on_progress: Progress
) -> list[Encoded]:
    """Make shards in other processes, which do not run the user's script again and are killed on an error or Ctrl-C."""
    encode = partial(_encode_pickled, cloudpickle.dumps((storage, recipe)))  # read once in each process
    executor = None
    try:
        with _ctrl_c_held():
            executor = _process_pool(num_processes)
        return share_out(
            plans, executor, encode, lambda plan, encoded: on_progress(plan.num_bytes, encoded.shard.num_tokens)
        )
    except BrokenExecutor as error:
        raise WorkerDied(
            "a process that tokenizes has died, possibly out of memory. What was finished is kept: the same command "
            "resumes; fewer processes take less memory."
        ) from error
    finally:
        if executor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where neither psutil nor pgrep is there to look for their children
                executor.shutdown(kill_workers=True)  # type: ignore[call-arg]: loky's own


def _process_pool(num_processes: int) -> Executor:
    """Not multiprocessing's, which would run the user's script once more in each process, unless it is guarded."""
    from loky import ProcessPoolExecutor

    # No file of the working directory is imported, and no process replaced because its memory grows. Ctrl-C reaches
    # every process of a terminal; the parent stops the workers, also those that are starting.
    with inherited(PYTHONSAFEPATH="1", LOKY_MAX_MEMORY_LEAK_SIZE="1e18"), signals_blocked(signal.SIGINT):
        executor = ProcessPoolExecutor(num_processes, initializer=_start_worker, initargs=(os.getpid(),))
        executor.submit(int)  # starts all processes
    return executor


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Ctrl-C counts after this block: a process that has begun to start prints a traceback if its parent stops."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if heard:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def signals_blocked(*numbers: int) -> Iterator[None]:
    """Processes that are started within this block have these signals blocked, in all their threads."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # which would end the blocking
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def inherited(**environment: str) -> Iterator[None]:
    """An environment for the processes that are started within this block."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what others print must not get among the output of the command
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A killed parent cannot stop its workers."""
    if hasattr(os, "pidfd_open"):  # on Linux, where it may be forbidden
        with suppress(OSError):
            select.select([os.pidfd_open(parent)], [], [])
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _encode_pickled(task: bytes, plan: ShardPlan) -> Encoded:
    storage, recipe = _load(task)
    return encode_shard(plan, storage, recipe)


_load = lru_cache(maxsize=1)(pickle.loads)
