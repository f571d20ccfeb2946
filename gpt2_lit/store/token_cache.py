"""a source -> its tokens: prepared once, and kept under a key of the source, the tokenizer and the options."""

import glob
import os
import re
from logging import getLogger
from pathlib import Path
from typing import NamedTuple

from gpt2_lit.errors import MissingFile
from gpt2_lit.store.last_use import hold, last_use, remove
from gpt2_lit.store.manifest import StoreError, is_store
from gpt2_lit.store.plan import Recipe, key_of
from gpt2_lit.store.prepare import Prepared, prepare
from gpt2_lit.store.raw_ids import open_raw
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.token_store import TokenStore, open_store
from gpt2_lit.text.bpe import GPT2_END_OF_TEXT, GPT2_FINGERPRINT
from gpt2_lit.text.sources import SHIPPED_TEXT, Source, is_url

_LOG = getLogger(__name__)
_NAMED_BY_CONTENT = {"gpt2": (GPT2_FINGERPRINT, GPT2_END_OF_TEXT)}
MAX_BYTES = 50_000_000_000


class CachedStore(NamedTuple):
    """A store in the cache."""

    source: str  # what the user called it
    num_bytes: int
    last_use: float  # seconds since 1970
    path: Path


class TokenCache(NamedTuple):
    """Gives the tokens of a source: text, which is encoded and kept, a token store, or files of ids.

    Args:
        directory: Where the tokens of texts are kept.
        recipe: How texts become tokens.
        token_dtype: Type of the ids in ``.bin`` files that have no header.
        max_bytes: When a text was encoded and the cache is larger than this, the stores that were used least recently
            are deleted; never one that a process on this machine uses.
    """

    directory: Path
    recipe: Recipe
    token_dtype: str = "uint16"
    max_bytes: int = MAX_BYTES

    def prepare(self, source: Source | None) -> Prepared | None:
        """Encode what has not been encoded, so that :meth:`open` finds it; None for what is tokens already."""
        if not is_text(source):
            return None
        directory = self.directory_of(source)
        try:
            prepared = prepare(source, directory, self.recipe)
        finally:
            if directory.exists():
                hold(directory, source_name(source))
        if prepared.num_made:
            self._evict()
        return prepared

    def open(self, source: Source | None) -> TokenStore:
        """The tokens of a source that was prepared.

        Raises:
            StoreError: If they cannot be read, or were made with another tokenizer.
            FileNotFoundError: If a file of ids does not exist.
        """
        tokenizer = self.recipe.tokenizer
        if _is_raw(source):
            return open_raw(_raw_files(source), self.token_dtype, tokenizer.vocab_size)
        if _is_store(source):
            (path,) = _source_paths(source)
        else:
            path = self.directory_of(source)
            hold(path, source_name(source))
        store = open_store(path)
        if store.tokenizer_fingerprint != tokenizer.fingerprint:
            raise StoreError(
                f"{path} was made with the tokenizer {store.tokenizer}, and data.tokenizer is {tokenizer.name}, or of "
                "another version. Prepare it anew, or set data.tokenizer."
            )
        return store

    def directory_of(self, source: Source | None) -> Path:
        """Where a text's tokens are kept: another place for each source, choice of tokenizer and way of reading it."""
        places = [path if is_url(path) else os.path.abspath(path) for path in _source_paths(source)]
        name = re.sub(r"[^\w.-]+", "_", os.path.basename(min(places, default="")))[:40]
        # By the name, not the fingerprint: when a vocabulary changes with its text, the store is brought up to date.
        tokenizer = _NAMED_BY_CONTENT.get(self.recipe.tokenizer.name, (self.recipe.tokenizer.name, 0))
        return self.directory / f"{name}-{key_of(*tokenizer, self.recipe.options, sorted(places))}"

    def entries(self) -> list[CachedStore]:
        """What the cache holds, the last used first; what else lies in its directory is not looked at."""
        paths = list(self.directory.iterdir()) if self.directory.is_dir() else []
        found = [
            CachedStore(use.note, sum(LocalStorage(path).list().values()), use.time, path)
            for path in paths
            if (use := last_use(path))
        ]
        return sorted(found, key=lambda entry: -entry.last_use)

    def clear(self) -> list[CachedStore]:
        """Delete all that no process uses; returns what was deleted."""
        return [entry for entry in self.entries() if remove(entry.path)]

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
    path = os.path.expanduser(os.environ.get("GPT2_LIT_CACHE") or os.path.join(caches, "gpt2_lit"))
    # A user without a home directory is told so once there is something to keep, as with a home that cannot be written.
    return Path(path.replace("~", "/nonexistent", 1) if path.startswith("~") else path)


def source_name(source: Source | None) -> str:
    """A source in a few words."""
    if source is None:
        return f"the tale that ships with gpt2_lit ({SHIPPED_TEXT.name})"
    paths = _source_paths(source)
    return paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]}"


def _source_paths(source: Source | None) -> list[str]:
    """The paths of a source, the home directory written out."""
    if source is None:
        return [str(SHIPPED_TEXT)]
    paths = [source] if isinstance(source, (str, os.PathLike)) else source
    return [os.path.expanduser(os.fspath(path)) for path in paths]


def is_text(source: Source | None) -> bool:
    """Whether a source is text, and not tokens already."""
    return not (_is_store(source) or _is_raw(source))


def _is_store(source: Source | None) -> bool:
    paths = _source_paths(source)
    return len(paths) == 1 and is_store(paths[0])


def _is_raw(source: Source | None) -> bool:
    """Whether a source is files of ids, as nanoGPT and llm.c write them."""
    paths = _source_paths(source)
    return bool(paths) and all(path.endswith(".bin") and not os.path.isdir(path) for path in paths)


def _raw_files(source: Source | None) -> list[str]:
    """The files of ids, each once, in sorted order; a path may be a pattern."""
    files = [file for path in _source_paths(source) for file in (glob.glob(path, recursive=True) or [path])]
    for file in files:
        if not os.path.exists(file):
            raise MissingFile(f"data.source: there is no file {file} (looked in {Path.cwd()}). Check the spelling.")
    return sorted(set(files))
