"""a source -> its tokens: prepared once, and kept under a key of the source, the tokenizer and the options."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Collection
from logging import getLogger
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from gpt2_lit.errors import InvalidValue, MissingFile, without_secrets
from gpt2_lit.store.in_memory import store_of_texts
from gpt2_lit.store.last_use import hold, last_use, remove
from gpt2_lit.store.manifest import MANIFEST, StoreError, is_store
from gpt2_lit.store.plan import Recipe, key_of
from gpt2_lit.store.prepare import Prepared, prepare
from gpt2_lit.store.raw_ids import open_raw
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.token_store import TokenStore, open_store
from gpt2_lit.text.files import SourceFile, identity, is_url, local_file, open_file, portable
from gpt2_lit.text.sources import Source, SourceChoice, check_splits_of_pattern

_LOG = getLogger(__name__)
MAX_BYTES = 50_000_000_000


class CachedStore(NamedTuple):
    """A store in the cache."""

    source: str  # what the user called it
    num_bytes: int
    last_use: float  # seconds since 1970
    path: Path


class TokenCache(NamedTuple):
    """Gives the tokens of a source: text, which is encoded and kept, a token store, or files of ids."""

    directory: Path
    recipe: Recipe
    token_dtype: str = "uint16"  # of .bin files without a header
    max_bytes: int = MAX_BYTES  # beyond it stores that no process uses are deleted, the one used least recently first

    def prepare(self, source: SourceChoice | Source) -> Prepared | None:
        """Encode what has not been encoded, so that :meth:`open` finds it; None for what is tokens already."""
        source = Source.of(source)
        if kind_of(source) != "text":
            return None
        LocalStorage(self.directory).make_directory(0o700)  # texts are nobody else's business
        directory = self.directory_of(source)
        try:
            prepared = prepare(source, directory, self.recipe)
        finally:
            if directory.exists():
                hold(directory, str(source))
        if prepared.num_made:
            self._evict()
        return prepared

    def open(self, source: SourceChoice | Source, check: bool = False) -> TokenStore:
        """The tokens of a source that was prepared; with ``check`` all are compared with their checksums first."""
        source, tokenizer = Source.of(source), self.recipe.tokenizer
        kind = kind_of(source)
        if check and kind in ("ids", "memory"):
            raise InvalidValue(f"data.check reads the checksums of a store, and {source} has none. Leave it out.")
        if kind == "ids":
            return open_raw(_files_of_ids(source), self.token_dtype, tokenizer.vocab_size)
        if kind == "memory":
            return store_of_texts(source.texts, self.recipe)
        if kind == "store":
            (path,) = source.names
        else:
            path = self.directory_of(source)
            hold(path, str(source))
        store = open_store(path, check)
        if store.tokenizer_fingerprint != tokenizer.fingerprint:
            raise _of_another_tokenizer(store, tokenizer.name)
        return store

    def directory_of(self, source: SourceChoice | Source) -> Path:
        """Where a text's tokens are kept: a directory for each source, choice of tokenizer and way of reading it."""
        places = [path if is_url(path) else os.path.abspath(path) for path in Source.of(source).names]
        name = re.sub(r"[^\w.-]+", "_", os.path.basename(without_secrets(min(places))))[:40]
        tokenizer = self.recipe.tokenizer
        key = (tokenizer.fingerprint, tokenizer.end_of_text)
        if tokenizer.name == "words" or not tokenizer.fingerprint:  # they change with the text: its store is brought up
            key = (tokenizer.name, 0)
        return self.directory / f"{name}-{key_of(*key, self.recipe.options, sorted(places))}"

    def entries(self) -> list[CachedStore]:
        """What the cache holds, the last used first; what else lies in its directory is not looked at."""
        paths = list(self.directory.iterdir()) if self.directory.is_dir() else []
        found = [
            CachedStore(use.note, sum(LocalStorage(path).list().values()), use.time, path)
            for path in paths
            if (use := last_use(path))
        ]
        return sorted(found, key=lambda entry: -entry.last_use)

    def clear(self, names: Collection[str] | None = None) -> list[CachedStore]:
        """Delete what no process uses, all of it or the directories of these names; returns what was deleted."""
        chosen = [entry for entry in self.entries() if names is None or entry.path.name in names]
        return [entry for entry in chosen if remove(entry.path)]

    def _evict(self) -> None:
        entries = self.entries()
        num_bytes = sum(entry.num_bytes for entry in entries)
        for entry in reversed(entries):
            if num_bytes > self.max_bytes and remove(entry.path):
                num_bytes -= entry.num_bytes
                _LOG.info("deleted %s, which was used least recently: the cache was full.", entry.path)
        if num_bytes > self.max_bytes:
            _LOG.warning(
                "the cache %s holds %.1f GB that are in use, more than the %.1f GB allowed. Raise data.cache_size, or "
                "keep a large text elsewhere: gpt2-lit prepare.",
                self.directory,
                num_bytes / 1e9,
                self.max_bytes / 1e9,
            )


