"""The directory, the README, the pages and the rules of the house say the same."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest
import yaml
from conftest import PROJECT

import gpt2_lit
from gpt2_lit.text.readers import COMPRESSIONS, FORMATS

README = (PROJECT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## What lies where")[1].split("  assets/")[0]
PACKAGE = PROJECT / "gpt2_lit"


def modules_in_the_tree() -> list[str]:
    """The modules in the order of the README: errors, text.word_tokenizer, ... , cli.main."""
    modules, room = [], ""
    for indent, name, kind in re.findall(r"^( +)(\w+)(/|\.py) +\S", TREE, re.MULTILINE):
        if kind == "/":
            room = name
        else:
            modules.append(name if len(indent) == 2 else f"{room}.{name}")
    return modules


MODULES = modules_in_the_tree()


def test_the_tree_in_the_readme_names_every_file_of_the_package() -> None:
    files = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    modules = [".".join(path.parts) for path in files if len(path.parts) == 1 or path.name != "__init__"]
    assert sorted(MODULES) == sorted(modules)


def test_there_are_six_rooms_and_each_says_what_it_turns_into_what() -> None:
    rooms = re.findall(r"^  (\w+)/ +(\S.*)", TREE, re.MULTILINE)
    assert [room for room, _ in rooms] == ["text", "store", "data", "embedding", "monitor", "cli"]
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == {room for room, _ in rooms}
    for room, line in rooms:
        assert (PACKAGE / room / "__init__.py").read_text(encoding="utf-8") == f'"""{line}."""\n'
        assert f"{room}/" in (gpt2_lit.__doc__ or "")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_a_file_says_what_it_turns_into_what_and_imports_only_earlier_ones(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    first_line = (ast.get_docstring(tree) or "").partition("\n")[0]
    assert re.match(r"[\w'(].* -> .+[.:]", first_line)
    earlier = MODULES[: MODULES.index(module)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpt2_lit"):
            assert node.module.removeprefix("gpt2_lit.") in earlier


def test_every_public_name_can_be_imported_and_says_what_it_is() -> None:
    for name in gpt2_lit.__all__:
        assert getattr(gpt2_lit, name).__doc__
    assert set(gpt2_lit.__all__) <= set(dir(gpt2_lit))
    with pytest.raises(AttributeError, match="no attribute 'GPT'"):
        _ = gpt2_lit.GPT


def test_the_python_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    text = (PACKAGE / "assets" / "tale.txt").read_text(encoding="utf-8")
    (tmp_path / "my_text.txt").write_text(text * 2, encoding="utf-8")
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
    assert start in (PACKAGE / "assets" / "tale.txt").read_text(encoding="utf-8")


def test_ci_pre_commit_and_make_check_run_the_same_commands() -> None:
    checks = {"ruff format --check .", "ruff check .", "pyright"}
    script = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8").partition("check:")[2].partition("\n\n")[0]
    assert checks <= set(script)
    assert checks == {hook["entry"] for hook in hooks}
    assert checks < {line.strip() for line in makefile.splitlines()}


def test_a_module_of_the_users_beside_train_stub_is_not_checked(tmp_path) -> None:
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    for name in ("my_module.py", "train_stub.py"):
        (tmp_path / name).write_text("import os,sys\n", encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    if listed.returncode:
        pytest.skip("needs ruff")
    assert [line.rpartition("/")[2] for line in listed.stdout.split()] == ["pyproject.toml", "train_stub.py"]


def test_github_runs_what_ci_runs_on_each_python_that_is_supported() -> None:
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    matrix = job["strategy"]["matrix"]
    assert f">={matrix['python'][0]}" == project["requires-python"]
    files = {*matrix["constraints"], *(extra["constraints"] for extra in matrix["include"])}
    assert files == {"constraints.txt", "constraints-lowest.txt", "/dev/null"}


def opens_text_without_encoding(call: ast.Call) -> bool:
    """read_text(), write_text(...), open() of a text, or a process whose output is text."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if isinstance(call.func, ast.Name) and name == "open":
        mode = call.args[1] if len(call.args) > 1 else options.get("mode", ast.Constant("r"))
        return "b" not in ast.unparse(mode) and "encoding" not in options
    is_text = len(call.args) == {"read_text": 0, "write_text": 1}.get(name) or ("text" in options and name in PROCESSES)
    return is_text and "encoding" not in options


PROCESSES = ("run", "Popen", "check_output")
SOURCES = [path for place in ("gpt2_lit", "examples", "benchmarks", "docs") for path in (PROJECT / place).rglob("*.py")]


