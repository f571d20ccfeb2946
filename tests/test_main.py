import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, SMALL

WAYS = {
    "gpt2-lit": [str(Path(sys.executable).with_name("gpt2-lit"))],
    "python -m gpt2_lit": [sys.executable, "-m", "gpt2_lit"],
    "python -m gpt2_lit.cli.main": [sys.executable, "-m", "gpt2_lit.cli.main"],
}


def call(way: str, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*WAYS[way], *args], cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("way", WAYS)
def test_the_program_calls_itself_as_it_was_called(tmp_path: Path, way: str) -> None:
    name = way.removesuffix(".cli.main")
    assert call(way, "--help", cwd=tmp_path).stdout.startswith(f"usage: {name} ")


def test_the_help_of_gpt2_lit_names_the_trainings_beside_the_tools(tmp_path: Path) -> None:
    shown = call("gpt2-lit", cwd=tmp_path).stdout
    for line in ("fit  ", "validate  ", "test  ", "predict  ", "prepare  ", "neighbours "):
        assert f"\n    {line.strip()}" in shown
    misspelt = call("gpt2-lit", "fitt", cwd=tmp_path)
    assert (misspelt.returncode, misspelt.stderr.splitlines()[0]) == (
        2,
        "error: there is no command 'fitt'. Did you mean fit?",
    )


def test_a_class_path_may_name_a_module_of_the_directory_and_no_other_file_of_it_is_imported(tmp_path: Path) -> None:
    files = ["my_module.py", "signal.py", "tensorboardX.py"]
    for name in files[1:]:
        (tmp_path / name).write_text("open('ran', 'w')")
    (tmp_path / files[0]).write_text("from torch.nn import Identity\nclass Blocks(Identity): pass\n")
    options = ["fit", *SMALL, "--trainer.max_steps=1", "--model.backbone", "my_module.Blocks"]
    done = call("gpt2-lit", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\ngpt2-lit fit --ckpt_path logs/version_0/checkpoints/last.ckpt" in done.stdout
    assert sorted(path.name for path in tmp_path.glob("[!_]*")) == ["logs", *files]


@pytest.mark.parametrize("program", [["train_stub.py", "fit"], ["-m", "gpt2_lit", "info"]], ids=lambda args: args[0])
def test_without_the_packages_it_says_how_to_get_them(program: list[str]) -> None:
    bare = [sys.executable, "-S", *program]  # without site-packages
    done = subprocess.run(bare, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith(f"error: {sys.executable} has no package ")
    assert done.stderr.splitlines()[2] == "  pip install -c constraints.txt -e ."
