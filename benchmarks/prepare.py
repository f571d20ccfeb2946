"""documents -> tokens on disk: MB of text a second, and memory, of gpt2-lit prepare and of what one would use instead.

Run it with: python benchmarks/prepare.py
"""

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from _measure import in_turns, installed_competitors, print_table, print_versions, run_and_watch, write_corpus

LARGE, SMALL = 100_000_000, 20_000_000  # bytes of text; what makes a Python integer of each token gets the smaller
REPEATS = 3
CORES = os.cpu_count() or 1
CONTEXT_SIZE = 256
END_OF_TEXT = 50256

# Each of these makes itself ready to work, imports included, and returns the work, which is timed.


def gigatoken_alone(corpus: Path, out: Path) -> Callable[[], object]:
    """The tokenizer's own rate: texts that are in memory already, to arrays that are thrown away."""
    import gigatoken

    from gpt2_lit.bpe import RANKS_FILE

    texts = list(documents(corpus))
    tokenizer = gigatoken.Tokenizer.from_tiktoken(RANKS_FILE, pretokenizer="gpt2", special_tokens={})
    return lambda: [len(tokenizer.encode(text)) for text in texts]


def gpt2_lit(corpus: Path, out: Path, num_processes: int = 1) -> Callable[[], object]:
    from gpt2_lit.bpe import gpt2_tokenizer, token_array
    from gpt2_lit.prepare import prepare

    token_array(gpt2_tokenizer(), "The first call loads the tables.")
    return partial(prepare, corpus, out, num_processes=num_processes, show_progress=False)


def gpt2_lit_one_file(corpus: Path, out: Path, num_processes: int) -> Callable[[], object]:
    text = out.with_suffix(".txt")
    text.write_text("\n".join(documents(corpus)), encoding="utf-8")
    return gpt2_lit(text, out, num_processes)


def gpt2_lit_without_gigatoken(corpus: Path, out: Path) -> Callable[[], object]:
    from gpt2_lit import bpe

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
        # The folder, not its files: with those each of thousands would be hashed.
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


# Name in the table: the function, what it takes besides, the bytes of text, the module that it needs.
WAYS = {
    "gigatoken alone": (gigatoken_alone, (), LARGE, "gigatoken"),
    "gpt2_lit": (gpt2_lit, (1,), LARGE, "gigatoken"),
    f"gpt2_lit, {CORES} processes": (gpt2_lit, (CORES,), LARGE, "gigatoken"),
    "gpt2_lit, one file": (gpt2_lit_one_file, (1,), LARGE, "gigatoken"),
    f"gpt2_lit, one file, {CORES} processes": (gpt2_lit_one_file, (CORES,), LARGE, "gigatoken"),
    "gpt2_lit without gigatoken": (gpt2_lit_without_gigatoken, (), SMALL, "tiktoken"),
    "textbook": (textbook, (), SMALL, "tiktoken"),
    "nanoGPT, small text": (nanogpt_small, (), SMALL, "tiktoken"),
    f"nanoGPT, {CORES} processes": (nanogpt_large, (), SMALL, "datasets"),
    f"datasets.map, {CORES} processes": (hugging_face, (), SMALL, "datasets"),
    f"litdata, {CORES} processes": (litdata, (), SMALL, "litdata"),
}


def seconds_of_work(way: str, corpus: str) -> float:
    make_ready, arguments, _, _ = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        work = make_ready(Path(corpus), Path(folder) / "tokens", *arguments)
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            work()
        return time.perf_counter() - begun


def watch(way: str, corpus: Path) -> tuple[float, float]:
    """Seconds and megabytes of one way, in processes of its own."""
    run = run_and_watch([__file__, way, str(corpus)])
    return float(run.output.split()[-1]), run.megabytes


def main() -> None:
    if len(sys.argv) > 1:
        print(seconds_of_work(*sys.argv[1:]))
        return
    installed = ["tiktoken", "gigatoken", *installed_competitors()]
    with tempfile.TemporaryDirectory() as folder:
        corpora = {size: Path(folder) / str(size) for size in (LARGE, SMALL)}
        megabytes = {size: write_corpus(corpus, size) for size, corpus in corpora.items()}
        measurements = {
            way: partial(watch, way, corpora[size]) for way, (_, _, size, module) in WAYS.items() if module in installed
        }
        results = in_turns(measurements, REPEATS)
    rates = {
        way: megabytes[WAYS[way][2]] / median(seconds for seconds, _ in repeats) for way, repeats in results.items()
    }
    rows = [
        [
            way,
            f"{megabytes[WAYS[way][2]]:.0f}",
            f"{rate:.1f}",
            f"{rate / rates['nanoGPT, small text']:.1f}x",
            f"{rate / rates['gigatoken alone']:.0%}",
            f"{median(peak for _, peak in results[way]):.0f}",
        ]
        for way, rate in rates.items()
    ]
    header = ["way", "MB of text", "MB/s", "nanoGPT's rate", "gigatoken's rate", "peak memory, MB"]
    print_table(header, rows, num_names=1)
    print_versions()


if __name__ == "__main__":
    main()
