"""windows -> batches: batches a second, shuffled, in one process, of four loaders.

Run it with: python benchmarks/batches.py
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _measure import in_turns, print_table, print_versions, stdlib_text
from torch import Tensor
from torch.utils.data import DataLoader
from windows import TextbookDataset

from gpt2_lit import GPTDataModule, dataloader_v1, gpt2_tokenizer

TEXT_CHARS = 4_000_000
SHAPES = ((3, 5), (64, 128), (16, 1024))  # windows in a batch, tokens in a window
REPEATS = 7
SECONDS = 0.3  # at least, of one measurement


class RandomStarts:
    """Batches as nanoGPT makes them: from random places of an array of uint16, without end.

    Source: karpathy/nanoGPT, train.py: get_batch.
    """

    def __init__(self, token_ids: np.ndarray, batch_size: int, context_size: int) -> None:
        self.token_ids = token_ids
        self.batch_size = batch_size
        self.context_size = context_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        tokens, length = self.token_ids, self.context_size
        while True:
            starts = torch.randint(len(tokens) - length, (self.batch_size,))
            yield (
                torch.stack([torch.from_numpy(tokens[i : i + length].astype(np.int64)) for i in starts]),
                torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + length].astype(np.int64)) for i in starts]),
            )


def loaders(text: str, batch_size: int, context_size: int) -> dict[str, Iterable]:
    """The four ways to the same batches, by name."""
    tokenizer = gpt2_tokenizer()
    textbook = TextbookDataset(text, tokenizer, context_size, stride=context_size)
    token_ids = np.array(tokenizer.encode_ordinary(text), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        file.write_text(text, encoding="ascii")
        data = GPTDataModule(file, context_size=context_size, batch_size=batch_size, val_fraction=0)
        data.setup("fit")
    return {
        "textbook": DataLoader(textbook, batch_size, shuffle=True, drop_last=True),
        "nanoGPT": RandomStarts(token_ids, batch_size, context_size),
        "dataloader_v1": dataloader_v1(text, batch_size, context_size, stride=context_size, shuffle=True),
        "GPTDataModule": data.train_dataloader(),
    }


def batches_per_second(loader: Iterable) -> float:
    """Over as many epochs as it takes; what comes before the first batch of an epoch, and that batch, do not count."""
    num_batches, seconds = 0, 0.0
    while seconds < SECONDS:
        batches = iter(loader)
        next(batches)
        begun = time.perf_counter()
        for _ in batches:
            num_batches += 1
            if time.perf_counter() - begun > SECONDS:
                break
        seconds += time.perf_counter() - begun
    return num_batches / seconds


def main() -> None:
    text = stdlib_text(TEXT_CHARS)
    rows = []
    for batch_size, context_size in SHAPES:
        measurements = {
            name: partial(batches_per_second, loader)
            for name, loader in loaders(text, batch_size, context_size).items()
        }
        speeds = {name: median(repeats) for name, repeats in in_turns(measurements, REPEATS).items()}
        for name, speed in speeds.items():
            rows.append(
                [
                    f"{batch_size} x {context_size}",
                    name,
                    f"{speed:,.0f}",
                    f"{speed * batch_size * context_size / 1e6:,.1f}",
                    f"{speed / speeds['textbook']:.2f}x",
                    f"{speed / speeds['nanoGPT']:.2f}x",
                ]
            )
    header = ["batch", "loader", "batches/s", "million tokens/s", "textbook's speed", "nanoGPT's speed"]
    print_table(header, rows)
    print_versions()


if __name__ == "__main__":
    main()
