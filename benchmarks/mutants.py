"""gpt2_lit with one thing wrong -> does a test fail? A sample of such mutants over all files, and those that survive.

A mutant differs from the package in one place: another operator, number or name, a condition that always holds, a call
or an argument that is missing, an exception that is not caught. It is written into a copy of the checkout, where the
tests that reach its line run until one fails. A survivor is equivalent (no test could see it), or asks for a test: the
former are in survivors.toml, with the reason; the others are printed.

python benchmarks/mutants.py reach                 # once, and after changes: which test reaches which line
python benchmarks/mutants.py reach tests/test_a.py # the same in parts: beside what is known, of these tests
python benchmarks/mutants.py run --sample 300      # resumes where it was stopped
python benchmarks/mutants.py run --files store/    # only there

The same seed draws the same mutants, and a larger sample holds the smaller. Needs Linux, and pip install coverage.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parents[1]
LISTED = Path(__file__).with_name("survivors.toml")

Other = dict[type[ast.AST], type[ast.AST]]
COMPARISONS: Other = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: Other = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
KEPT_DECORATORS = ("property", "staticmethod", "classmethod", "overload", "dataclass", "cached_property", "setter")


class Mutant(NamedTuple):
    file: str
    lines: tuple[int, ...]  # where a test must pass to see it; none: any line of the file
    start: int  # of the bytes that are replaced
    stop: int
    code: str  # the line it begins in
    change: str  # before -> after
    after: str

    @property
    def key(self) -> str:
        """Its name while the line stays as it is, wherever the line moves to."""
        return f"{self.file}: {self.code}: {self.change}"


def replacements(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The ways in which a node can be wrong: what is replaced, and by which text."""

    def changed(**fields: Any) -> str:
        return ast.unparse(type(node)(**{**{name: getattr(node, name) for name in node._fields}, **fields}))

    match node:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            yield node, f"({changed(ops=[COMPARISONS[type(operator)]()])})"
        case ast.BinOp(op=operator) if type(operator) in ARITHMETIC:
            yield node, f"({changed(op=ARITHMETIC[type(operator)]())})"
        case ast.BoolOp(op=operator):
            yield node, f"({changed(op=ast.Or() if isinstance(operator, ast.And) else ast.And())})"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, repr(value + 1)
        case (
            ast.Subscript(slice=ast.Constant(value=str(value)) as text)
            | ast.Compare(comparators=[ast.Constant(value=str(value)) as text])
        ):
            yield text, repr(value + "X")
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield test, "False"
            if not isinstance(node, ast.While):
                yield test, "True"
        case ast.comprehension(ifs=[test, *_]):
            yield test, "True"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield value, "None"
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom() | ast.Await()) | ast.Raise() | ast.AugAssign():
            yield node, "pass"
        case ast.Break():
            yield node, "continue"
        case ast.Continue():
            yield node, "break"
        case ast.ExceptHandler(type=ast.expr() as caught):
            for i in range(len(caught.elts)) if isinstance(caught, ast.Tuple) else ():
                yield caught, ast.unparse(ast.Tuple([*caught.elts[:i], *caught.elts[i + 1 :]], ast.Load()))
            yield caught, "()"
        case ast.Slice(lower=lower, upper=upper):
            yield from ((part, "None") for part in (lower, upper) if part)
        case ast.FunctionDef(decorator_list=decorators):
            yield from ((one, "(lambda f: f)") for one in decorators if not _kept(one))
    if isinstance(node, ast.Call):
        for i in range(len(node.keywords)):
            yield node, changed(keywords=[*node.keywords[:i], *node.keywords[i + 1 :]])
        if len(node.args) > 1 and not isinstance(node.args[-1], ast.Starred):
            yield node, changed(args=node.args[:-1])


def _kept(decorator: ast.expr) -> bool:
    return any(ast.unparse(decorator).split("(")[0].split(".")[-1] == name for name in KEPT_DECORATORS)


def mutants_of(project: Path, file: str) -> list[Mutant]:
    """All mutants of a file. Left out: annotations, docstrings, messages of errors, and the insides of f-strings."""
    source = (project / file).read_bytes()
    rows = source.splitlines(keepends=True)
    before = [0]
    for row in rows:
        before.append(before[-1] + len(row))
    found: list[Mutant] = []

    def walk(node: ast.AST, lines: tuple[int, ...]) -> None:
        if isinstance(node, (ast.JoinedStr, ast.arg, ast.Import, ast.ImportFrom)):
            return
        if isinstance(node, ast.stmt):
            in_function = bool(lines) or isinstance(node, ast.FunctionDef)
            lines = (node.lineno,) if in_function else ()
        if isinstance(node, ast.FunctionDef):  # its line runs at import: its defaults matter in its body
            first = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
            lines = (first[0].lineno,)
        for old, after in replacements(node):
            start, stop = (before[line - 1] + column for line, column in _ends(old))
            text = source[start:stop].decode()
            reach = tuple(sorted({*lines, old.lineno})) if lines and not isinstance(node, ast.FunctionDef) else lines
            code = rows[old.lineno - 1].decode().strip()
            if text != after:
                found.append(Mutant(file, reach, start, stop, code, f"{' '.join(text.split())} -> {after}", after))
        skipped = {"annotation", "returns"} | ({"exc"} if isinstance(node, ast.Raise) else set())
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in skipped:
                    walk(child, lines)

    walk(ast.parse(source), ())
    return found


