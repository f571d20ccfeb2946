"""The folder, the README and the rules of the house say the same."""

import ast
import re

import pytest
from conftest import PROJECT

import gpt2_lit

README = (PROJECT / "README.md").read_text()
TREE = README.split("## What lies where")[1]
CHAPTERS = re.findall(r"^  (\w+)\.py +\S", TREE, re.MULTILINE)
PACKAGE = PROJECT / "gpt2_lit"


def test_the_tree_in_the_readme_names_every_file_of_the_package() -> None:
    assert sorted(CHAPTERS) == sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("chapter", [name for name in CHAPTERS if name != "__init__"])
def test_a_chapter_says_what_it_turns_into_what_and_imports_only_earlier_ones(chapter: str) -> None:
    module = ast.parse((PACKAGE / f"{chapter}.py").read_text())
    first_line = (ast.get_docstring(module) or "").partition("\n")[0]
    assert re.match(r"[\w'(].* -> .+[.:]", first_line)
    earlier = CHAPTERS[: CHAPTERS.index(chapter)]
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpt2_lit."):
            assert node.module.removeprefix("gpt2_lit.") in earlier


def test_every_public_name_can_be_imported_and_says_what_it_is() -> None:
    for name in gpt2_lit.__all__:
        assert getattr(gpt2_lit, name).__doc__
    assert set(gpt2_lit.__all__) <= set(dir(gpt2_lit))
    with pytest.raises(AttributeError, match="no attribute 'GPT'"):
        _ = gpt2_lit.GPT


def test_the_python_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    text = (PACKAGE / "assets" / "tale.txt").read_text()
    (tmp_path / "my_text.txt").write_text(text * 2)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    names = {"text": text}
    for block in blocks:
        exec(block, names)
    assert names["ids"] == [403, 6667, 11203, 1799]
    assert names["vectors"].shape == (16, 128, 256)


def test_the_line_of_tokens_in_the_readme_is_the_tales() -> None:
    ids = re.search(r"tokens +((?:\d+ )+)\.\.\.", README)[1].split()
    start = "Every morning but Sunday, Wina Tuck carried a loaf"
    assert [int(token_id) for token_id in ids] == gpt2_lit.gpt2_tokenizer().encode(start)
    assert start in (PACKAGE / "assets" / "tale.txt").read_text()