def default_directory() -> Path:
    """Where tokens are kept by default: ``$GPT2_LIT_CACHE``, or in the system's directory for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("GPT2_LIT_CACHE") or os.path.join(caches, "gpt2_lit"))


def expanded(path: str | Path) -> Path:
    """A path with its ``~`` expanded, as far as there is a home directory."""
    if not isinstance(path, str | os.PathLike) or is_url(os.fspath(path)):
        raise InvalidValue(f"cache_dir must be a directory of this machine, got {path!r}. Set data.cache_dir.")
    path = os.path.expanduser(path)
    # A user without a home directory is told so once there is something to keep, as with a home that cannot be written.
    return Path(path.replace("~", "/nonexistent", 1) if path.startswith("~") else path)


Kind = Literal["text", "store", "ids", "memory"]


def kind_of(source: Source) -> Kind:
    """What a source is: text, a token store, files of ids as nanoGPT and llm.c write them, or texts in memory."""
    if source.texts:
        return "memory"
    kinds: dict[str, Kind] = {name: _kind(name) for name in source.names}
    kind = kinds[source.names[0]]
    if len({*kinds.values()}) > 1 or (kind == "store" and len(source.names) > 1):
        raise _mixed(kinds)
    return kind


def common_file(source: Source, other: Source) -> tuple[str, str] | None:
    """A file that both sources have, under another name or as a copy too: its path in each of them."""
    others = defaultdict(list)
    for file in _files(other):
        others[file.size].append(file)
    pairs = ((file, twin) for file in _files(source) for twin in others[file.size])
    return next(((file.path, twin.path) for file, twin in pairs if _is_same(file, twin)), None)


def _kind(name: str) -> Kind:
    if is_store(name):
        return "store"
    path = urlsplit(name).path if is_url(name) else name
    return "ids" if path.lower().endswith(".bin") and not os.path.isdir(name) else "text"


def _of_another_tokenizer(store: TokenStore, name: str) -> StoreError:
    return StoreError(
        f"{store.path} was made with the tokenizer {store.tokenizer}, and data.tokenizer is {name}, or of another "
        "version. Prepare it anew, or set data.tokenizer."
    )


def _mixed(kinds: dict[str, Kind]) -> InvalidValue:
    called = {"text": "text", "store": "a token store", "ids": "a file of ids"}
    named = ", ".join(f"{name} is {called[kind]}" for name, kind in [*kinds.items()][:5])
    return InvalidValue(
        f"data.source is several things at once: {named}. Give only texts, only .bin files, or one store; "
        "gpt2-lit prepare makes one store of several texts."
    )


def _files_of_ids(source: Source) -> list[str]:
    """Each once, in sorted order; a name may be a pattern, unless there is a file of that name."""
    files = {}
    for name in source.names:
        if is_url(name):
            raise InvalidValue(
                f"data.source: files of ids are read from a disk of this machine. Download {name} first."
            )
        found = [name] if os.path.exists(name) else glob.glob(name, recursive=True)
        if not found:
            raise MissingFile(f"data.source: there is no file {name} (looked in {Path.cwd()}). Check the spelling.")
        check_splits_of_pattern(name, found)
        for file in found:
            files.setdefault(identity(file), file)
    return sorted(files.values(), key=portable)


def _files(source: Source) -> list[SourceFile]:
    """The files of a source; of a store its manifest, which holds checksums of all others."""
    kind = kind_of(source)
    if kind in ("text", "memory"):
        return source.find_files()
    paths = _files_of_ids(source) if kind == "ids" else [os.path.join(source.names[0], MANIFEST)]
    return [local_file(path) for path in paths]


def _is_same(file: SourceFile, twin: SourceFile) -> bool:
    """Whether two files of one size have the same bytes; different ones are read to the first difference."""
    if file.path == twin.path:
        return True
    if not file.size:
        return False
    try:
        with open_file(file) as one, open_file(twin) as two:
            return all(part == two.read(len(part)) for part in iter(lambda: one.read(1 << 16), b""))
    except OSError:
        return False  # who reads it next tells why