def _ends(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def sample(project: Path, size: int, seed: int) -> list[Mutant]:
    """Mutants of all files, in proportion to their lines, at least two of each: drawn by hash, so edits elsewhere
    do not change which are drawn."""
    files = sorted(path.relative_to(project).as_posix() for path in (project / "gpt2_lit").rglob("*.py"))
    lengths = {file: (project / file).read_text(encoding="utf-8").count("\n") for file in files}
    drawn = []
    for file in files:
        every = {mutant.key: mutant for mutant in mutants_of(project, file)}
        ranked = sorted(every.values(), key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest())
        drawn += ranked[: max(2, round(size * lengths[file] / sum(lengths.values())))]
    return drawn


class Reach:
    """Which tests reach a line, and how long each takes."""

    def __init__(self, work: Path, project: Path) -> None:
        from coverage import CoverageData

        self.data = CoverageData(str(work / "data"))
        self.data.read()
        self.project = project  # the copy: the checkout may change while mutants are judged
        self.files = {f"gpt2_lit/{file.rpartition('/gpt2_lit/')[2]}": file for file in self.data.measured_files()}
        self.seconds: dict[str, float] = defaultdict(float)
        failed = set()
        for report in work.glob("*.xml"):
            for case in ElementTree.parse(report).iter("testcase"):
                # tests.test_x, or gpt2_lit.text.bpe for a doctest named gpt2_lit.text.bpe.encode
                name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').split('[')[0]}"
                self.seconds[name] += float(case.get("time", 0))
                if case.find("failure") is not None or case.find("error") is not None:
                    failed.add(name)
        self.known = set(self.seconds)
        self.seconds.default_factory = lambda: 2.0  # of a test that was written since
        for name in failed:
            print(f"fails without a mutant: {name}", file=sys.stderr)
            del self.seconds[name]

    def tests(self, mutant: Mutant) -> tuple[list[str], list[str]]:
        """The tests that reach it, quickest first: those of its own file, and the others."""
        contexts = self.data.contexts_by_lineno(self.files.get(mutant.file, ""))
        if mutant.lines:
            reached = {test for line in mutant.lines for test in contexts.get(line, ())}
        else:
            reached = {test for line, tests in contexts.items() if len(tests) > 1 for test in tests}
        names = {test.split(" (")[0].split("[")[0] for test in reached} & set(self.seconds)
        own_file = f"tests/test_{Path(mutant.file).stem}.py"
        new = self._new_tests(own_file if (self.project / own_file).exists() else "tests/test_*.py")
        own = {name for name in names if name.startswith((own_file, mutant.file))} | new
        # What a process reached that was killed is not recorded, nor what is read as text.
        anywhere = {test.split(" (")[0].split("[")[0] for tests in contexts.values() for test in tests}
        own |= {name for name in self.seconds if name.startswith(own_file)} - (anywhere if names else set())
        own |= set() if names else {name for name in self.seconds if name.startswith("tests/test_project.py")}
        return sorted(own, key=self.seconds.__getitem__), sorted(names - own, key=self.seconds.__getitem__)

    def _new_tests(self, pattern: str) -> set[str]:
        """Tests that were written since: they may reach any line."""
        paths = self.project.glob(pattern)
        trees = {
            path.relative_to(self.project).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths
        }
        functions = ((file, node) for file, tree in trees.items() for node in tree.body)
        names = {f"{file}::{node.name}" for file, node in functions if isinstance(node, ast.FunctionDef)}
        return {name for name in names if "::test_" in name and name not in self.known}


def pytest_runtest_logstart(nodeid: str, location: object) -> None:
    """As a plugin of pytest: what runs from here on is reached by this test."""
    from coverage import Coverage

    if current := Coverage.current():
        current.switch_context(nodeid)


def find_reach(work: Path, tests: list[str]) -> None:
    """Run all tests once under coverage, or these beside those that were; their subprocesses too."""
    for former in () if tests else (*work.glob("*.xml"), *work.glob("data*")):
        former.unlink()
    project = copied(work)
    config = work / "coveragerc"
    config.write_text(
        f"[run]\nsource = gpt2_lit\ndata_file = {work}/data\nparallel = true\npatch = subprocess\nsigterm = true\n"
        "context = ${PYTEST_CURRENT_TEST-}\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": f"{project}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    python = [sys.executable, "-m", "coverage"]
    test = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "mutants",
        "-p",
        "no:cacheprovider",
        f"--junitxml={work}/{time.time()}.xml",
        *tests,
    ]
    subprocess.run([*python, "run", f"--rcfile={config}", *test], cwd=project, env=environment, check=False)
    subprocess.run([*python, "combine", "-qa", f"--rcfile={config}"], cwd=work, env=environment, check=True)


def copied(work: Path) -> Path:
    """The files of the checkout in a directory where a mutant harms nobody."""
    project = work / "project"
    shutil.rmtree(project, ignore_errors=True)
    names = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, encoding="utf-8", check=True).stdout
    for name in names.splitlines():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, project / name)
    return project


