"""tokens -> batches: batches a second, shuffled, in one process, of our loaders and of what one would use instead.

Run it with: python benchmarks/batches.py
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _measure import batches_per_second, in_turns, installed_competitors, print_table, print_versions, stdlib_text
from torch import Tensor
from torch.utils.data import DataLoader
from windows import TextbookDataset

from gpt2_lit import GPTDataModule, dataloader_v1, gpt2_tokenizer
from gpt2_lit.store.prepare import prepare
from gpt2_lit.text.tokenizer import token_array

TEXT_CHARS = 4_000_000  # one shard, 1.9 million tokens
STORE_CHARS = 100_000_000  # of the store with six shards, 48 million tokens
SHAPES = ((2, 4), (3, 5), (64, 128), (16, 256), (16, 1024))  # windows in a batch, tokens in a window
REPEATS = 5


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


class InputsAndTargets:
    """The two tensors of each batch, from a loader of windows with one token more."""

    def __init__(self, loader: Iterable, of_batch: Callable[..., Tensor] = lambda batch: batch) -> None:
        self.loader = loader
        self.of_batch = of_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            tokens = self.of_batch(batch)
            yield tokens[:, :-1], tokens[:, 1:]


class Copies:
    """The limit of the memory: two batches that are there already, copied."""

    def __init__(self, batch_size: int, context_size: int) -> None:
        self.batch = torch.zeros(2, batch_size, context_size, dtype=torch.int64).unbind()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self.batch
        while True:
            yield inputs.clone(), targets.clone()


def over_store(store: Path, batch_size: int, context_size: int) -> DataLoader:
    data = GPTDataModule(store, context_size=context_size, batch_size=batch_size, val_fraction=0)
    data.setup("fit")
    return data.train_dataloader()


def litdata(token_ids: np.ndarray, directory: Path, batch_size: int, context_size: int) -> Iterable:
    """Its TokensLoader over one chunk, as its documentation has it."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    chunks = directory / "litdata"
    if not chunks.exists():
        cache = Cache(str(chunks), chunk_bytes="64MB", item_loader=TokensLoader())
        cache[0] = torch.from_numpy(token_ids.astype(np.int64))
        cache.done()
        cache.merge()
    windows = StreamingDataset(
        str(chunks), item_loader=TokensLoader(block_size=context_size + 1), shuffle=True, drop_last=True
    )
    return InputsAndTargets(StreamingDataLoader(windows, batch_size=batch_size, drop_last=True))


def streaming(token_ids: np.ndarray, directory: Path, batch_size: int, context_size: int) -> Iterable:
    """MosaicML's: a sample for each window."""
    from streaming import MDSWriter, StreamingDataset

    samples = str(directory / f"streaming-{batch_size}-{context_size}")
    length = context_size + 1
    with MDSWriter(out=samples, columns={"tokens": f"ndarray:uint16:{length}"}) as writer:
        for start in range(0, len(token_ids) - length, context_size):
            writer.write({"tokens": token_ids[start : start + length]})
    windows = StreamingDataset(local=samples, shuffle=True, batch_size=batch_size)
    return InputsAndTargets(
        DataLoader(windows, batch_size, drop_last=True), lambda batch: batch["tokens"].to(torch.int64)
    )


def datasets(token_ids: np.ndarray, directory: Path, batch_size: int, context_size: int) -> Iterable:
    """Hugging Face's: a row for each window."""
    from datasets import Dataset

    starts = range(0, len(token_ids) - context_size, context_size)
    rows = [token_ids[start : start + context_size + 1] for start in starts]
    windows = Dataset.from_dict({"tokens": rows}).with_format("torch")
    return InputsAndTargets(
        DataLoader(windows, batch_size, shuffle=True, drop_last=True), lambda batch: batch["tokens"]
    )


def loaders(directory: Path, installed: list[str], batch_size: int, context_size: int) -> dict[str, Iterable]:
    """The ways to the same batches, by name."""
    shape = batch_size, context_size
    text, tokenizer = (directory / "small.txt").read_text(encoding="ascii"), gpt2_tokenizer()
    textbook = TextbookDataset(text, tokenizer, context_size, stride=context_size)
    token_ids = np.memmap(directory / "small.bin", dtype=np.uint16, mode="r")
    return {
        "GPTDataModule": over_store(directory / "small", *shape),
        "GPTDataModule, 6 shards": over_store(directory / "large", *shape),
        "dataloader_v1": dataloader_v1(text, *shape, stride=context_size, shuffle=True),
        "textbook": DataLoader(textbook, batch_size, shuffle=True, drop_last=True),
        "nanoGPT": RandomStarts(token_ids, *shape),
        **{name: globals()[name](np.asarray(token_ids), directory, *shape) for name in installed},
        "copy of a batch": Copies(*shape),
    }


def make_stores(directory: Path) -> None:
    for name, num_chars in (("small", TEXT_CHARS), ("large", STORE_CHARS)):
        file = directory / f"{name}.txt"
        file.write_text(stdlib_text(num_chars), encoding="ascii")
        prepare(file, directory / name, show_progress=False)
    token_array(gpt2_tokenizer(), (directory / "small.txt").read_text(encoding="ascii")).tofile(directory / "small.bin")


def main() -> None:
    installed = installed_competitors()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_stores(directory)
        for shape in SHAPES:
            measurements = {
                name: partial(batches_per_second, loader)
                for name, loader in loaders(directory, installed, *shape).items()
            }
            speeds = {name: median(repeats) for name, repeats in in_turns(measurements, REPEATS).items()}
            for name, speed in speeds.items():
                rows.append(
                    [
                        f"{shape[0]} x {shape[1]}",
                        name,
                        f"{speed:,.0f}",
                        f"{speed * shape[0] * shape[1] / 1e6:,.2f}",
                        f"{speeds['GPTDataModule'] / speed:.2f}x",
                        f"{speed / speeds['copy of a batch']:.1%}",
                    ]
                )
            print(f"{shape[0]} x {shape[1]} is measured", file=sys.stderr)
    print_table(["batch", "loader", "batches/s", "Mtoken/s", "GPTDataModule is faster", "of a copy's speed"], rows)
    print_versions()


if __name__ == "__main__":
    main()
