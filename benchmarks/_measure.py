"""measurements -> a comparison: taken in turns, a Markdown table, and the line that says what was measured with."""

import datetime
import os
import platform
import random
import sysconfig
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


def in_turns(measurements: Mapping[Name, Callable[[], Result]], repeats: int) -> dict[Name, list[Result]]:
    """The results of each measurement, ``repeats`` of it.

    They take turns, so that a busy moment hits all alike, in another order each time, so that none always comes behind
    one that leaves the caches full or empty.
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


def seconds_per_call(function: Callable[[], object], at_least: float) -> float:
    """Median seconds of a call, of as many calls as ``at_least`` seconds hold: the first ones find cold caches."""
    calls: list[float] = []
    stop = time.perf_counter() + at_least
    while not calls or time.perf_counter() < stop:
        begun = time.perf_counter()
        function()
        calls.append(time.perf_counter() - begun)
    return median(calls)


def stdlib_text(num_chars: int) -> str:
    """The first characters of the sources of Python's standard library, from the start again where they end.

    Only files in plain ASCII, so that a character is a byte, on disk and in memory.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in folder.rglob("*.py") if "site-packages" not in file.parts)
    text = ""
    for file in cycle(files):
        source = file.read_bytes()
        if source.isascii():
            # Grows in place: a join would hold the text twice, and be the peak that windows.py measures.
            text += source[: num_chars - len(text)].decode("ascii")
        if len(text) == num_chars:
            return text
    raise FileNotFoundError(f"there are no .py files in {folder}.")


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
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "tiktoken"))
    print(f"\n{datetime.date.today()}, Python {platform.python_version()}, {packages}, {os.cpu_count()} CPUs")
