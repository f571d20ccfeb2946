import os
import pickle
import pty
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL, Marker

from gpt2_lit import EmbeddingModule, EmbeddingStub
from gpt2_lit.cli.main import train
from gpt2_lit.cli.tool import main
from gpt2_lit.errors import NotPermitted
from gpt2_lit.trust import foreign_code, foreign_code_of_run, is_made_here, mark_as_made_here

EVIL = "open(__file__ + '.ran', 'w').close()\nfrom torch.nn import Identity\nclass Blocks(Identity): pass\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "config.yaml"
    path.parent.mkdir()
    path.write_text("model: {embed_dim: 8}")
    return path


@pytest.fixture(scope="module")
def their_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's directory: a run with a backbone of theirs, and its code."""
    directory = tmp_path_factory.mktemp("theirs")
    (directory / "theirs.py").write_text(EVIL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        patch.setattr(sys, "path", sys.path[:])
        options = [*SMALL, "--trainer.max_steps=1", "--model.backbone=theirs.Blocks"]
        patch.setattr(sys, "argv", ["train_stub.py", "fit", *options])
        train()
    del sys.modules["theirs"]
    (directory / "theirs.py.ran").unlink()
    return directory


@pytest.fixture
def from_elsewhere(their_directory: Path, tmp_path: Path) -> Iterator[Path]:
    """The checkpoint of their run, after all of their directory was copied into this one."""
    shutil.copytree(their_directory, tmp_path, dirs_exist_ok=True)
    yield tmp_path / "logs/version_0/checkpoints/last.ckpt"
    sys.modules.pop("theirs", None)


def test_a_run_made_here_is_trusted_wherever_it_is_moved_until_its_config_changes(config: Path, tmp_path: Path) -> None:
    assert not is_made_here(config)
    mark_as_made_here(config)
    assert is_made_here(config)
    moved = shutil.copytree(config.parent, tmp_path / "moved") / "config.yaml"
    assert is_made_here(moved)
    moved.write_text("model: {backbone: theirs.Blocks}")
    assert not is_made_here(moved)


def test_a_run_of_another_user_or_machine_is_not_made_here(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_as_made_here(config)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    assert not is_made_here(config)
    mark_as_made_here(config)
    key = tmp_path / "other/gpt2_lit/run.key"
    assert (key.stat().st_mode & 0o777, len(key.read_bytes()), os.listdir(key.parent)) == (0o600, 32, ["run.key"])
    key.write_bytes(b"")  # an empty key would be everybody's
    assert not is_made_here(config)


def test_without_a_home_a_run_goes_unsigned(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    mark_as_made_here(config)
    assert os.listdir(config.parent) == ["config.yaml"]


HARMLESS = [
    {"model": {"backbone": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4}}}},
    {"trainer": {"logger": {"class_path": "gpt2_lit.cli.run.RunLogger", "init_args": {"save_dir": "/a/b.c"}}}},
    {"data": {"source": ["a.txt", "https://x.org/b.txt?q=1"], "tokenizer": "words"}, "monitor": "val/loss"},
    {"trainer": {"precision": "16-mixed", "max_epochs": 1.5, "callbacks": None}},
]
FOREIGN = [
    ({"model": {"backbone": {"class_path": "theirs.Blocks"}}}, "theirs.Blocks"),
    ({"model": {"backbone": "theirs.Blocks"}}, "theirs.Blocks"),
    ({"model.backbone.class_path": "theirs.Blocks"}, "theirs.Blocks"),
    ({"model": {"backbone": {"class_path": "torch_of_theirs.Blocks"}}}, "torch_of_theirs.Blocks"),
    ({"trainer": {"callbacks": [{"class_path": "theirs.Callback"}]}}, "theirs.Callback"),
    ({"trainer": {"callbacks": {"init_args": {"on_fit_start": "os.system"}}}}, "os.system"),
    ({"model": "a/model.yaml"}, "a/model.yaml"),
    ({"model": "file"}, "file"),
    ({"model": {"backbone": '{"class_path": "theirs\\u002eBlocks"}'}}, '{"class_path": "theirs\\u002eBlocks"}'),
    ({"data": {"tokenizer": {"class_path": "theirs.Words"}}}, "theirs.Words"),
    ({"data": {"tokenizer.class_path": "theirs.Words"}}, "theirs.Words"),
    ({"weights_only": False}, "weights_only: False"),
    ({"data": {"tokenizer": "class_path: theirs.Words"}}, "class_path: theirs.Words"),
]


@pytest.mark.parametrize("options", HARMLESS, ids=str)
def test_packages_that_come_along_and_texts_are_not_foreign(options: dict) -> None:
    assert foreign_code(options) == []


@pytest.mark.parametrize(("options", "name"), FOREIGN, ids=str)
def test_whatever_else_could_be_imported_is_foreign(
    options: dict, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert foreign_code(options) == [name]


def test_a_run_from_elsewhere_is_named_and_refused_before_it_is_imported(
    here: Callable[..., str],
    from_elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    printed = here("validate", f"--ckpt_path={from_elsewhere}")  # without a terminal nobody is asked
    assert "theirs.Blocks" in printed
    assert "--trust-run" in printed
    assert not (tmp_path / "theirs.py.ran").exists()

    left_out = here("validate", f"--ckpt_path={from_elsewhere}", "--ignore-run-config", *SMALL)
    assert "val/loss" in left_out, left_out
    assert not (tmp_path / "theirs.py.ran").exists()

    trusted = here("fit", "--ckpt_path=last", "--trust-run", "--trainer.max_steps=2")
    assert "theirs.Blocks" in trusted
    assert "trained        2 steps" in trusted
    assert (tmp_path / "theirs.py.ran").exists()
    config = from_elsewhere.parents[1] / "config.yaml"
    assert is_made_here(config)
    assert yaml.safe_load(config.read_text())["trust_run"] is False


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Two ends of a terminal: what is written to the first is typed at the second."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(("answer", "is_trusted"), [(b"\n", False), (b"y\n", True)])
def test_a_person_on_a_terminal_is_asked(
    here: Callable[..., str],
    from_elsewhere: Path,
    tmp_path: Path,
    terminal: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    is_trusted: bool,
) -> None:
    os.write(terminal[0], answer)
    with open(terminal[1], closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        printed = here("validate", f"--ckpt_path={from_elsewhere}")
    assert "Do you trust" in printed
    assert "was not written here" in printed
    assert ("val/loss" in printed) == (tmp_path / "theirs.py.ran").exists() == is_trusted


def test_from_python_a_checkpoint_from_elsewhere_imports_nothing_that_is_not_imported(
    from_elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotPermitted, match=r"theirs\.Blocks"):
        EmbeddingStub.load_from_checkpoint(from_elsewhere)
    assert EmbeddingModule.from_pretrained(from_elsewhere).embed_dim == 8
    assert not (tmp_path / "theirs.py.ran").exists()
    model = EmbeddingStub.load_from_checkpoint(from_elsewhere, backbone=torch.nn.Identity())
    assert type(model.backbone) is torch.nn.Identity
    mark_as_made_here(from_elsewhere.parents[1] / "config.yaml")
    assert type(EmbeddingStub.load_from_checkpoint(from_elsewhere).backbone).__name__ == "Blocks"


def test_no_way_to_read_a_checkpoint_runs_a_pickle(here: Callable[..., str], tmp_path: Path) -> None:
    path, mark = tmp_path / "logs/version_0/checkpoints/last.ckpt", tmp_path / "mark"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "hyper_parameters": {"embed_dim": Marker(mark)}}, path)
    for args in (["validate", "--ckpt_path=last"], ["fit", f"--ckpt_path={path}"]):
        printed = here(*args, *SMALL)
        assert "is not a checkpoint of tensors and plain values" in printed
        assert "Traceback" not in printed
    for args in (["export", "last", "a.safetensors"], ["neighbours", "last", "rain"]):
        with pytest.raises(SystemExit, match="is not a checkpoint of tensors and plain values"):
            main(args)
    with pytest.raises(pickle.UnpicklingError):
        EmbeddingStub.load_from_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # so the test would see it
    assert mark.exists()


NAMED_A_BILLION_TIMES = "\n".join(
    ["a0: &a0 [x.y]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (NAMED_A_BILLION_TIMES, "more than 10,000 values, too many to look at"),
        ("a: &a [*a]", "more than 10,000 values, too many to look at"),
        ("[" * 5000, "config.yaml (cannot be read)"),
    ],
    ids=["a billion names", "itself", "deep"],
)
def test_a_config_that_is_too_much_to_look_at_is_not_trusted(tmp_path, content, named):
    (tmp_path / "config.yaml").write_text(content)
    [found] = foreign_code_of_run(tmp_path / "config.yaml")
    assert found.endswith(named)


def test_hyperparameters_within_each_other_are_not_trusted():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert foreign_code(deep) == ["values within values, too deep to look at"]