def test_every_text_is_opened_with_its_encoding() -> None:
    found = [
        f"{path.relative_to(PROJECT).as_posix()}:{node.lineno}"
        for path in [*SOURCES, PROJECT / "train_stub.py", PROJECT / "tests" / "test_project.py"]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text_without_encoding(node)
    ]
    assert not found, "Windows would take the encoding of its language: " + ", ".join(found)


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [group for name, group in project["optional-dependencies"].items() if name != "benchmarks"]
    declared = re.findall(
        r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(sum(extras, project["dependencies"])), re.MULTILINE
    )
    lines = (PROJECT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    newest = {"torch", "lightning", "ruff", "pyright"}  # ruff and pyright judge the code by their newest rules
    assert [f"{name}=={version}" for name, version in sorted(declared) if name not in newest] == lines[2:]


def test_the_notices_of_the_merge_ranks_lie_beside_them_and_are_packaged() -> None:
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = {path for pattern in pyproject["project"]["license-files"] for path in PROJECT.glob(pattern)}
    notices = {"LICENSE.gpt-2": "Modified MIT License", "LICENSE.tiktoken": "MIT License"}
    page = (PACKAGE / "assets" / "README.md").read_text(encoding="utf-8")
    for name, title in notices.items():
        notice = PACKAGE / "assets" / name
        assert notice.read_text(encoding="utf-8").startswith(f"{title}\n")
        assert f"`{name}`" in page
        assert notice in packaged


def test_every_page_is_linked_from_the_readme_and_every_link_leads_somewhere() -> None:
    pages = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
    links = {page: re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8")) for page in pages}
    for page, targets in links.items():
        for target in targets:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert {page.relative_to(PROJECT).as_posix() for page in pages[1:]} <= set(links[pages[0]])


def test_every_test_on_the_page_on_security_exists() -> None:
    rows = re.findall(r"^\| .+ \|$", (PROJECT / "docs" / "security.md").read_text(encoding="utf-8"), re.MULTILINE)[2:]
    files = (PROJECT / "tests").glob("test_*.py")
    tests = {
        name
        for path in files
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(rows) >= 8
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= tests


def test_the_words_of_the_glossary_are_those_of_the_package() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", (PROJECT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = [word.strip("`") for row in rows if row not in ("word", "---") for word in row.split(" (")[0].split(", ")]
    package = " ".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")).replace("_", " ").lower()
    assert len(words) > 30
    assert [word for word in words if word.replace("_", " ").lower() not in package] == []


# A run without an option, and code without an argument, mean these.
DEFAULTS = {
    "data.datamodule.GPTDataModule": dict(
        tokenizer="gpt2", context_size=32, stride=None, batch_size=8, val_fraction=0.1, seed=42, shuffle="global",
        drop_last=True, num_workers=0, pin_memory=None, document_ids=False, text_field="text", strip_gutenberg=False,
        token_dtype="uint16", cache_size=50.0, check=False, continue_with_other_data=False,
    ),
    "data.order.WindowSampler": dict(seed=0, shuffle="global", drop_last=True, rank=0, world_size=1),
    "embedding.embedding.EmbeddingModule": dict(
        vocab_size=50257, embed_dim=768, context_size=1024, dropout=0.0, init="gpt2", pad_vocab_to_multiple_of=1
    ),
    "monitor.stub.EmbeddingStub": dict(vocab_size=50257, embed_dim=64, context_size=32, dropout=0.0, init="gpt2"),
    "monitor.monitor.EmbeddingMonitor": dict(every_n_steps=None, projected_tokens=2000),
    "cli.run.RunCheckpoint": dict(every_n_steps=500, monitor="val/loss"),
    "store.prepare.prepare": dict(show_progress=True),
    "store.verify.verify": dict(show_progress=False),
    "store.token_store.open_store": dict(check=False),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_left_out_has_the_value_that_others_rely_on(name: str) -> None:
    module, _, called = name.rpartition(".")
    parameters = inspect.signature(getattr(import_module(f"gpt2_lit.{module}"), called)).parameters
    assert {option: parameters[option].default for option in DEFAULTS[name]} == DEFAULTS[name]


# Phrases that only this project would use, and what the field says.
PRIVATE_WORDS = {
    r"folders?": "directory",
    r"(go(es)?|went|gone|going) on": "resume, continue",
    r"behind": "after",
    r"blanks?(?! lines?)": "space, whitespace",
    r"in no time": "in milliseconds",
    r"one behind the other": "concatenated, separated by",
    r"for want of": "out of memory",
    r"hesitates?": "exp(mean loss): the effective number of choices",
    r"lets one expect": "expected at initialisation",
    r"sees to it": "who does what",
    r"is no (?!such)\w+ file": "is not a valid ... file",
    r"not whole": "truncated",
    r"ends? otherwise": "with other extensions",
    r"what one gets": "a surplus or deficit",
    r"two sides linked": "data and model options linked",
}
PATTERNS = ("gpt2_lit/**/*.py", "*.md", "*.py", "docs/*.md", "docs/*.py", "benchmarks/*", "configs/*", "examples/*.py")


def test_texts_use_the_words_of_the_field() -> None:
    found = [
        f"{path.relative_to(PROJECT)}:{number}: {match[0]!r}; better: {better}"
        for pattern in PATTERNS
        for path in sorted(PROJECT.glob(pattern))
        if path.is_file()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for private, better in PRIVATE_WORDS.items()
        for match in re.finditer(rf"\b(?i:{private})\b", line)
    ]
    assert not found, "\n".join(found)


def test_every_source_format_is_on_its_page_and_in_the_readme() -> None:
    page = (PROJECT / "docs" / "sources.md").read_text(encoding="utf-8")
    for extension in [*FORMATS, *COMPRESSIONS]:
        assert f"`{extension}`" in page
    assert all(f"`{extension}`" in README for extension in (".txt", ".jsonl", ".csv", ".parquet", ".gz", ".zst"))
