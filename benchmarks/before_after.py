"""a former revision, the tree at hand -> what a change costs: both in turns in one run, over public names alone.

Run it with: python benchmarks/before_after.py REVISION
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from _measure import in_turns, print_table, print_versions, stdlib_text, write_corpus

ROOT = Path(__file__).parents[1]
SHAPES = ((2, 4), (3, 5), (64, 128), (16, 256), (16, 1024))  # windows in a batch, tokens in a window
TEXT_CHARS = {"one shard": 4_000_000, "6 shards": 100_000_000}
CORPUS_BYTES = 30_000_000
REPEATS = 3
SECONDS = 0.2  # at least, of one measurement of batches
MEGABYTE = "MB"
Figures = dict[str, float]


def batches(directory: str) -> Figures:
    """Microseconds of a batch, of GPTDataModule over stores of two sizes and of dataloader_v1."""
    import torch

    from gpt2_lit import GPTDataModule, dataloader_v1

    torch.set_num_threads(1)
    figures = {}
    text = Path(directory, "one shard.txt").read_text(encoding="ascii")
    for size, length in SHAPES:
        for name in TEXT_CHARS:
            source = Path(directory, f"{name}.txt")
            data = GPTDataModule(
                source, context_size=length, batch_size=size, val_fraction=0, cache_dir=f"{directory}/{os.getpid()}"
            )
            data.prepare_data()
            data.setup("fit")
            figures[f"batch of {size} x {length}, {name}, us"] = microseconds_per_batch(data.train_dataloader())
        loader = dataloader_v1(text, size, length, stride=length, shuffle=True)
        figures[f"batch of {size} x {length}, dataloader_v1, us"] = microseconds_per_batch(loader)
    return figures


def microseconds_per_batch(loader: object) -> float:
    num_batches, seconds = 0, 0.0
    while seconds < SECONDS:
        iterator = iter(loader)  # pyright: ignore
        next(iterator)
        begun = time.process_time()
        for _ in iterator:
            num_batches += 1
            if num_batches % 16 == 0 and time.process_time() - begun > SECONDS:
                break
        seconds += time.process_time() - begun
    return 1e6 * seconds / num_batches


def windows(directory: str, stride: str) -> Figures:
    """CPU seconds of making the windows of 30 MB of text, and the memory beyond the text."""
    from gpt2_lit import GPTDatasetV1, gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    tokenizer.encode_ordinary("The first call sets up tables.")
    text = stdlib_text(30_000_000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = cpu_seconds(lambda: GPTDatasetV1(text, tokenizer, 256, int(stride)))
    name = f"windows of 30 MB, stride {stride}"
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    return {f"{name}, s": seconds, f"{name}, {MEGABYTE}": extra * 1024 / 1e6}


def growth(directory: str) -> Figures:
    """CPU seconds of encoding a corpus, of opening it again, and of its first batch."""
    from gpt2_lit import GPTDataModule

    with tempfile.TemporaryDirectory() as cache:

        def data() -> GPTDataModule:
            return GPTDataModule(f"{directory}/corpus", context_size=1024, batch_size=16, cache_dir=cache)

        encoding = cpu_seconds(data().prepare_data)
        again = data()
        looking = cpu_seconds(again.prepare_data)
        opening = cpu_seconds(lambda: again.setup("fit"))
        first = cpu_seconds(lambda: next(iter(again.train_dataloader())))
    corpus = f"corpus of {CORPUS_BYTES / 1e6:.0f} MB"
    return {
        f"{corpus}: encode, s": encoding,
        f"{corpus}: see that nothing changed, ms": 1000 * looking,
        f"{corpus}: open and split, ms": 1000 * opening,
        f"{corpus}: first batch, ms": 1000 * first,
    }


def startup(directory: str) -> Figures:
    """CPU seconds of the commands, each in an empty directory."""
    commands = {
        "fit": [f"{os.environ['PYTHONPATH']}/train_stub.py", "fit"],
        "fit --help": [f"{os.environ['PYTHONPATH']}/train_stub.py", "fit", "--help"],
        "import gpt2_lit": ["-c", "import gpt2_lit"],
        "import GPTDataModule": ["-c", "from gpt2_lit import GPTDataModule"],
    }
    figures = {}
    for name, command in commands.items():
        with tempfile.TemporaryDirectory() as empty:
            before = cpu_of_children()
            subprocess.run([sys.executable, *command], cwd=empty, check=True, capture_output=True)
            figures[f"{name}, s"] = cpu_of_children() - before
    return figures


def cpu_seconds(function: Callable[[], object]) -> float:
    """Of this process and of those that it started and saw end."""
    before = cpu_of_children() + time.process_time()
    function()
    return cpu_of_children() + time.process_time() - before


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


STEPS = {
    "batches": (batches,),
    "windows 256": (windows, "256"),
    "windows 64": (windows, "64"),
    "growth": (growth,),
    "startup": (startup,),
}


def measure(tree: Path, step: str, directory: str) -> Figures:
    """A step in a fresh process that imports the package of ``tree``."""
    command = [sys.executable, str(Path(__file__)), "--step", step, directory]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    return json.loads(output.splitlines()[-1])


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The files of a revision in a temporary directory."""
    with tempfile.TemporaryDirectory() as name:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "x", "-C", name], input=archive, check=True)
        yield Path(name)


def main() -> None:
    if sys.argv[1] == "--step":
        function, *arguments = STEPS[sys.argv[2]]
        print(json.dumps(function(sys.argv[3], *arguments)))
        return
    with tempfile.TemporaryDirectory() as directory, checked_out(sys.argv[1]) as former:
        for name, num_chars in TEXT_CHARS.items():
            Path(directory, f"{name}.txt").write_text(stdlib_text(num_chars), encoding="ascii")
        write_corpus(Path(directory, "corpus"), CORPUS_BYTES)
        trees = {"before": former, "after": ROOT}
        measurements = {
            (when, step): partial(measure, tree, step, directory) for step in STEPS for when, tree in trees.items()
        }
        results = in_turns(measurements, REPEATS)
    rows = []
    for step in STEPS:
        before, after = (
            {name: median(repeat[name] for repeat in results[when, step]) for name in results[when, step][0]}
            for when in ("before", "after")
        )
        rows += [
            [name, f"{value:,.4g}", f"{after[name]:,.4g}", f"{after[name] / value:.2f}x"]
            for name, value in before.items()
        ]
    print_table(["what, unit", "before", "after", "after / before"], rows, num_names=1)
    print_versions()


if __name__ == "__main__":
    main()
