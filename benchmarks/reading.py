"""a training run -> the lines and words of its source: what somebody reads who follows a token from file to curve.

Lightning's Trainer fits EmbeddingStub on GPTDataModule's own text, with an empty cache. Each function of gpt2_lit that
is called counts whole, with its docstring and the comments above it; of each class that is used, the docstring and the
attributes count. Blank lines do not. Beside it: what train_stub.py adds, with its command line and its pictures.

Run it with: python benchmarks/reading.py --largest 25
Another version: PYTHONPATH=path/to/its/checkout python benchmarks/reading.py
"""

import argparse
import ast
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from importlib.util import find_spec
from inspect import CO_OPTIMIZED
from os import environ
from pathlib import Path
from runpy import run_path
from types import FrameType
from typing import NamedTuple

from _measure import print_table
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from gpt2_lit import EmbeddingStub, GPTDataModule


class Definition(NamedTuple):
    """A function, or a class without its methods."""

    file: str
    name: str
    span: range  # all its lines, from the comments above it to the end of its last method
    text: str  # the lines that count

    @property
    def num_lines(self) -> int:
        return self.text.count("\n") + 1

    @property
    def num_words(self) -> int:
        return len(self.text.split())


def definitions(path: Path, file: str) -> list[Definition]:
    """The definitions of a file, a class before its methods. A function inside another is a part of it."""
    lines = path.read_text(encoding="utf-8").splitlines()

    def walk(body: list[ast.stmt], owner: str) -> Iterator[Definition]:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            first = min(part.lineno for part in (node, *node.decorator_list))
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            assert node.end_lineno
            span = range(first, node.end_lineno + 1)
            methods = list(walk(node.body, f"{owner}{node.name}.")) if isinstance(node, ast.ClassDef) else []
            elsewhere = {number for method in methods for number in method.span}
            text = [lines[number - 1] for number in span if number not in elsewhere]
            yield Definition(file, owner + node.name, span, "\n".join(filter(str.strip, text)))
            yield from methods

    return list(walk(ast.parse("\n".join(lines)).body, ""))


def used_by(run: Callable[[], object], package: Path) -> list[Definition]:
    """The definitions of a package that a run uses, in the order of their files."""
    called: set[tuple[str, int]] = set()  # files, and first lines of functions
    made: set[tuple[str, str]] = set()  # modules, and names of classes the __init__ of which Python writes

    def watch(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & CO_OPTIMIZED:  # the body of a module or a class
            return
        if code.co_filename.startswith(str(package)):
            called.add((code.co_filename, code.co_firstlineno))
        elif code.co_filename == "<string>" and code.co_argcount:  # of a named tuple or a dataclass
            owner = frame.f_locals[code.co_varnames[0]]
            owner = owner if isinstance(owner, type) else type(owner)
            made.add((owner.__module__, owner.__qualname__))

    with tempfile.TemporaryDirectory() as directory, chdir(directory), redirect_stdout(sys.stderr):
        environ["GPT2_LIT_CACHE"] = directory
        threading.setprofile(watch)
        sys.setprofile(watch)
        try:
            run()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    used = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        module = ".".join((package.name, *inside.with_suffix("").parts))
        of_file = definitions(path, inside.as_posix())
        names = {name for owner, name in made if owner == module}
        for line in (line for file, line in called if file == str(path)):
            names.update([one.name for one in of_file if line in one.span][-1:])  # the innermost
        names |= {name.rpartition(".")[0] for name in names}  # with a method its class
        used += [one for one in of_file if one.name in names]
    return used


def named_by(page: str, package: Path) -> list[Definition]:
    """The definitions that a page names as `room/file.py`: `name`, of a class with its methods."""
    named = []
    for file, names in re.findall(r"`(\w+/\w+\.py)`: (`[^|;]*`)", page):
        of_file = definitions(package / file, file)
        for name in re.findall(r"`(\w+)`", names):
            named += [one for one in of_file if name in one.name.split(".")]
    return list(dict.fromkeys(named))


def fit() -> None:
    trainer = Trainer(max_epochs=1, logger=TensorBoardLogger("logs"), log_every_n_steps=5)
    trainer.fit(EmbeddingStub(), GPTDataModule())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=0, metavar="N", help="also list the N longest definitions")
    num_largest = parser.parse_args().largest
    spec = find_spec("gpt2_lit")
    assert spec
    assert spec.origin
    package = Path(spec.origin).parent
    script = str(package.parent / "train_stub.py")
    sys.argv = [script, "fit", "--trainer.max_epochs", "1"]
    way = used_by(fit, package)
    # What is read once for each process, like the tokenizer, is read in the first run.
    everything = [*dict.fromkeys([*way, *used_by(lambda: run_path(script, run_name="__main__"), package)])]

    rows = []
    for room in [*sorted({one.file.split("/")[0] for one in everything}), "all"]:
        counts = []
        for read in (way, everything):
            of_room = [one for one in read if room in ("all", one.file.split("/")[0])]
            counts += [sum(one.num_lines for one in of_room), sum(one.num_words for one in of_room)]
        rows.append([room, *(f"{count:,}" for count in counts)])
    print_table(["room", "lines", "words", "lines with train_stub.py", "words with it"], rows, num_names=1)
    page = package.parent / "docs" / "one_token.md"
    if page.exists():
        text = page.read_text(encoding="utf-8")
        named = named_by(text, package)
        counts = f"{sum(one.num_lines for one in named):,} lines, {sum(one.num_words for one in named):,} words"
        print(f"\n{page.name}: {len(text.split()):,} words; the {len(named)} definitions that it names: {counts}")
    if num_largest:
        print()
        largest = sorted(way, key=lambda one: -one.num_words)[:num_largest]
        rows = [[one.file, one.name, f"{one.num_lines:,}", f"{one.num_words:,}"] for one in largest]
        print_table(["file", "definition", "lines", "words"], rows)


if __name__ == "__main__":
    main()
