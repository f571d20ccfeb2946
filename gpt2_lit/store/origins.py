"""tokens of a store -> the documents, files and bytes that they were made from."""

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_lit.errors import UserError, shown
from gpt2_lit.store.plan import Part, Recipe, ShardPlan, plan_shards
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.store_writer import StoreWriter
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.files import SourceFile, open_file
from gpt2_lit.text.readers import Span, TextOptions, document_spans, format_of
from gpt2_lit.text.templates import RecordOptions
from gpt2_lit.text.tokenizer import Tokenizer


class Origin(NamedTuple):
    """Where some tokens of one document come from, as far as it can be told."""

    document: int | None  # its number in the store, from 0; None where it is not known where documents end
    file: str  # empty for a text in memory; of a store whose files have changed the first and the last it may be
    span: Span | None = None  # in the file: of the tokens in a plain text, of the document in any other

    def __str__(self) -> str:
        parts = ["" if self.document is None else f"document {self.document:,}", self.file, str(self.span or "")]
        return ", ".join(filter(None, map(shown, parts)))


class Origins:
    """Looks up where tokens come from. It reads the files again, a shard's at most for each lookup.

    Args:
        store: The tokens.
        tokenizer: That which made them.
    """

    def __init__(self, store: TokenStore, tokenizer: Tokenizer) -> None:
        self.store, self.tokenizer = store, tokenizer
        self._spans = lru_cache(maxsize=8)(self._read_spans)

    def of(self, start: int, stop: int) -> list[Origin]:
        """The origins of the tokens from ``start`` up to, and without, ``stop``: one for each document."""
        store = self.store
        if store.files:
            shard, before = store.shard_at(start)
            return [Origin(None, store.files[shard], Span(start - before, stop - before, "id"))]
        if not store.num_documents:
            return [Origin(None, store.path)]
        first, last = store.documents_at(np.array([start, stop - 1])).tolist()
        found = []
        for document in range(first, last + 1):
            begins, ends = store.document(document)
            found.append(self._origin(document, max(start, begins), min(stop, ends)))
        return found

    def _origin(self, document: int, start: int, stop: int) -> Origin:
        manifest = self.store.manifest
        if manifest is None:
            return Origin(document, "")
        shard, before = self.store.shard_at(start)
        spans = self._spans(shard)
        number = document - int(self.store.documents_before[shard])
        if spans is None or number >= len(spans):
            return Origin(document, manifest.shards[shard].made_from)
        part, span = spans[number]
        if format_of(part.file.path).documents is None and span.unit == "byte":
            span = self._of_tokens(part.file, span, max(self.store.document(document)[0], before), start, stop)
        return Origin(document, part.file.path, span)

    def _of_tokens(self, file: SourceFile, span: Span, begins: int, start: int, stop: int) -> Span:
        """The bytes of some tokens of a plain text, if they are these; else those of the document.

        They are not where line ends of Windows were made plain ones, or the tokenizer's text is another.
        """
        ids = self.store.read(begins, stop)
        ids = ids[: len(ids) - int(ids[-1] == self.tokenizer.end_of_text)]
        first = span.start + len(self.tokenizer.decode_bytes(ids[: start - begins]))
        text = self.tokenizer.decode_bytes(ids[start - begins :])
        with open_file(file) as stream:
            stream.seek(first)
            is_there = stream.read(len(text)) == text
        return Span(first, first + len(text)) if is_there else span

    def _read_spans(self, shard: int) -> list[tuple[Part, Span]] | None:
        """The documents that a shard begins or continues; None if its files cannot be read as they were."""
        assert self.store.manifest, "only prepared stores have files"
        plan, record = self._plans.get(shard), self.store.manifest.shards[shard]
        if plan is None:
            return None
        with suppress(OSError, UserError, ValueError, ImportError):
            spans = [(part, span) for part in plan.parts for span in self._spans_of(part)]
            if len(spans) in (record.num_documents, record.num_documents + 1):  # the last may continue
                return spans
        return None

    def _spans_of(self, part: Part) -> Iterator[Span]:
        return document_spans(part.file, self._options, part.start, part.stop, self.tokenizer.cut_before)

    @property
    def _options(self) -> TextOptions:
        assert self.store.manifest, "only prepared stores have options"
        options = TextOptions(**self.store.manifest.options)
        return options._replace(records=RecordOptions(*options.records) if options.records else None)

    @cached_property
    def _plans(self) -> dict[int, ShardPlan]:
        """Which files each shard was made from, as they were planned then."""
        manifest = self.store.manifest
        assert manifest, "only prepared stores have plans"
        listed = StoreWriter(LocalStorage(Path(self.store.path))).sources(manifest)
        files = [SourceFile(*file) for file in listed or []]
        plans = plan_shards(files, Recipe(self._options, self.tokenizer), manifest.shard_bytes)
        by_key = {plan.key: plan for plan in plans}
        return {n: by_key[shard.key] for n, shard in enumerate(manifest.shards) if shard.key in by_key}
