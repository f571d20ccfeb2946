"""corpus -> counts: how often each id stands in it, tokens that one can read, and windows as text."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile
from typing import Any, Literal, NamedTuple
from unicodedata import combining, east_asian_width

import numpy as np
from jaxtyping import Int64, Integer

from gpt2_lit.data.windows import IGNORED, Batch, DocumentBatch, Windows
from gpt2_lit.errors import InvalidValue
from gpt2_lit.text.tokenizer import Tokenizer

# Bounds, so that the cost does not grow with the corpus: 8,388,608 tokens in 512 reads, which a cold disk can do.
RUNS, RUN_TOKENS = 512, 2**14
SHOWN_WINDOWS, SHOWN_TOKENS = 5, 32
CHARACTER_BYTES = 4  # of UTF-8, at most: so many tokens one character may be
LABEL_CHARACTERS = 256  # no token of GPT-2 has more, but one of words may be a whole file


def spread(num_things: int, at_most: int) -> list[int]:
    """Evenly spaced whole numbers from 0 to num_things - 1, all of them where there are not too many.

    Example:
        >>> spread(4, 9), spread(11, 3)
        ([0, 1, 2, 3], [0, 5, 10])
    """
    return np.linspace(0, num_things - 1, min(num_things, at_most)).round().astype(int).tolist()


def sample(windows: Any) -> Iterator[Batch | DocumentBatch]:
    """All windows of a split, in runs of neighbours; of a large one 512 runs of 16,384 tokens, evenly spaced."""
    run = max(RUN_TOKENS // max(windows[[0]].input_ids.numel(), 1), 1)
    starts: Iterable[int] = range(0, len(windows), run)
    if len(windows) > RUNS * run:
        starts = spread(len(windows) - run + 1, RUNS)
    return (windows[list(range(start, min(start + run, len(windows))))] for start in starts)


def token_counts(
    windows: Any, vocab_size: int, part: Literal["input_ids", "target_ids"] = "input_ids", tokenizer: str = ""
) -> Int64[np.ndarray, " V"]:
    """How often each id stands in the windows of a split, or in the :func:`sample` of a large one.

    Example:
        >>> from gpt2_lit.data.windows import TokenWindows
        >>> token_counts(TokenWindows(np.array([3, 1, 3, 0]), context_size=3, stride=1), vocab_size=5).tolist()
        [0, 1, 0, 2, 0]
    """
    counts = np.zeros(vocab_size, np.int64)
    for batch in sample(windows):
        counts += np.bincount(checked(_ids_of(batch, part), vocab_size, tokenizer), minlength=vocab_size)
    return counts


def _ids_of(batch: Batch | DocumentBatch, part: str) -> Int64[np.ndarray, " _"]:
    """Inputs without padding, which is what comes after the last target that counts; or targets that count."""
    is_kept = batch.target_ids != IGNORED
    is_text = is_kept if part == "target_ids" else is_kept.flip(-1).cumsum(-1).flip(-1) > 0
    return getattr(batch, part)[is_text].numpy()


def checked(ids: Integer[np.ndarray, "..."], vocab_size: int, tokenizer: str = "") -> Integer[np.ndarray, "..."]:
    """The same ids, all of which are in the vocabulary; else an InvalidValue, which names the tokenizer."""
    if ids.size and ids.max() >= vocab_size:
        vocabulary = f"the vocabulary of {tokenizer}" if tokenizer else "the vocabulary"
        raise InvalidValue(
            f"the source holds the id {ids.max()}, and {vocabulary} ends at {vocab_size - 1}. Was it written by "
            "another tokenizer, or as another data.token_dtype?"
        )
    return ids


def most_frequent(counts: Int64[np.ndarray, " V"], num: int) -> Int64[np.ndarray, " _"]:
    """The ids with the largest counts, largest first, without those that do not occur.

    Example:
        >>> most_frequent(np.array([0, 2, 5, 2]), 9).tolist()
        [2, 1, 3]
    """
    ids = np.argsort(-counts, kind="stable")[:num]
    return ids[counts[ids] > 0]


def unigram_perplexity(counts: Int64[np.ndarray, " V"], targets: Int64[np.ndarray, " V"]) -> float:
    """The perplexity of predicting tokens by how often each is in a text alone; ``targets`` counts those to predict.

    Every token is counted once more than it occurs, so that none is impossible.

    Example:
        >>> round(unigram_perplexity(np.array([1, 0, 1]), np.array([1, 0, 1])), 6)  # both have a share of 2 / 5
        2.5
    """
    shares = (counts + 1) / (counts + 1).sum()
    return float(np.exp(-np.average(np.log(shares), weights=targets)))


def bytes_per_target(data: Any, split: str) -> float | None:
    """Bytes of text for each target of a split's windows, in UTF-8; ends of text have none.

    None where the data has no such split, or a tokenizer that does not know its text.
    """
    windows, tokenizer = getattr(data, f"{split}_dataset", None), getattr(data, "tokenizer", None)
    if not isinstance(windows, Windows) or not isinstance(tokenizer, Tokenizer) or tokenizer.end_of_text < 0:
        return None
    num_tokens = num_bytes = 0
    for batch in sample(windows):
        targets = _ids_of(batch, "target_ids")
        num_tokens += len(targets)
        num_bytes += len(tokenizer.decode_bytes(targets[targets != tokenizer.end_of_text]))
    return num_bytes / num_tokens if num_tokens else None


def visible(text: str) -> str:
    r"""A text on one line: line ends, other invisible characters and backslashes are escapes.

    Example:
        >>> print(visible("a b\n"))
        a b\n
    """
    return "".join(char if char.isprintable() and char != "\\" else repr(char)[1:-1] for char in text)


def pieces(decode: Callable[[list[int]], str], token_ids: list[int]) -> list[list[int]]:
    """The tokens in the smallest groups that are text: the bytes of one character may be several tokens.

    Example:
        >>> from gpt2_lit import gpt2_tokenizer
        >>> pieces(gpt2_tokenizer().decode, gpt2_tokenizer().encode("a\u732b"))
        [[64], [163, 234, 104]]
    """
    found, at = [], 0
    while at < len(token_ids):
        sizes = range(1, min(CHARACTER_BYTES, len(token_ids) - at) + 1)
        size = next((size for size in sizes if "\ufffd" not in decode(token_ids[at : at + size])), 1)
        found.append(token_ids[at : at + size])
        at += size
    return found


def token_label(decode: Callable[[list[int]], str], *token_ids: int) -> str:
    r"""A token, or several that are one character, on one line, with dots for spaces; the id where it is not text.

    Example:
        >>> from gpt2_lit import gpt2_tokenizer
        >>> [token_label(gpt2_tokenizer().decode, *token_ids) for token_ids in ([464], [198], [163], [163, 234, 104])]
        ['The', '\\n', 'id 163', '\u732b']
    """
    text = decode(list(token_ids))
    if not text or "\ufffd" in text:  # part of the bytes of a character
        return f"id {token_ids[0]}"
    label = visible(text[: LABEL_CHARACTERS + 1]).replace(" ", "\u00b7")
    return label if len(label) <= LABEL_CHARACTERS else f"{label[:LABEL_CHARACTERS]}..."


class Corpus(NamedTuple):
    """A tokenizer's way back to text, the windows that are trained on, and the tokenizer's way there."""

    decode: Callable[[list[int]], str]
    windows: Any  # windows[[3, 1]] is a Batch
    encode: Callable[[str], list[int]] | None = None


def windows_as_text(corpus: Corpus) -> str:
    """Some training windows in Markdown, the target of each token below it."""
    rows = spread(len(corpus.windows), SHOWN_WINDOWS)
    inputs, targets = corpus.windows[rows][:2]
    parts = [
        f"{len(rows)} of {len(corpus.windows):,} training windows, the first {min(inputs.shape[1], SHOWN_TOKENS)} of "
        f"{inputs.shape[1]:,} tokens of each. Below each token stands its target, if it counts. A dot is a space."
    ]
    for row, input_ids, target_ids in zip(rows, inputs.tolist(), targets.tolist(), strict=True):
        lines, above, below = [], "", ""
        for pair in _labels_of(corpus.decode, input_ids, target_ids):
            width = max(map(columns, pair)) + 2
            if columns(above) + width > 110:
                lines += [f"    input   {above}", f"    target  {below}", "    "]
                above, below = "", ""
            above, below = (
                line + label + " " * (width - columns(label)) for line, label in zip((above, below), pair, strict=True)
            )
        lines += [f"    input   {above}", f"    target  {below}"]
        parts.append(f"**window {row:,}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _labels_of(
    decode: Callable[[list[int]], str], input_ids: list[int], target_ids: list[int]
) -> Iterator[tuple[str, str]]:
    """Each character or token of the beginning of a window, with what comes next, if that counts."""
    end = 0
    for piece in pieces(decode, input_ids[: SHOWN_TOKENS + CHARACTER_BYTES]):
        if end >= SHOWN_TOKENS:
            return
        end += len(piece)
        following = list(takewhile(lambda target: target != IGNORED, target_ids[end - 1 :][:CHARACTER_BYTES]))
        label = token_label(decode, *pieces(decode, following)[0]) if following else ""
        yield token_label(decode, *piece), label


def columns(text: str) -> int:
    """How many columns of letters of one width a text takes: characters of Chinese, for one, take two."""
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def labels_of_tokens(corpus: Corpus, token_ids: Iterable[int]) -> list[str]:
    """The tokens, each on one line; of one that is a part of characters, those in which the corpus has it most."""
    labels = {token_id: token_label(corpus.decode, token_id) for token_id in token_ids}
    if any(label == f"id {token_id}" for token_id, label in labels.items()):
        for token_id, characters in _characters_of(corpus).items():
            if labels.get(token_id) == f"id {token_id}":
                labels[token_id] = "part of " + " ".join(one for one, _ in characters.most_common(3))
    return list(labels.values())


def _characters_of(corpus: Corpus) -> dict[int, Counter[str]]:
    """For each token that is a part of characters: how often of which, in the first 65,536 tokens of the sample."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for batch in islice(sample(corpus.windows), 4):
        for row in batch.input_ids.tolist():
            for piece in pieces(corpus.decode, row):
                for token_id in piece if len(piece) > 1 else []:
                    found[token_id][token_label(corpus.decode, *piece)] += 1
    return found


def as_block(text: str) -> str:
    """A text in Markdown that is shown line by line as it is."""
    return "\n".join(f"    {visible(line)}" for line in text.split("\n"))
