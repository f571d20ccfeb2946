import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT

from gpt2_lit.cli import starter
from gpt2_lit.cli.starter import PATTERNS, copy_starter
from gpt2_lit.cli.tool import main
from gpt2_lit.errors import FileError

NAMES = sorted(path.relative_to(PROJECT).as_posix() for pattern in PATTERNS for path in PROJECT.glob(pattern))


def test_in_an_empty_directory_init_and_the_command_it_prints_train(
    here: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    main(["init"])
    assert capfd.readouterr().out.endswith("fit --config configs/tiny.yaml\n")
    assert {"configs/tiny.yaml", "configs/gpt.yaml", "examples/gpt.py"} < set(NAMES)
    assert all((tmp_path / name).read_bytes() == (PROJECT / name).read_bytes() for name in NAMES)
    printed = here("fit", "--config", "configs/tiny.yaml")
    assert "trained        20 steps" in printed


@pytest.mark.parametrize("name", ["configs/gpt.yaml", "examples/__init__.py"])
def test_nothing_is_overwritten_and_then_nothing_is_written_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileError, match=f"{name} is there"):
        copy_starter(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_directory_is_made_and_the_advice_quotes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["init", "my gpt"])
    assert "Train: cd 'my gpt' && " in capsys.readouterr().out
    assert sorted(os.listdir("my gpt")) == ["configs", "examples"]


def test_an_installed_package_copies_the_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "package/assets/starter/configs/a.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("a: 1")
    monkeypatch.setattr(starter, "PACKAGE", tmp_path / "package")
    assert copy_starter(tmp_path / "mine") == ["configs/a.yaml"]


@pytest.mark.slow
def test_the_wheel_holds_the_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "logs", "build", "*.egg-info")
    shutil.copytree(PROJECT, source, ignore=ignored)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {f"gpt2_lit/assets/starter/{name}" for name in NAMES} <= set(held)
    assert not [name for name in held if name.startswith(("configs", "examples", "setup"))]
