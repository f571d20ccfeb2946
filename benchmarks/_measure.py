"""measurements -> a comparison: taken in turns, a Markdown table, and the line that says what was measured with."""

import datetime
import os
import platform
import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

# Their modules and packages. They are no requirement: a benchmark runs without those that are not installed.
COMPETITORS = {"datasets": "datasets", "litdata": "litdata", "streaming": "mosaicml-streaming"}

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


def in_turns(measurements: Mapping[Name, Callable[[], Result]], repeats: int) -> dict[Name, list[Result]]:
    """The results of each measurement, ``repeats`` of it.

    They take turns, so a busy moment affects all of them, in a different order each time, so none always follows one
    that leaves the caches full or empty.
    """
    results: dict[Name, list[Result]] = {name: [] for name in measurements}
    order = list(measurements)
    rng = random.Random(0)
    for _ in range(repeats):
        rng.shuffle(order)
        for name in order:
            results[name].append(measurements[name]())
    return results


def in_fresh_process(function: Callable[..., Result], *args: object) -> Result:
    """What a call gives in a process of its own, which holds no memory of other calls."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


class Run(NamedTuple):
    """What a command printed, and what it took."""

    output: str
    megabytes: float  # at the peak, of all of its processes together


def run_and_watch(arguments: Sequence[str]) -> Run:
    """Run a Python program and look at the memory of its processes 50 times a second. Linux tells it; elsewhere NaN.

    Memory that processes share counts once, and mapped files count as far as they are in memory.
    """
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, encoding="utf-8") as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_bytes_of_process, _process_tree(process.pid))))
            time.sleep(0.02)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed.")
    return Run(output, peak / 1e6 if peak else float("nan"))


def _process_tree(process: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        children = [
            int(child) for thread in threads for child in (thread / "children").read_text(encoding="utf-8").split()
        ]
    except OSError:  # it has ended, or this is not Linux
        return []
    return [process, *(descendant for child in children for descendant in _process_tree(child))]


def _bytes_of_process(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def installed_competitors() -> list[str]:
    """The modules that can be compared with; of the others a line says how to install them."""
    installed = [module for module in COMPETITORS if find_spec(module)]
    if missing := [package for module, package in COMPETITORS.items() if module not in installed]:
        print(f"Without {', '.join(missing)}, not installed: pip install -e '.[benchmarks]'", file=sys.stderr)
    return installed


def seconds_per_call(function: Callable[[], object], at_least: float) -> float:
    """Median seconds of a call, of as many calls as ``at_least`` seconds hold: the first ones find cold caches."""
    calls: list[float] = []
    stop = time.perf_counter() + at_least
    while not calls or time.perf_counter() < stop:
        begun = time.perf_counter()
        function()
        calls.append(time.perf_counter() - begun)
    return median(calls)


def batches_per_second(loader: Iterable, at_least: float = 0.2) -> float:
    """Batches in a second of this process's CPU time, in which others on the machine do not count.

    Over as many epochs as it takes; what comes before the first batch of an epoch, and that batch, do not count.
    """
    num_batches, seconds = 0, 0.0
    while seconds < at_least:
        batches = iter(loader)
        next(batches)
        begun = time.process_time()
        for _ in batches:
            num_batches += 1
            if num_batches % 16 == 0 and time.process_time() - begun > at_least:  # to ask takes as long as a copy
                break
        seconds += time.process_time() - begun
    return num_batches / seconds


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    import resource  # which Windows has not

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def stdlib_text(num_chars: int) -> str:
    """The first characters of the sources of Python's standard library, from the start again where they end.

    Only files in plain ASCII, so that a character is a byte, on disk and in memory.
    """
    directory = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in directory.rglob("*.py") if "site-packages" not in file.parts)
    text = ""
    for file in cycle(files):
        source = file.read_bytes()
        if source.isascii():
            # Grows in place: a join would hold the text twice, and be the peak that windows.py measures.
            text += source[: num_chars - len(text)].decode("ascii")
        if len(text) == num_chars:
            return text
    raise FileNotFoundError(f"there are no .py files in {directory}.")


def write_corpus(directory: Path, num_bytes: int) -> float:
    """Write a corpus of real documents: Python sources, of the standard library and then of the installed packages.

    Each is a text file of its own, and no two are the same.

    Returns:
        Its size in MB: a little more than was asked for, or less where there are not so many sources.
    """
    places = [sysconfig.get_path("stdlib"), *(place for place in sys.path if place.endswith("site-packages"))]
    directory.mkdir()
    written, seen = 0, set()
    for file in (file for place in places for file in sorted(Path(place).rglob("*.py"))):
        source = file.read_bytes()
        if hash(source) not in seen and is_utf8(source):
            seen.add(hash(source))
            (directory / f"{len(seen):06}.txt").write_bytes(source)
            written += len(source)
            if written >= num_bytes:
                break
    return written / 1e6


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_names: int = 2) -> None:
    """A Markdown table: the first ``num_names`` columns to the left, the others, which hold numbers, to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width if i < num_names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    for row in (header, rule, *rows):
        cells = [
            cell.ljust(width) if i < num_names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(f"| {' | '.join(cells)} |")


def print_versions() -> None:
    """When and with what a table was measured."""
    versions = []
    for name in ("torch", "lightning", "tiktoken", "gigatoken", *COMPETITORS.values()):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    print(
        f"\n{datetime.date.today()}, Python {platform.python_version()}, {', '.join(versions)}, {os.cpu_count()} CPUs"
    )
