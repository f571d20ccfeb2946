"""documents -> tokens on disk: tokenize a corpus once, with all cores, and go on where a stop left it."""

import errno
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt2_lit.store.manifest import (
    DOCUMENTS_DTYPE,
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    Shard,
    StoreError,
    VersionError,
    is_store,
    token_dtype,
)
from gpt2_lit.text.bpe import GPT2_END_OF_TEXT, GPT2_VOCAB_SIZE, gpt2_tokenizer
from gpt2_lit.text.files import SourceFile, is_url
from gpt2_lit.text.readers import TextOptions, can_be_cut, format_of, no_text_error, read_pieces
from gpt2_lit.text.sources import SourceChoice as Source
from gpt2_lit.text.sources import find_files
from gpt2_lit.text.tokenizer import Encoder, token_array, tokenizer_hash
from gpt2_lit.text.word_tokenizer import SimpleTokenizerV2

SHARD_BYTES = 16 << 20  # of source: 40 ms of gigatoken, 1 s of tiktoken
MAX_SHARDS = 1024  # a larger corpus gets larger shards, so that opening it takes no longer
_IN_PROCESS_BYTES = 32 << 20  # less is done before other processes would pay
_WORTH_A_WORD_BYTES = 64 << 20  # more takes long without gigatoken
_LOCK = ".lock"
_OURS = re.compile(  # names of the files of a store; with .tmp behind while they are written
    r"(manifest\.json|(tokens|documents)-[0-9a-f]{16}\.bin|shard-[0-9a-f]{16}\.json|sources-[0-9a-f]{8}\.json)"
    r"(\.\d+\.tmp)?|\.lock"
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_OTHER_FOLDER = "Or give another folder: data.cache_dir of a training, STORE of gpt2-lit prepare."


class Recipe(NamedTuple):
    """How files become tokens."""

    options: TextOptions = TextOptions()
    words: SimpleTokenizerV2 | None = None  # None is GPT-2's byte pairs

    @property
    def name(self) -> str:
        return "words" if self.words else "gpt2"

    @property
    def tokenizer(self) -> Encoder:
        return self.words or gpt2_tokenizer()

    @property
    def vocab_size(self) -> int:
        return self.words.n_vocab if self.words else GPT2_VOCAB_SIZE

    @property
    def end_of_text(self) -> int:
        """The id that stands behind each document."""
        return self.words.vocab["<|endoftext|>"] if self.words else GPT2_END_OF_TEXT

    def key(self, *what: Any) -> str:
        """A name for tokens that are made by this recipe from something; other tokens have another name."""
        content = [FORMAT_VERSION, tokenizer_hash(self.tokenizer), self.end_of_text, self.options, *what]
        return blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


class Part(NamedTuple):
    """What a shard takes from a file: all of it, or a range of its bytes."""

    file: SourceFile
    start: int = 0
    stop: int | None = None

    @property
    def identity(self) -> list[Any]:
        """What is another when the text may be another."""
        return [self.file.path, self.file.size, self.file.stamp, self.start, self.stop]

    @property
    def num_bytes(self) -> int:
        return (self.file.size if self.stop is None else self.stop) - self.start

    def __str__(self) -> str:
        return self.file.path if self.stop is None else f"{self.file.path}, bytes {self.start:,} to {self.stop:,}"


class ShardPlan(NamedTuple):
    """One piece of work, which does not depend on any other."""

    key: str
    parts: list[Part]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)


class Prepared(NamedTuple):
    """What :func:`prepare` did."""

    manifest: Manifest
    num_made: int  # shards that were encoded now, of all in the manifest
    changes: list[str]  # what is other than when the store was last complete


def prepare(
    source: Source | None,
    store: str | os.PathLike,
    recipe: Recipe | None = None,
    num_processes: int | None = None,
    show_progress: bool = True,
) -> Prepared:
    """Make a token store of a source, or bring one up to date: only shards whose files have changed are encoded.

    May be stopped at any time, in any way: the next call goes on behind the shards that were finished, and ends with
    the same bytes. Of several calls at a time for one store, one works and the others wait for it.

    Args:
        source: What :func:`gpt2_lit.text.sources.find_files` takes.
        store: Folder for the tokens.
        recipe: How files become tokens. None is GPT-2's byte pairs of the texts as they are.
        num_processes: Processes that encode. None is one for each core that may be used.
        show_progress: Whether to show a bar, if it takes longer than a second.

    Raises:
        OSError: If a file cannot be read or the disk is full.
        ValueError: If a file is not what its name says; the message names file and line.
        StoreError: If the folder holds something else.
    """
    store, recipe = Path(store).absolute(), recipe or Recipe()
    files = _absolute(find_files(source))
    if is_fresh(store, files, recipe):
        return Prepared(Manifest.load(store), 0, [])
    _check_folder(store)
    with _at_work_on(store):
        former = _former(store)
        plans = plan_shards(files, recipe, _shard_bytes(files, former))
        missing = [plan for plan in plans if not _receipt(store, plan, recipe)]
        if missing:
            _check_space(store, missing)
            _encode(missing, store, recipe, num_processes, show_progress)
        shards = [shard for plan in plans if (shard := _receipt(store, plan, recipe))]
        assert len(shards) == len(plans), "every shard has been made"
        if not any(shard.num_documents for shard in shards):
            raise no_text_error(files)
        return _commit(store, recipe, former, files, shards, len(missing))


