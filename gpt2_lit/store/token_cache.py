"""a source -> its tokens: prepared once, and kept under a key of the source, the tokenizer and the options."""

import glob
import os
import re
from pathlib import Path
from typing import NamedTuple

from gpt2_lit.store.manifest import StoreError, is_store
from gpt2_lit.store.prepare import Prepared, Recipe, prepare
from gpt2_lit.store.raw_ids import open_raw
from gpt2_lit.store.token_store import TokenStore, open_store
from gpt2_lit.text.files import SHIPPED_TEXT, is_url
from gpt2_lit.text.sources import SourceChoice as Source
from gpt2_lit.text.tokenizer import tokenizer_hash


class TokenCache(NamedTuple):
    """Gives the tokens of a source: text, which is encoded and kept, a token store, or files of ids.

    Args:
        folder: Where the tokens of texts are kept.
        recipe: How texts become tokens.
        token_dtype: Type of the ids in ``.bin`` files that have no header.
    """

    folder: Path
    recipe: Recipe
    token_dtype: str = "uint16"

    def prepare(self, source: Source | None) -> Prepared | None:
        """Encode what has not been encoded; None for what is tokens already."""
        return prepare(source, self.place(source), self.recipe) if is_text(source) else None

    def place(self, source: Source | None) -> Path:
        """The folder of a text's tokens: another for each source, tokenizer and way of reading it."""
        places = [path if is_url(path) else os.path.abspath(path) for path in _source_paths(source)]
        name = re.sub(r"[^\w.-]+", "_", os.path.basename(min(places, default="")))[:40]
        return self.folder / f"{name}-{self.recipe.key(sorted(places))}"

    def open(self, source: Source | None) -> TokenStore:
        """The tokens of a source that was prepared.

        Raises:
            StoreError: If they cannot be read, or a store was made with another tokenizer.
            FileNotFoundError: If a file of ids does not exist.
        """
        if _is_raw(source):
            return open_raw(_raw_files(source), self.token_dtype, self.recipe.vocab_size)
        if not _is_store(source):
            return open_store(self.place(source))
        (path,) = _source_paths(source)
        store = open_store(path)
        if store.tokenizer_fingerprint != tokenizer_hash(self.recipe.tokenizer):
            raise StoreError(
                f"{path} was made with the tokenizer {store.tokenizer}, and data.tokenizer is "
                f"{self.recipe.name}, or of another version. Prepare it anew, or set data.tokenizer."
            )
        return store


def default_folder() -> Path:
    """Where tokens are kept if the user does not say: ``$GPT2_LIT_CACHE``, or the folder for caches of the system."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("GPT2_LIT_CACHE") or os.path.join(caches, "gpt2_lit")).expanduser()


def source_name(source: Source | None) -> str:
    """A source in a few words."""
    if source is None:
        return f"the tale that ships with gpt2_lit ({SHIPPED_TEXT.name})"
    paths = _source_paths(source)
    return paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]}"


def _source_paths(source: Source | None) -> list[str]:
    """The paths of a source, the home folder written out."""
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
            raise FileNotFoundError(
                f"data.source: there is no file {file} (looked in {Path.cwd()}). Check the spelling."
            )
    return sorted(set(files))
