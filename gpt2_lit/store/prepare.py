"""a source -> its token store: plan, share out, commit."""

import os
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from logging import getLogger
from typing import NamedTuple

from tqdm import tqdm

from gpt2_lit.errors import InvalidType, printable, whole_number, without_secrets
from gpt2_lit.store.manifest import Manifest, Shard, sources_bytes, token_dtype
from gpt2_lit.store.plan import Recipe, ShardPlan, absolute, choose_shard_bytes, plan_shards, recorded
from gpt2_lit.store.storage import LocalStorage, store_directory
from gpt2_lit.store.store_writer import StoreWriter
from gpt2_lit.store.workers import Encoded, Progress, encode_in_processes, encode_in_threads
from gpt2_lit.text.bpe import GPT2_FINGERPRINT, uses_gigatoken
from gpt2_lit.text.files import SourceFile
from gpt2_lit.text.readers import TextOptions, format_of, no_text_error
from gpt2_lit.text.sources import Source, SourceChoice

_LOG = getLogger(__name__)
_IN_PROCESS_BYTES = 32 << 20  # less is done before other processes would pay
_WORTH_A_WORD_BYTES = 64 << 20  # more takes long without gigatoken


class Prepared(NamedTuple):
    """What :func:`prepare` did."""

    manifest: Manifest
    num_made: int  # shards that were encoded now, of all in the manifest
    changes: list[str]  # what differs from when the store was last complete


def prepare(
    source: SourceChoice | Source,
    store: str | os.PathLike,
    recipe: Recipe | None = None,
    num_processes: int | None = None,
    show_progress: bool = True,
) -> Prepared:
    """Make a token store of a source, or bring one up to date: only shards whose files have changed are encoded.

    It may be stopped at any time: the next call resumes, and ends with the same bytes. Of several at a time for one
    store, one works and the others wait for it.

    Args:
        source: What :meth:`Source.of` takes.
        store: Directory for the tokens.
        recipe: How files become tokens. None is GPT-2's byte pairs of the texts as they are. A store that has a SHA-256
            of each shard keeps having it, whatever ``recipe.sha256`` says.
        num_processes: Processes or threads that encode. None is one for each core.
        show_progress: Whether to show a bar, if it takes longer than a second.
    """
    recipe = recipe or Recipe()
    if not isinstance(recipe, Recipe):
        raise InvalidType(
            f"recipe must be a Recipe, got {recipe!r}. For one give Recipe(tokenizer=make_tokenizer('gpt2'))."
        )
    num_processes = None if num_processes is None else whole_number("num_processes", num_processes, of="")
    files, report = Source.of(source).look()
    files = absolute(files)
    storage = LocalStorage(store_directory(store))
    writer = StoreWriter(storage)
    work = _Work.plan(files, recipe, writer)
    if work.former and work.is_done:
        _tell(report)
        return Prepared(work.former, 0, [])
    writer.check()
    with storage.lock():
        _tell(report)
        work = _Work.plan(files, recipe, writer)  # another process may have done it while this one waited
        made = _share_out(work.missing, storage, work.recipe, num_processes, show_progress)
        tell_kept_ends(recipe, sum(encoded.num_ends_kept for encoded in made))
        done = _commit(work, made, files, recipe, writer)
        if all(format_of(file.path).documents is None for file in files):  # of others nobody knows how many texts
            tell_unused_separator(recipe, done.manifest.num_documents, len(files))
        return done


def _tell(report: str) -> None:
    if report:
        _LOG.info("%s", report)


def tell_kept_ends(recipe: Recipe, count: int) -> None:
    """Warn that the texts hold so many times what ends a document elsewhere."""
    if count:
        name = recipe.tokenizer.end_of_text_name
        way_out = f"--data.document_separator '{name}' makes documents of what stands between."
        _LOG.warning(
            f"{count:,} times {name} in the texts is kept as text and ends no document"
            + (f"; {way_out}" if recipe.options.records is None else ".")
        )


def tell_unused_separator(recipe: Recipe, num_documents: int, num_texts: int) -> None:
    """Warn where a separator has cut nothing."""
    if (separator := recipe.options.document_separator) and num_documents <= num_texts:
        _LOG.warning(
            f"data.document_separator {separator!r} made {num_documents:,} document{'s' * (num_documents != 1)} of "
            f"{num_texts:,} text{'s' * (num_texts != 1)}: is it in them? A shell writes line ends as $'\\n\\n'."
        )


