"""The pages with code are true: it runs from top to bottom, and prints what stands below it."""

import ast
import contextlib
import io
import re
from typing import Any

import pytest
from conftest import PROJECT

CHAPTER, ONE_TOKEN = ((PROJECT / "docs" / name).read_text(encoding="utf-8") for name in ("chapter.md", "one_token.md"))
# A block of code, and the output that may follow it.
STEP = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


@pytest.mark.parametrize("page", [CHAPTER, ONE_TOKEN], ids=["chapter.md", "one_token.md"])
def test_each_block_of_a_page_prints_what_stands_below_it(page: str) -> None:
    names: dict[str, Any] = {}
    for step in STEP.finditer(page):
        code, shown = step.groups(default="")
        # Empty lines in front, so that a traceback names the line of the page.
        lines_before = page[: step.start(1)].count("\n")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * lines_before + code, "the page", "exec"), names)
        assert printed.getvalue() == shown, f"the block at line {lines_before}"


@pytest.mark.parametrize("page", [CHAPTER, ONE_TOKEN], ids=["chapter.md", "one_token.md"])
def test_each_output_in_a_page_stands_below_the_code_that_printed_it(page: str) -> None:
    assert len(STEP.findall(page)) == page.count("```python")
    assert sum(bool(shown) for _, shown in STEP.findall(page)) == page.count("```text")


def test_the_chapter_names_files_that_are_there() -> None:
    named = re.findall(r"`([\w/]+\.(?:py|yaml))`", CHAPTER) + re.findall(r"configs/\w+\.yaml", CHAPTER)
    assert len(named) > 10
    for name in named:
        assert (PROJECT / name).exists() or (PROJECT / "gpt2_lit" / name).exists(), name


def test_the_steps_of_one_token_name_definitions_that_are_there() -> None:
    steps = re.findall(r"^\| \d+ \| `([\w/]+\.py)`: `(\w+)`", ONE_TOKEN, re.MULTILINE)
    assert len(steps) == 11
    for file, name in steps:
        tree = ast.parse((PROJECT / "gpt2_lit" / file).read_text(encoding="utf-8"))
        assert name in {getattr(node, "name", None) for node in ast.walk(tree)}, f"{file}: {name}"
