"""1, 10, 100 times the corpus -> seconds and memory: what grows with it, and what does not.

Run it with: python benchmarks/growth.py
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from _measure import in_turns, print_table, print_versions, run_and_watch, write_corpus

SIZES = (3_000_000, 30_000_000, 300_000_000)  # bytes of text
SPARSE_TOKENS = 10**12  # of a file of ids that has holes only
CONTEXT_SIZE, BATCH_SIZE = 1024, 16
REPEATS = 3


def prepare(corpus: str, cache: str) -> list[float]:
    """Seconds to encode a corpus, with all cores."""
    from gpt2_lit.store.prepare import prepare as make_store

    store = tempfile.mkdtemp(dir=cache)
    return [seconds(lambda: make_store(corpus, store, show_progress=False))]


def start(source: str, cache: str) -> list[float]:
    """Seconds to see that a text has not changed and open its store, to open that alone, and then to the first batch.

    And to resume in the middle of a later epoch.
    """
    from gpt2_lit import GPTDataModule
    from gpt2_lit.data.order import Position, WindowSampler

    def opened(source: str) -> tuple[GPTDataModule, float]:
        data = GPTDataModule(source, context_size=CONTEXT_SIZE, batch_size=BATCH_SIZE, cache_dir=cache, val_fraction=0)
        return data, seconds(lambda: data.setup("fit"))

    data, looking = opened(source)
    assert data.store
    data, opening = opened(data.store.path)
    first_batch = seconds(lambda: next(iter(data.train_dataloader())))
    dataset = data.train_dataset
    assert dataset
    middle = Position(epoch=5, window=len(dataset) // 2)
    sampler = WindowSampler(len(dataset), BATCH_SIZE, position=lambda: middle)
    return [looking, opening, first_batch, seconds(lambda: dataset[next(iter(sampler))])]


def seconds(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        function()
    return time.perf_counter() - begun


def watch(step: Callable, source: Path, cache: Path) -> list[float]:
    """The seconds of a step in a process of its own, and then the megabytes."""
    run = run_and_watch([__file__, step.__name__, str(source), str(cache)])
    return [*map(float, run.output.split()), run.megabytes]


def main() -> None:
    if len(sys.argv) > 1:
        print(*globals()[sys.argv[1]](*sys.argv[2:]))
        return
    measurements, names = {}, {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for size in SIZES:
            corpus = directory / f"corpus-{size}"
            names[corpus] = f"{write_corpus(corpus, size):.0f} MB in {len(list(corpus.iterdir())):,} files"
            watch(start, corpus, directory / "cache")  # which encodes it
            measurements["prepare", corpus] = partial(watch, prepare, corpus, directory)
            measurements["start", corpus] = partial(watch, start, corpus, directory / "cache")
        ids = directory / "sparse.bin"
        names[ids] = f"{SPARSE_TOKENS:.0e} tokens in a .bin"
        with open(ids, "wb") as file:
            os.truncate(file.fileno(), 2 * SPARSE_TOKENS)
        measurements["start", ids] = partial(watch, start, ids, directory / "cache")
        results = {
            step: [median(values) for values in zip(*repeats, strict=True)]
            for step, repeats in in_turns(measurements, REPEATS).items()
        }
    rows = []
    for source, name in names.items():
        preparing = results.get(("prepare", source))
        *starting, megabytes = results["start", source]
        rows.append(
            [
                name,
                f"{preparing[0]:.2f}" if preparing else "-",
                f"{preparing[1]:.0f}" if preparing else "-",
                *(f"{1000 * step:.1f}" for step in starting),
                f"{megabytes:.0f}",
            ]
        )
    header = [
        "source",
        "prepare, s",
        "its peak memory, MB",
        "open the text again, ms",
        "open the store, ms",
        "first batch, ms",
        "resume in epoch 5, ms",
        "peak memory, MB",
    ]
    print_table(header, rows, num_names=1)
    print_versions()


if __name__ == "__main__":
    main()
