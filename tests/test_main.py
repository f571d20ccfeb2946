import os
import subprocess
import sys
from pathlib import Path

from conftest import SMALL

WAYS = {
    "gpt2-lit": [str(Path(sys.executable).with_name("gpt2-lit"))],
    "python -m gpt2_lit": [sys.executable, "-m", "gpt2_lit"],
    "python -m gpt2_lit.cli.main": [sys.executable, "-m", "gpt2_lit.cli.main"],
}


def call(way: str, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*WAYS[way], *args], cwd=cwd, capture_output=True, text=True, timeout=200)


def test_python_m_trains_and_advises_itself(tmp_path: Path) -> None:
    done = call("python -m gpt2_lit", "fit", *SMALL, "--trainer.max_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "python -m gpt2_lit fit --ckpt_path logs/version_0/checkpoints/last.ckpt" in done.stdout
    assert os.listdir(tmp_path) == ["logs"]


def test_the_file_of_the_program_as_a_module_is_the_program(tmp_path: Path) -> None:
    done = call("python -m gpt2_lit.cli.main", "--help", cwd=tmp_path)
    assert done.stdout.startswith("usage: python -m gpt2_lit ")


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
    (tmp_path / "signal.py").write_text("open('ran', 'w')")
    (tmp_path / "tensorboardX.py").write_text("open('ran', 'w')")
    (tmp_path / "my_module.py").write_text("from torch.nn import Identity\nclass Blocks(Identity): pass\n")
    options = ["fit", *SMALL, "--trainer.max_steps=1"]
    named = call("gpt2-lit", *options, "--model.backbone", "my_module.Blocks", cwd=tmp_path)
    resumed = call("gpt2-lit", "fit", "--ckpt_path", "last", "--trainer.max_steps=2", cwd=tmp_path)
    assert (named.returncode, resumed.returncode) == (0, 0), named.stderr + resumed.stderr
    assert "gpt2-lit fit --ckpt_path logs/version_0/checkpoints/last.ckpt" in named.stdout
    assert not (tmp_path / "ran").exists()
