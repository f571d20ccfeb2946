"""The recipes in CONTRIBUTING.md work: their code is put where they say, and their tests pass."""

import re
import textwrap

import pytest
import test_monitor
import test_readers
import test_tokenizer
from conftest import PROJECT

from gpt2_lit.embedding import norms
from gpt2_lit.monitor import monitor
from gpt2_lit.text import readers, tokenizer

CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()


def blocks(recipe: str) -> list[str]:
    """The Python blocks of a recipe, as they stand in a file."""
    page = CONTRIBUTING.split(f"## Recipe: {recipe}\n")[1].split("\n## ")[0]
    found = re.findall(r"^( *)```python\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return ["".join(line.removeprefix(indent) for line in block.splitlines(True)) for indent, block in found]


def names_with(module, block: str, **names):
    """The names of a module with a block in it: its lines that end in ``# new`` stand between the others."""
    path = PROJECT / f"{module.__name__.replace('.', '/')}.py"
    source = path.read_text()
    former = "".join(line for line in block.splitlines(True) if not line.endswith("# new\n"))
    assert source.count(former) == 1, f"{path} has other lines now than\n{former}"
    names = {**vars(module), **names}
    exec(compile(source.replace(former, block), str(path), "exec"), names)
    return names


def defined_by(block: str, module) -> dict:
    """What a block defines that stands at the end of a module."""
    names = dict(vars(module))
    exec(block, names)
    return {name: value for name, value in names.items() if name not in vars(module)}


def test_the_recipe_for_a_source_format(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    reader, row, test = blocks("a source format")
    formats = names_with(readers, row, **defined_by(reader, readers))["FORMATS"]
    monkeypatch.setitem(readers.FORMATS, ".tsv", readers.Format(*formats[".tsv"]))
    [run] = defined_by(test, test_readers).values()
    run(tmp_path)


def test_the_recipe_for_a_tokenizer() -> None:
    letters, branch, entry = blocks("a tokenizer")
    defined = defined_by(letters, tokenizer)
    by_itself = tokenizer.make_tokenizer(defined["Letters"]())
    named = names_with(tokenizer, branch, **defined)["make_tokenizer"]("letters")
    assert named.encode("The Rain Book") == by_itself.encode("The Rain Book")
    assert named.decode(named.encode("The Rain Book")) == "the rain book"
    assert named.encode("the") + named.encode(" rain") == named.encode("the rain")
    assert textwrap.dedent(entry).startswith('"gpt2": "gpt2",\n')
    assert test_tokenizer.CUTTABLE["gpt2"] == "gpt2"


def test_the_recipe_for_a_curve(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    number, curve, test = blocks("a curve")
    names = names_with(monitor, curve, **defined_by(number, norms))
    monkeypatch.setattr(test_monitor, "EmbeddingMonitor", names["EmbeddingMonitor"])
    [run] = defined_by(test, test_monitor).values()
    run(tmp_path)
