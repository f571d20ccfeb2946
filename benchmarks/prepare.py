"""documents -> tokens on disk: MB of text a second, and memory, of gpt2-lit prepare and of what one would use instead.

Run it with: python benchmarks/prepare.py
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from _measure import in_turns, installed_competitors, print_table, print_versions, run_and_watch, write_corpus

LARGE, SMALL = 100_000_000, 10_000_000  # bytes of text; what makes a Python integer of each token gets the smaller
REPEATS = 3
CORES = os.cpu_count() or 1
CONTEXT_SIZE = 256
END_OF_TEXT = 50256

# Each of these makes itself ready to work, imports included, and returns the work, which is timed.


def gigatoken_alone(corpus: Path, out: Path) -> Callable[[], object]:
    """The tokenizer's own rate: texts that are in memory already, to arrays that are thrown away."""
    import gigatoken

    from gpt2_lit.text.bpe import RANKS_FILE

    texts = list(documents(corpus))
    tokenizer = gigatoken.Tokenizer.from_tiktoken(RANKS_FILE, pretokenizer="gpt2", special_tokens={})
    return lambda: [len(tokenizer.encode(text)) for text in texts]


def gpt2_lit(corpus: Path, out: Path, num_processes: int = 1) -> Callable[[], object]:
    from gpt2_lit.store.prepare import prepare
    from gpt2_lit.text.bpe import gpt2_tokenizer
    from gpt2_lit.text.tokenizer import token_array

    token_array(gpt2_tokenizer(), "The first call loads the tables.")
    return partial(prepare, corpus, out, num_processes=num_processes, show_progress=False)


def gpt2_lit_one_file(corpus: Path, out: Path, num_processes: int) -> Callable[[], object]:
    text = out.with_suffix(".txt")
    with open(text, "w", encoding="utf-8") as file:
        file.writelines(documents(corpus))
    return gpt2_lit(text, out, num_processes)


def gpt2_lit_without_gigatoken(corpus: Path, out: Path) -> Callable[[], object]:
    from gpt2_lit.text import bpe

    bpe._gigatoken = lambda: None
    return gpt2_lit(corpus, out)


def textbook(corpus: Path, out: Path) -> Callable[[], object]:
    """One list of integers, and two tensors for each window; nothing goes to the disk."""
    from windows import TextbookDataset

    from gpt2_lit import gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    return lambda: TextbookDataset("<|endoftext|>".join(documents(corpus)), tokenizer, CONTEXT_SIZE, CONTEXT_SIZE)


def nanogpt_small(corpus: Path, out: Path) -> Callable[[], object]:
    """As nanoGPT prepares a small text. Source: karpathy/nanoGPT, data/shakespeare/prepare.py."""
    import numpy as np

    from gpt2_lit import gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    text = "".join(documents(corpus))
    return lambda: np.array(tokenizer.encode_ordinary(text), dtype=np.uint16).tofile(out)


def hugging_face(corpus: Path, out: Path) -> Callable[[], object]:
    """datasets.map, which leaves the ids in Arrow files."""
    import datasets

    from gpt2_lit import gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    datasets.disable_progress_bars()

    def work() -> datasets.Dataset:
        # The directory, not its files: with those each of thousands would be hashed.
        dataset = datasets.load_dataset(
            "text", data_dir=str(corpus), sample_by="document", split="train", cache_dir=str(out) + ".cache"
        )
        return dataset.map(partial(encode_row, tokenizer), remove_columns=["text"], num_proc=CORES)

    return work


def nanogpt_large(corpus: Path, out: Path) -> Callable[[], object]:
    """As nanoGPT prepares a large one. Source: karpathy/nanoGPT, data/openwebtext/prepare.py."""
    import numpy as np

    make_rows = hugging_face(corpus, out)

    def work() -> None:
        rows = make_rows()
        tokens = np.memmap(out, dtype=np.uint16, mode="w+", shape=(int(np.sum(rows["len"], dtype=np.uint64)),))
        start, num_parts = 0, min(1024, len(rows))
        for part in range(num_parts):
            batch = rows.shard(num_shards=num_parts, index=part, contiguous=True).with_format("numpy")
            ids = np.concatenate(batch["ids"])
            tokens[start : start + len(ids)] = ids
            start += len(ids)
        tokens.flush()

    return work


def encode_row(tokenizer, row: dict) -> dict:
    ids = [*tokenizer.encode_ordinary(row["text"]), END_OF_TEXT]
    return {"ids": ids, "len": len(ids)}