def plan_shards(files: Sequence[SourceFile], recipe: Recipe, shard_bytes: int = SHARD_BYTES) -> list[ShardPlan]:
    """Cut a corpus into shards of about ``shard_bytes``: ranges of large files, and groups of small ones.

    A file that comes or goes changes its own group, not all that follow: a group also ends in front of files that are
    chosen by a hash of their name.
    """
    groups: list[list[Part]] = []
    open_bytes: float = float("inf")  # of the group that may still grow
    for file in files:
        if can_be_cut(file) and file.size > shard_bytes:
            starts = range(0, file.size, shard_bytes)
            groups += [[Part(file, start, min(start + shard_bytes, file.size))] for start in starts]
            open_bytes = float("inf")
            continue
        border = open_bytes >= shard_bytes / 4 and _chance(file.path) < 2 * file.size / shard_bytes
        if border or open_bytes + file.size > shard_bytes:
            groups.append([])
            open_bytes = 0
        groups[-1].append(Part(file))
        open_bytes += file.size
    return [ShardPlan(recipe.key([part.identity for part in parts]), parts) for parts in groups]


def encode_shard(
    plan: ShardPlan,
    store: Path,
    recipe: Recipe,
    on_progress: Callable[[int, int], object] = lambda num_bytes, num_tokens: None,
) -> Shard:
    """Make one shard, whole or not at all. It depends on the plan alone, so that any machine may do it, and twice.

    Args:
        plan: What goes into it.
        store: The folder where it belongs.
        recipe: How files become tokens.
        on_progress: Called now and then with the bytes of text and the tokens since the last call.
    """
    dtype = token_dtype(recipe.vocab_size)
    tokenizer, end_of_text = recipe.tokenizer, np.array([recipe.end_of_text], dtype)
    ends = array("q")
    num_tokens = num_bytes = checksum = 0
    aside = store / f"tokens-{plan.key}.bin.{os.getpid()}.tmp"
    try:
        with open(aside, "wb") as file:
            for part in plan.parts:
                for text, ends_document in read_pieces(part.file, recipe.options, part.start, part.stop):
                    ids = token_array(tokenizer, text)
                    assert ids.dtype.itemsize <= dtype.itemsize, "ids are below vocab_size"
                    if ends_document:
                        ids = np.concatenate([ids, end_of_text])
                    block = ids.astype(dtype, copy=False).data
                    file.write(block)
                    checksum = zlib.crc32(block, checksum)
                    num_tokens += len(ids)
                    if ends_document:
                        ends.append(num_tokens)
                    text_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
                    num_bytes += text_bytes
                    on_progress(text_bytes, len(ids))
            file.flush()
            os.fsync(file.fileno())
        documents = np.array(ends, DOCUMENTS_DTYPE).tobytes()
        made_from = " to ".join(dict.fromkeys(str(part) for part in (plan.parts[0], plan.parts[-1])))
        shard = Shard(plan.key, num_tokens, len(ends), num_bytes, checksum, zlib.crc32(documents), made_from)
        write_file(store / shard.documents_file, documents)
        os.replace(aside, store / shard.tokens_file)
        write_file(store / shard.receipt_file, shard.dumps())  # last: with it the shard is done
        return shard
    finally:
        aside.unlink(missing_ok=True)


