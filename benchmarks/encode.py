"""text -> GPT-2 ids: megabytes a second of tiktoken, of gigatoken, and of token_array with and without gigatoken.

Run it with: python benchmarks/encode.py
"""

import random
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from statistics import median

import gigatoken
import numpy as np
from _measure import in_fresh_process, in_turns, print_table, print_versions, stdlib_text

from gpt2_lit import gpt2_tokenizer
from gpt2_lit.text import bpe
from gpt2_lit.text.bpe import RANKS_FILE
from gpt2_lit.text.tokenizer import token_array

TEXT_CHARS = 30_000_000
PIECE_CHARS = 1 << 16
REPEATS = 3

LETTERS = {
    "Latin": range(ord("a"), ord("z") + 1),
    "Greek": range(0x3B1, 0x3CA),
    "Cyrillic": range(0x430, 0x450),
    "Chinese": range(0x4E00, 0x5E00),
    "emoji": range(0x1F400, 0x1F500),
}


def mixed_text(num_chars: int) -> str:
    """Lines of made-up words, each line of one script; the n-th word of a script is n times as rare as its first."""
    rng = random.Random(0)
    odds = list(accumulate(1 / rank for rank in range(1, 5001)))
    scripts = [
        ["".join(map(chr, rng.choices(letters, k=rng.randint(1, 9)))) for _ in odds] for letters in LETTERS.values()
    ]
    lines = []
    while num_chars > 0:
        lines.append(" ".join(rng.choices(rng.choice(scripts), cum_weights=odds, k=100)) + "\n")
        num_chars -= len(lines[-1])
    return "".join(lines)


TEXTS = {"Python's sources, ASCII": stdlib_text, "five scripts": mixed_text}


def tiktoken_list() -> Callable[[str], object]:
    """As nanoGPT does it, data/openwebtext/prepare.py: a list of Python integers."""
    return gpt2_tokenizer().encode_ordinary


def tiktoken_numpy() -> Callable[[str], object]:
    return partial(gpt2_tokenizer().encode_to_numpy, disallowed_special=())


def gigatoken_alone() -> Callable[[str], object]:
    """In pieces, which is faster than at once; cut anywhere, so that some of its ids are not tiktoken's."""
    encode = gigatoken.Tokenizer.from_tiktoken(RANKS_FILE, pretokenizer="gpt2", special_tokens={}).encode
    return lambda text: [encode(text[start : start + PIECE_CHARS]) for start in range(0, len(text), PIECE_CHARS)]


def token_array_without_gigatoken() -> Callable[[str], np.ndarray]:
    bpe._gigatoken = lambda: None  # as where it is not installed
    return token_array_as_installed()


def token_array_as_installed() -> Callable[[str], np.ndarray]:
    return partial(token_array, gpt2_tokenizer())


WAYS = {
    "tiktoken, to a list": tiktoken_list,
    "tiktoken, to an array": tiktoken_numpy,
    "token_array, no gigatoken": token_array_without_gigatoken,
    "gigatoken alone": gigatoken_alone,
    "token_array": token_array_as_installed,
}


def speed(text_name: str, way: str) -> float:
    """Megabytes of UTF-8 a second of processor time, as every way has one thread.

    Run it in a process of its own: gigatoken remembers the words that it has met.
    """
    text = TEXTS[text_name](TEXT_CHARS)
    encode = WAYS[way]()
    encode("The first call sets up tables.")
    begun = time.process_time()
    encode(text)
    seconds = time.process_time() - begun
    return len(text.encode()) / 1e6 / seconds


def main() -> None:
    rows = []
    for text_name in TEXTS:
        runs = in_turns({way: partial(in_fresh_process, speed, text_name, way) for way in WAYS}, REPEATS)
        speeds = {way: median(repeats) for way, repeats in runs.items()}
        for way, megabytes in speeds.items():
            ratios = [f"{megabytes / speeds[other]:.2f}x" for other in ("tiktoken, to a list", "gigatoken alone")]
            rows.append([text_name, way, f"{megabytes:.0f}", *ratios])
    print_table(["text", "way", "MB/s", "tiktoken's speed", "gigatoken's speed"], rows)
    print_versions()


if __name__ == "__main__":
    main()