def litdata(corpus: Path, out: Path) -> Callable[[], object]:
    """As its documentation prepares texts for language models."""
    from litdata import TokensLoader, optimize

    return partial(
        optimize,
        fn=tensor_of_file,
        inputs=sorted(map(str, corpus.iterdir())),
        output_dir=str(out),
        num_workers=CORES,
        chunk_bytes="64MB",
        item_loader=TokensLoader(),
        verbose=False,
    )


def tensor_of_file(file: str) -> Iterator:
    import torch

    from gpt2_lit import gpt2_tokenizer

    yield torch.tensor([*gpt2_tokenizer().encode_ordinary(Path(file).read_text(encoding="utf-8")), END_OF_TEXT])


def documents(corpus: Path) -> Iterator[str]:
    return (file.read_text(encoding="utf-8") for file in sorted(corpus.iterdir()))


NANOGPT = "nanoGPT, small text"
# Name in the table: the function, what it takes besides, the bytes of text, the module that it needs.
WAYS = {
    "gigatoken alone": (gigatoken_alone, (), LARGE, "gigatoken"),
    "gpt2_lit": (gpt2_lit, (1,), LARGE, "gigatoken"),
    f"gpt2_lit, {CORES} processes": (gpt2_lit, (CORES,), LARGE, "gigatoken"),
    "gpt2_lit, one file": (gpt2_lit_one_file, (1,), LARGE, "gigatoken"),
    f"gpt2_lit, one file, {CORES} processes": (gpt2_lit_one_file, (CORES,), LARGE, "gigatoken"),
    "gpt2_lit without gigatoken": (gpt2_lit_without_gigatoken, (), SMALL, "tiktoken"),
    "textbook": (textbook, (), SMALL, "tiktoken"),
    NANOGPT: (nanogpt_small, (), SMALL, "tiktoken"),
    f"nanoGPT, {CORES} processes": (nanogpt_large, (), SMALL, "datasets"),
    f"datasets.map, {CORES} processes": (hugging_face, (), SMALL, "datasets"),
    f"litdata, {CORES} processes": (litdata, (), SMALL, "litdata"),
}


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float  # of all processes, which others on the machine disturb less
    megabytes: float  # at the peak, of all processes


def work_on(way: str, corpus: str) -> None:
    """Do it, and print the seconds."""
    make_ready, arguments, _, _ = WAYS[way]
    with tempfile.TemporaryDirectory() as directory:
        work = make_ready(Path(corpus), Path(directory) / "tokens", *arguments)
        before = os.times()
        with contextlib.redirect_stdout(io.StringIO()):
            work()
        *cpu, elapsed = (now - then for now, then in zip(os.times(), before, strict=True))
    print(elapsed, sum(cpu))


def cost(way: str, corpus: Path) -> Cost:
    """What a way costs, in processes of its own."""
    run = run_and_watch([__file__, way, str(corpus)])
    elapsed, cpu = map(float, run.output.split()[-2:])
    return Cost(elapsed, cpu, run.megabytes)


def main() -> None:
    if len(sys.argv) > 1:
        work_on(*sys.argv[1:])
        return
    installed = ["tiktoken", "gigatoken", *installed_competitors()]
    with tempfile.TemporaryDirectory() as directory:
        corpora = {size: Path(directory) / str(size) for size in (LARGE, SMALL)}
        megabytes = {size: write_corpus(corpus, size) for size, corpus in corpora.items()}
        measurements = {
            way: partial(cost, way, corpora[size]) for way, (_, _, size, module) in WAYS.items() if module in installed
        }
        costs = {
            way: Cost(*map(median, zip(*repeats, strict=True)))
            for way, repeats in in_turns(measurements, REPEATS).items()
        }
    sizes = {way: megabytes[WAYS[way][2]] for way in costs}
    rates = {way: sizes[way] / seconds for way, (seconds, _, _) in costs.items()}
    cpu_rates = {way: sizes[way] / cpu_seconds for way, (_, cpu_seconds, _) in costs.items()}
    rows = [
        [
            way,
            f"{sizes[way]:.0f}",
            f"{rates[way]:.1f}",
            f"{rates[way] / rates[NANOGPT]:.1f}x",
            f"{cpu_rates[way]:.1f}",
            f"{cpu_rates[way] / cpu_rates[NANOGPT]:.1f}x",
            f"{cpu_rates[way] / cpu_rates['gigatoken alone']:.0%}",
            f"{costs[way].megabytes:.0f}",
        ]
        for way in costs
    ]
    header = [
        "way",
        "MB of text",
        "MB/s",
        "nanoGPT's",
        "MB a CPU second",
        "nanoGPT's",
        "gigatoken's",
        "peak memory, MB",
    ]
    print_table(header, rows, num_names=1)
    print_versions()


if __name__ == "__main__":
    main()