def passes(project: Path, tests: list[str], seconds: float) -> tuple[bool, str]:
    """Do these tests pass there? If not, the line of the first that failed. In a fork, so torch is imported once."""
    output = project.parent / f"{project.name}.log"
    child = os.fork()
    if not child:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(project)
        sys.path.insert(0, str(project))
        os.environ["PYTHONPATH"] = str(project)
        import pytest

        options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", f"--basetemp={project}.tmp"]
        options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # lightning's anyio
        os._exit(pytest.main([*options, f"--timeout={seconds / 2}", *tests]))
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests have started, too
    if not ended[0]:
        os.waitpid(child, 0)
        return False, "timeout"
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "stopped")
    if failed.startswith("ERROR: not found"):  # a test that was renamed since has killed nothing
        sys.exit(f"{failed}. Run reach again.")
    return ended[1] == 0, failed[:200]


def judge(mutant: Mutant, project: Path, reach: Reach, budget: float) -> dict[str, Any]:
    path = project / mutant.file
    source = path.read_bytes()
    own, others = reach.tests(mutant)
    total = accumulate(reach.seconds[test] for test in others)
    others = [test for test, seconds in zip(others, total, strict=True) if seconds < budget]
    result = {"key": mutant.key, "survived": True, "by": "", "tests": len(own) + len(others)}
    try:
        path.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.stop :])
        for tests in filter(None, (own, others)):
            seconds = 60 + 6 * sum(reach.seconds[test] for test in tests)
            _forget_bytecode(path)
            passed, by = passes(project, tests, seconds)
            if not passed:
                return result | {"survived": False, "by": by}
    finally:
        path.write_bytes(source)
        _forget_bytecode(path)
    return result


def _forget_bytecode(path: Path) -> None:
    for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        cached.unlink()


def results(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def run(work: Path, mutants: Iterable[Mutant], again: bool, budget: float) -> None:
    """Judge those that have no result yet; with ``again`` those that survived, too."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import lightning.pytorch  # noqa: F401

    project = copied(work / str(os.getpid()))
    reach = Reach(work, project)
    if not passes(project, ["tests/test_split.py", "tests/test_norms.py"], 300)[0]:
        sys.exit(f"without a mutant tests fail, too: {project}.log")
    file = work / "results.jsonl"
    for mutant in mutants:
        former = results(file).get(mutant.key)
        if former is None or (again and former["survived"]):
            result = judge(mutant, project, reach, budget)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(result) + "\n")
            print("survived" if result["survived"] else "killed  ", mutant.key, flush=True)
    # A test that fails without a mutant, too, has killed none.
    killers = {result["by"].split(" ")[1] for result in results(file).values() if result["by"].startswith("FAILED")}
    passed, by = passes(project, sorted(killers), 3600) if killers else (True, "")
    print(f"{len(killers)} tests have killed; without a mutant {'all pass' if passed else by}.")
    shutil.rmtree(project.parent)


def report(work: Path, mutants: list[Mutant]) -> None:
    done = results(work / "results.jsonl")
    judged = [mutant for mutant in mutants if mutant.key in done]
    survivors = [mutant for mutant in judged if done[mutant.key]["survived"]]
    listed = {one["mutant"]: one["reason"] for one in tomllib.loads(LISTED.read_text(encoding="utf-8"))["survivor"]}
    open_ones = [mutant for mutant in survivors if mutant.key not in listed]
    equivalent = sum(listed.get(mutant.key, "").startswith("equivalent") for mutant in survivors)
    print(
        f"\n{len(mutants)} drawn, {len(judged)} judged, {len(judged) - len(survivors)} killed, {equivalent} equivalent,"
        f" {len(survivors) - equivalent - len(open_ones)} listed with another reason, {len(open_ones)} to look at:"
    )
    print(*(f"{mutant.key}   ({done[mutant.key]['tests']} tests)" for mutant in open_ones), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["reach", "run", "report"])
    parser.add_argument("tests", nargs="*", help="of reach: files of tests; none is all")
    parser.add_argument("--sample", type=int, default=300, help="how many mutants (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", default="", help="only files whose path matches this pattern")
    parser.add_argument("--again", action="store_true", help="judge former survivors again, after new tests")
    parser.add_argument(
        "--budget", type=float, default=60, help="seconds for tests of other files; the quickest run (default 60)"
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/gpt2_lit_mutants"), help="directory for all of it")
    options = parser.parse_args()
    if options.command == "reach":
        find_reach(options.work, options.tests)
        return
    mutants = [
        mutant for mutant in sample(PROJECT, options.sample, options.seed) if re.search(options.files, mutant.file)
    ]
    if options.command == "run":
        run(options.work, mutants, options.again, options.budget)
    report(options.work, mutants)


if __name__ == "__main__":
    main()