class _Work(NamedTuple):
    """What a store is to become, and what it has of that."""

    former: Manifest | None
    recipe: Recipe
    shard_bytes: int
    plans: list[ShardPlan]
    finished: dict[str, Shard]
    is_done: bool

    @classmethod
    def plan(cls, files: Sequence[SourceFile], recipe: Recipe, writer: StoreWriter) -> "_Work":
        former = writer.manifest()
        if former and former.has_sha256:
            recipe = replace(recipe, sha256=True)
        shard_bytes = choose_shard_bytes(files, former.shard_bytes if former else None)
        plans = plan_shards(files, recipe, shard_bytes)
        finished = {}
        if recipe.tokenizer.fingerprint:  # else nobody knows whether they are its tokens
            finished = writer.finished(
                [plan.key for plan in plans], token_dtype(recipe.tokenizer.vocab_size), recipe.sha256
            )
        shards = [finished.get(plan.key) for plan in plans]
        is_done = former is not None and shards == former.shards and not former.damages(writer.storage)
        return cls(former, recipe, shard_bytes, plans, finished, is_done)

    @property
    def missing(self) -> list[ShardPlan]:
        return [plan for plan in self.plans if plan.key not in self.finished]


def _share_out(
    plans: Sequence[ShardPlan],
    storage: LocalStorage,
    recipe: Recipe,
    num_processes: int | None,
    show_progress: bool,
) -> list[Encoded]:
    """Make shards in this process if they are small, else in several, with a bar that tells how far it is."""
    if not plans:
        return []
    # Of texts: English takes half a byte for each byte, source code more, compressed files more than they have. Rows
    # of other files hold who knows what beside the text.
    parts = [part for plan in plans for part in plan.parts if format_of(part.file.path).documents is None]
    storage.check_room(int(0.4 * sum(part.num_bytes for part in parts)))
    num_bytes = sum(plan.num_bytes for plan in plans)
    num_processes = min(num_processes or _usable_cores(), len(plans))
    if num_bytes > _WORTH_A_WORD_BYTES and recipe.tokenizer.fingerprint == GPT2_FINGERPRINT and not uses_gigatoken():
        _LOG.info("pip install 'gpt2-lit[fast]' encodes about 20 times faster, to the same ids.")
    with _progress_bar(num_bytes, show_progress) as on_progress:
        if recipe.tokenizer.releases_gil:
            return encode_in_threads(plans, storage, recipe, num_processes, on_progress)
        if num_processes == 1 or num_bytes <= _IN_PROCESS_BYTES:
            return encode_in_threads(plans, storage, recipe, 1, on_progress)
        return encode_in_processes(plans, storage, recipe, num_processes, on_progress)


def _commit(
    work: _Work, made: Sequence[Encoded], files: Sequence[SourceFile], recipe: Recipe, writer: StoreWriter
) -> Prepared:
    by_key = work.finished | {encoded.shard.key: encoded.shard for encoded in made}
    shards = [by_key[plan.key] for plan in work.plans]
    if not any(shard.num_documents for shard in shards):
        raise no_text_error(files)
    files = [file._replace(path=without_secrets(file.path)) for file in files]  # as they are kept and shown
    sources = sources_bytes(files)
    manifest = Manifest(
        tokenizer=recipe.tokenizer.name,
        tokenizer_hash=recipe.tokenizer.fingerprint or "",
        vocab_size=recipe.tokenizer.vocab_size,
        options=recorded(recipe.options),
        shard_bytes=work.shard_bytes,
        num_sources=len(files),
        sources_crc32=zlib.crc32(sources),
        shards=shards,
    )
    changes = _changes(writer, work.former, manifest, files) if work.former else []
    writer.commit(manifest, sources)
    return Prepared(manifest, len(made), changes)


def _changes(writer: StoreWriter, former: Manifest, now: Manifest, files: Sequence[SourceFile]) -> list[str]:
    """What differs from before, one line each."""
    defaults = TextOptions._field_defaults
    was, now_is = defaults | former.options, defaults | now.options
    changes = [f"{name} was {was[name]!r} and is {now_is[name]!r}" for name in defaults if was[name] != now_is[name]]
    if former.tokenizer_hash != now.tokenizer_hash:
        changes.append(f"the tokenizer was {former.tokenizer} and is {now.tokenizer}, of other content")
    sources = writer.sources(former)
    if sources is None:
        return [*map(printable, changes), "the list of the sources was damaged"]
    before = {file[0]: file for file in sources}
    after = {file.path: list(file) for file in files}
    changes += [f"added {path}" for path in after if path not in before]
    changes += [f"removed {path}" for path in before if path not in after]
    changes += [f"changed {path}" for path, file in after.items() if path in before and before[path] != file]
    return [printable(change) for change in changes]  # the former store may be anybody's


@contextmanager
def _progress_bar(num_bytes: int, is_shown: bool) -> Iterator[Progress]:
    bar = tqdm(
        total=num_bytes,
        unit="B",
        unit_scale=True,
        desc="tokenizing",
        delay=1,
        disable=not is_shown,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    lock, all_tokens = threading.Lock(), 0

    def on_progress(more_bytes: int, more_tokens: int) -> None:
        nonlocal all_tokens
        with lock:
            all_tokens += more_tokens
            # Compressed files hold more text than bytes: the bar waits at its end for the last of them.
            bar.update(min(more_bytes, num_bytes - bar.n))
            bar.set_postfix_str(f"{all_tokens / 1e6:,.1f} M tokens", refresh=False)

    with bar:
        yield on_progress


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
