"""The recipes in CONTRIBUTING.md work: their code is put where they say, and their tests pass."""

import re

import pytest
import test_monitor
import test_readers
from conftest import PROJECT

from gpt2_lit.embedding import norms
from gpt2_lit.monitor import monitor
from gpt2_lit.text import readers, tokenizer

CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()


def blocks(recipe: str) -> list[str]:
    """The blocks of code in a recipe."""
    page = CONTRIBUTING.split(f"## Recipe: {recipe}\n")[1].split("\n## ")[0]
    found = re.findall(r"^( *)```(?:python|diff)\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return ["".join(line.removeprefix(indent) for line in block.splitlines(True)) for indent, block in found]


def changed(source: str, diff: str) -> str:
    """A source with the lines of a diff that begin with a plus, between those that do not."""
    lines = diff.splitlines(True)
    former = "".join(line[1:] for line in lines if line.startswith(" "))
    assert source.count(former) == 1, f"CONTRIBUTING.md shows lines that are others now:\n{former}"
    return source.replace(former, "".join(line[1:] for line in lines))


def names_with(module, diff: str, **names):
    """The names of a module after a change, for which ``names`` are there, too."""
    path = PROJECT / f"{module.__name__.replace('.', '/')}.py"
    names = {**vars(module), **names}
    exec(compile(changed(path.read_text(), diff), str(path), "exec"), names)
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
    assert changed((PROJECT / "tests" / "test_tokenizer.py").read_text(), entry)


def test_the_recipe_for_a_curve(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    number, curve, test = blocks("a curve")
    names = names_with(monitor, curve, **defined_by(number, norms))
    monkeypatch.setattr(test_monitor, "EmbeddingMonitor", names["EmbeddingMonitor"])
    [run] = defined_by(test, test_monitor).values()
    run(tmp_path)