def _absolute(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The same files from whatever folder they were named."""
    files = [file if is_url(file.path) else file._replace(path=os.path.abspath(file.path)) for file in files]
    return sorted(files, key=lambda file: file.path)


def is_fresh(store: Path, files: Sequence[SourceFile], recipe: Recipe) -> bool:
    """Whether a store is what these files, named by absolute paths, and this recipe give now."""
    former = _former(store)
    if former is None:
        return False
    plans = plan_shards(files, recipe, _shard_bytes(files, former))
    finished = [_receipt(store, plan, recipe) for plan in plans]
    return finished == former.shards and (store / former.sources_file).exists()


def _shard_bytes(files: Sequence[SourceFile], former: Manifest | None) -> int:
    """The size of shards, which stays as it was while the corpus grows, as all shards would have to be made anew."""
    total = sum(file.size for file in files)
    if former and total <= 4 * MAX_SHARDS * former.shard_bytes:
        return former.shard_bytes
    size = SHARD_BYTES
    while total > MAX_SHARDS * size:
        size *= 2
    return size


def _chance(path: str) -> float:
    """A number from 0 to below 1 that only the path decides."""
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little") / 2**64


def _former(store: Path) -> Manifest | None:
    """The manifest as it is before the work; None if there is none, or a damaged one, which is made anew."""
    try:
        return Manifest.load(store)
    except VersionError:
        raise
    except StoreError:
        return None


def _receipt(store: Path, plan: ShardPlan, recipe: Recipe) -> Shard | None:
    """What was written of a finished shard, if its files are there."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        shard = Shard.loads((store / f"shard-{plan.key}.json").read_bytes())
        sizes = shard.file_sizes(token_dtype(recipe.vocab_size))
        if shard.key == plan.key and all((store / name).stat().st_size == size for name, size in sizes.items()):
            return shard
    return None


def _check_folder(store: Path) -> None:
    """Make the folder, or see that it holds a store or what is to become one: others' files should not lie between."""
    if store.exists() and not store.is_dir():
        raise StoreError(f"{store} is a file. Give a folder for the tokens.")
    try:
        store.mkdir(parents=True, exist_ok=True)
        names = {file.name for file in store.iterdir()}
    except OSError as error:
        raise OSError(f"{store} cannot be made ({error.strerror}). {_OTHER_FOLDER}") from None
    begun = all(_OURS.fullmatch(name) for name in names) and names != {MANIFEST}
    if not (begun or is_store(store)):
        raise StoreError(f"{store} holds other files and no token store. Give an empty or a new folder.")


def _check_space(store: Path, plans: Sequence[ShardPlan]) -> None:
    # Of texts: English takes half a byte for each byte, source code more, compressed files more than they have. Rows
    # of other files hold who knows what beside the text.
    texts = sum(part.num_bytes for plan in plans for part in plan.parts if format_of(part.file.path).kind == "text")
    needed, free = int(0.4 * texts), shutil.disk_usage(store).free
    if needed > free:
        raise OSError(
            f"the tokens take {needed / 1e9:,.1f} GB or more, and the disk of {store} has {free / 1e9:,.1f} GB left. "
            f"Make room. {_OTHER_FOLDER}"
        )


@contextmanager
def _at_work_on(store: Path) -> Iterator[None]:
    """Be the only one to write to a store. The lock of a process that was killed is free."""
    lock = FileLock(store / _LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _tell(f"{store} is being prepared by another process: waiting for it.")
            lock.acquire()
        _delete(store, _is_half_done)  # by a run that was killed
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:  # the sources have errors of their own, which name the file
            raise
        raise OSError(
            f"{store} cannot be written: {error.strerror}. What was finished is kept: once that is mended, the same "
            f"command goes on. {_OTHER_FOLDER}"
        ) from None
    finally:
        if lock.is_locked:
            _delete(store, _is_half_done)
        lock.release()


def _commit(
    store: Path,
    recipe: Recipe,
    former: Manifest | None,
    files: Sequence[SourceFile],
    shards: list[Shard],
    num_made: int,
) -> Prepared:
    """Write the manifest, and delete what it no longer needs."""
    sources = ("[" + ",\n".join(map(json.dumps, files)) + "]\n").encode()
    manifest = Manifest(
        tokenizer=recipe.name,
        tokenizer_hash=tokenizer_hash(recipe.tokenizer),
        vocab_size=recipe.vocab_size,
        options=recipe.options._asdict(),
        shard_bytes=_shard_bytes(files, former),
        num_sources=len(files),
        sources_crc32=zlib.crc32(sources),
        shards=shards,
    )
    changes = _changes(store, former, manifest, files) if former else []
    write_file(store / manifest.sources_file, sources)
    sync_folder(store)
    write_file(store / MANIFEST, manifest.dumps())
    sync_folder(store)
    needed = {MANIFEST, _LOCK, manifest.sources_file}
    needed.update(name for s in shards for name in (s.tokens_file, s.documents_file, s.receipt_file))
    _delete(store, lambda name: name not in needed)
    return Prepared(manifest, num_made, changes)


def _delete(store: Path, is_needless: Callable[[str], bool]) -> None:
    """Delete files of a store; never others, which somebody may have put there."""
    for file in store.iterdir():
        if _OURS.fullmatch(file.name) and is_needless(file.name):
            with suppress(OSError):  # still in use, where that forbids it: next time, then
                file.unlink()


def _is_half_done(name: str) -> bool:
    return name.endswith(".tmp")


def _changes(store: Path, former: Manifest, now: Manifest, files: Sequence[SourceFile]) -> list[str]:
    """What is other than before, one line each."""
    changes = [
        f"{name} was {before!r} and is {now.options.get(name)!r}"
        for name, before in former.options.items()
        if now.options.get(name) != before
    ]
    if former.tokenizer_hash != now.tokenizer_hash:
        changes.append(f"the tokenizer was {former.tokenizer} and is {now.tokenizer}, of other content")
    try:
        before = {file[0]: SourceFile(*file) for file in json.loads((store / former.sources_file).read_bytes())}
    except (OSError, ValueError, TypeError, IndexError):
        return [*changes, "the list of the sources was damaged"]
    after = {file.path: file for file in files}
    return [
        *changes,
        *(f"added {path}" for path in after if path not in before),
        *(f"removed {path}" for path in before if path not in after),
        *(f"changed {path}" for path, file in after.items() if path in before and before[path] != file),
    ]


def _encode(
    plans: Sequence[ShardPlan], store: Path, recipe: Recipe, num_processes: int | None, show_progress: bool
) -> None:
    """Make shards, in this process if they are small or in several, with a bar that tells how far it is."""
    total = sum(plan.num_bytes for plan in plans)
    num_processes = min(num_processes or _usable_cores(), len(plans))
    if total > _WORTH_A_WORD_BYTES and not recipe.words and importlib.util.find_spec("gigatoken") is None:
        _tell("pip install 'gpt2-lit[fast]' encodes about 20 times faster, to the same ids.")
    bar = tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc="tokenizing",
        delay=1,
        disable=not show_progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    lock, num_tokens = threading.Lock(), 0

    def on_progress(num_bytes: int, tokens: int) -> None:
        nonlocal num_tokens
        with lock:
            num_tokens += tokens
            # Compressed files hold more text than bytes: the bar waits at its end for the last of them.
            bar.update(min(num_bytes, total - bar.n))
            bar.set_postfix_str(f"{num_tokens / 1e6:,.1f} M tokens", refresh=False)

    try:
        if num_processes == 1 or total <= _IN_PROCESS_BYTES:
            for plan in plans:
                encode_shard(plan, store, recipe, on_progress)
        else:
            _encode_in_processes(plans, store, recipe, num_processes, on_progress)
    finally:
        bar.close()


# Ctrl-C reaches every process of a terminal; the one that gives the work sees to it.
_WORKER = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = {path!r}
from {module} import _work
_work()
"""


def _encode_in_processes(
    plans: Sequence[ShardPlan],
    store: Path,
    recipe: Recipe,
    num_processes: int,
    on_progress: Callable[[int, int], object],
) -> None:
    waiting, processes = iter(plans), []
    lock, stopped = threading.Lock(), threading.Event()

    def serve() -> None:
        """Hand one shard after the other to a process of its own."""
        # Not multiprocessing, which would run the user's script once more in each, unless it is guarded.
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER.format(path=sys.path, module=__name__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        processes.append(process)
        with process:
            while not stopped.is_set():
                with lock:
                    plan = next(waiting, None)
                if plan is None:
                    return
                pickle.dump((plan, store, recipe), process.stdin)
                process.stdin.flush()
                while not isinstance(reply := pickle.load(process.stdout), Shard):
                    if isinstance(reply, Exception):
                        raise reply
                    on_progress(*reply)

    with ThreadPoolExecutor(num_processes) as pool:
        servants = [pool.submit(serve) for _ in range(num_processes)]
        try:
            done, _ = wait(servants, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
            for process in processes:
                process.kill()
        errors = [error for servant in done if (error := servant.exception())]
    for error in errors:
        if isinstance(error, (EOFError, BrokenPipeError, pickle.UnpicklingError)):
            raise RuntimeError(
                "a process that tokenizes has died, perhaps for want of memory. What was finished is kept: the same "
                "command goes on; with fewer processes it takes less memory."
            ) from error
        raise error


def _work() -> None:
    """What each of the processes does, until there is no more work, or the one that gave it is gone."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print does not belong there
    told, num_bytes, num_tokens = time.monotonic(), 0, 0

    def reply(what: object) -> None:
        pickle.dump(what, replies)
        replies.flush()

    def on_progress(more_bytes: int, more_tokens: int) -> None:
        nonlocal told, num_bytes, num_tokens
        num_bytes, num_tokens = num_bytes + more_bytes, num_tokens + more_tokens
        if time.monotonic() > told + 0.1:
            reply((num_bytes, num_tokens))
            told, num_bytes, num_tokens = time.monotonic(), 0, 0

    with suppress(EOFError, BrokenPipeError):
        while True:
            plan, store, recipe = pickle.load(sys.stdin.buffer)
            try:
                shard = encode_shard(plan, store, recipe, on_progress)
                reply((num_bytes, num_tokens))
                num_bytes = num_tokens = 0
                reply(shard)
            except (OSError, ValueError) as error:
                reply(error)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(news: str) -> None:
    print(news, file=sys.stderr, flush=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after the power has gone."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Let the names of the files in a folder reach the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
