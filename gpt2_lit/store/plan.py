"""files -> shards: which parts of which files go into which piece of work, under a name that its content decides."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from gpt2_lit.errors import true_or_false, without_secrets
from gpt2_lit.store.manifest import FORMAT_VERSION
from gpt2_lit.text.files import SourceFile, is_url, portable
from gpt2_lit.text.readers import TextOptions, can_be_cut
from gpt2_lit.text.tokenizer import Tokenizer, make_tokenizer

SHARD_BYTES = 16 << 20  # of source: 40 ms of gigatoken, 1 s of tiktoken
MAX_SHARDS = 1024  # a larger corpus gets larger shards, so that opening it takes no longer


@dataclass(frozen=True)
class Recipe:
    """How files become tokens."""

    options: TextOptions = field(default_factory=TextOptions)
    tokenizer: Tokenizer = field(default_factory=lambda: make_tokenizer("gpt2"))
    sha256: bool = False  # in receipts and manifest, of each shard; no part of any key

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", self.options.checked())
        object.__setattr__(self, "sha256", true_or_false("sha256", self.sha256, of=""))

    def key(self, *what: Any) -> str:
        """A name for the tokens that this recipe makes of something; other tokens have another name."""
        return key_of(self.tokenizer.fingerprint, self.tokenizer.end_of_text, self.options, *what)


def key_of(tokenizer: str | None, end_of_text: int, options: Any, *what: Any) -> str:
    """16 hex digits. Of options beyond the first two only those count that differ from their defaults.

    So the keys of everybody's stores stay as they are when an option is added.
    """
    later = dict(list(recorded(options).items())[2:])
    content = [FORMAT_VERSION, tokenizer, end_of_text, [*options[:2], *([later] if later else [])], *what]
    return blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def recorded(options: Any) -> dict[str, Any]:
    """The options that a store records: the first two, and of later ones those that differ from their defaults.

    Not the limit on sizes, which changes no token.
    """
    values = options._asdict()
    return {
        name: [*value] if isinstance(value, tuple) else value  # as JSON gives it back
        for number, (name, value) in enumerate(values.items())
        if number < 2 or (name != "max_unpacked" and value != options._field_defaults[name])
    }


class Part(NamedTuple):
    """What a shard takes from a file: all of it, or a range of its bytes."""

    file: SourceFile
    start: int = 0
    stop: int | None = None

    @property
    def identity(self) -> list[Any]:
        """What differs when the text may differ."""
        return [self.file.path, self.file.size, self.file.stamp, self.start, self.stop]

    @property
    def num_bytes(self) -> int:
        return (self.file.size if self.stop is None else self.stop) - self.start

    def __str__(self) -> str:
        path = without_secrets(self.file.path)
        return path if self.stop is None else f"{path}, bytes {self.start:,} to {self.stop:,}"


class ShardPlan(NamedTuple):
    """One piece of work, which does not depend on any other."""

    key: str
    parts: list[Part]

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def made_from(self) -> str:
        """The first and the last part, for people."""
        return " to ".join(dict.fromkeys(str(part) for part in (self.parts[0], self.parts[-1])))


def plan_shards(files: Sequence[SourceFile], recipe: Recipe, shard_bytes: int = SHARD_BYTES) -> list[ShardPlan]:
    """Cut a corpus into shards of about ``shard_bytes``: ranges of large files, and groups of small ones.

    A file that comes or goes changes its own group, not all that follow: a group also ends before files that a hash
    of their name selects.
    """
    groups: list[list[Part]] = []
    open_bytes: float = float("inf")  # of the group that may still grow
    options, cut_before = recipe.options, recipe.tokenizer.cut_before
    for file in files:
        if file.size > shard_bytes and can_be_cut(
            file, cut_before, options.document_separator, holds_records=options.records is not None
        ):
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


def choose_shard_bytes(files: Sequence[SourceFile], former: int | None) -> int:
    """The size of shards, which stays as it was while the corpus grows, or all shards would have to be made anew."""
    total = sum(file.size for file in files)
    if former and total <= 4 * MAX_SHARDS * former:
        return former
    size = SHARD_BYTES
    while total > MAX_SHARDS * size:
        size *= 2
    return size


def absolute(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The same files from whatever directory they were named."""
    files = [file if is_url(file.path) else file._replace(path=os.path.abspath(file.path)) for file in files]
    return sorted(files, key=lambda file: portable(file.path))


def _chance(path: str) -> float:
    """A number from 0 to below 1 that only the path decides."""
    return int.from_bytes(blake2b(os.fsencode(path), digest_size=8).digest(), "little") / 2**64
