"""text -> windows: seconds and memory to make the dataset, of the textbook's and of ours.

Run it with: python benchmarks/windows.py
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import tiktoken
import torch
from _measure import in_fresh_process, in_turns, peak_memory, print_table, print_versions, stdlib_text
from torch import Tensor
from torch.utils.data import Dataset

from gpt2_lit import GPTDatasetV1, gpt2_tokenizer

TEXT_CHARS = 30_000_000
CONTEXT_SIZE = 256
STRIDES = (CONTEXT_SIZE, CONTEXT_SIZE // 4)
REPEATS = 3


class TextbookDataset(Dataset):
    """GPTDatasetV1 as textbooks have it: every window is made at once, and kept as two tensors."""

    def __init__(self, txt: str, tokenizer: tiktoken.Encoding, context_size: int, stride: int) -> None:
        token_ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        self.input_ids = []
        self.target_ids = []
        for start in range(0, len(token_ids) - context_size, stride):
            self.input_ids.append(torch.tensor(token_ids[start : start + context_size]))
            self.target_ids.append(torch.tensor(token_ids[start + 1 : start + context_size + 1]))

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.input_ids[index], self.target_ids[index]


class Cost(NamedTuple):
    seconds: float
    megabytes: float  # at the peak, beyond the text, the imports and the tokenizer


def tokenizer_alone(txt: str, tokenizer: tiktoken.Encoding) -> list[int]:
    return tokenizer.encode_ordinary(txt)


def cost(make: Callable[..., object], *sizes: int) -> Cost:
    """What ``make(text, tokenizer, *sizes)`` takes. Run it in a process of its own: a peak never goes down."""
    tokenizer = gpt2_tokenizer()
    tokenizer.encode_ordinary("The first call sets up tables.")
    text = stdlib_text(TEXT_CHARS)
    peak_before, begun = peak_memory(), time.perf_counter()
    make(text, tokenizer, *sizes)
    return Cost(time.perf_counter() - begun, (peak_memory() - peak_before) / 1e6)


def main() -> None:
    measurements: dict[tuple[str, int | None], Callable[[], Cost]] = {
        ("tokenizer alone", None): partial(in_fresh_process, cost, tokenizer_alone)
    }
    for stride in STRIDES:
        measurements["textbook", stride] = partial(in_fresh_process, cost, TextbookDataset, CONTEXT_SIZE, stride)
        measurements["gpt2_lit", stride] = partial(in_fresh_process, cost, GPTDatasetV1, CONTEXT_SIZE, stride)
    costs = {
        name: Cost(*(median(values) for values in zip(*repeats, strict=True)))
        for name, repeats in in_turns(measurements, REPEATS).items()
    }

    alone = costs["tokenizer alone", None]
    rows = []
    for (way, stride), (seconds, megabytes) in costs.items():
        textbook = costs["textbook", stride] if stride else None
        rows.append(
            [
                way,
                str(stride or "-"),
                f"{seconds:.1f}",
                f"{seconds / alone.seconds:.2f}x",
                f"{textbook.seconds / seconds:.1f}x" if textbook else "-",
                f"{megabytes:.0f}",
                f"{megabytes / textbook.megabytes:.2f}x" if textbook else "-",
            ]
        )
    header = ["way", "stride", "seconds", "tokenizer's time", "textbook's speed", "extra MB", "textbook's extra MB"]
    print_table(header, rows)
    print_versions()


if __name__ == "__main__":
    main()
