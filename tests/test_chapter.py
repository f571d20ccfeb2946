"""docs/chapter.md is true: its code runs from top to bottom, and prints what stands below it."""

import contextlib
import io
import re
from typing import Any

from conftest import PROJECT

CHAPTER = (PROJECT / "docs" / "chapter.md").read_text()
# A block of code, and the output that may follow it.
STEP = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def test_each_block_of_the_chapter_prints_what_stands_below_it() -> None:
    names: dict[str, Any] = {}
    for step in STEP.finditer(CHAPTER):
        code, shown = step.groups(default="")
        # Empty lines in front, so that a traceback names the line of the page.
        lines_before = CHAPTER[: step.start(1)].count("\n")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * lines_before + code, "docs/chapter.md", "exec"), names)
        assert printed.getvalue() == shown, f"docs/chapter.md, the block at line {lines_before}"


def test_each_output_in_the_chapter_stands_below_the_code_that_printed_it() -> None:
    assert len(STEP.findall(CHAPTER)) == CHAPTER.count("```python")
    assert sum(bool(shown) for _, shown in STEP.findall(CHAPTER)) == CHAPTER.count("```text")


def test_the_chapter_names_files_that_are_there() -> None:
    named = re.findall(r"`([\w/]+\.(?:py|yaml))`", CHAPTER) + re.findall(r"configs/\w+\.yaml", CHAPTER)
    assert len(named) > 10
    for name in named:
        assert (PROJECT / name).exists() or (PROJECT / "gpt2_lit" / name).exists(), name
