import contextlib
import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Disk, logged
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

from gpt2_lit import EmbeddingStub, GPTDataModule
from gpt2_lit.cli.run import RunCheckpoint, RunLogger, find_checkpoint
from gpt2_lit.cli.signals import StopSignals
from gpt2_lit.data import order
from gpt2_lit.errors import FileError
from gpt2_lit.store.prepare import prepare

EPOCH = 11  # batches: 44 windows of 4 tokens and one that is left, 4 windows a batch
TEXT = " ".join(f"w{i}" for i in range(181))


class Watch(Callback):
    """Keeps the windows that were trained on, batch by batch, and breaks off in the batch with this number.

    Or, in ``interrupt``, gets Ctrl-C: in a training batch, a validation batch, or at the end of an epoch, when it has
    seen this number of training batches; and ``again`` in a training batch.
    """

    def __init__(
        self, break_in: int | None = None, interrupt: tuple[str, int] | None = None, again: int | None = None
    ) -> None:
        self.trained: list[list[int]] = []
        self.break_in = break_in
        self.interrupts = [interrupt, ("training", again)]

    def on_sanity_check_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.interrupt_in("sanity check")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.interrupt_in("training")
        if len(self.trained) == self.break_in:
            raise ConnectionError("the power went")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trained.append(batch.input_ids[:, 0].tolist())

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.interrupt_in("validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.interrupt_in("epoch end")

    def interrupt_in(self, place: str) -> None:
        if (place, len(self.trained)) in self.interrupts:
            signal.raise_signal(signal.SIGINT)


class EstimatingStub(EmbeddingStub):
    """Asks how many steps there will be, as learning rate schedules do, for which Lightning makes the loaders early."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


class RestoresLate(SingleDeviceStrategy):
    """Restores as the strategies do that shard a model: when the optimizer is there, and the loaders may be too."""

    def __init__(self) -> None:
        super().__init__(device="cpu")

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


StrategyRegistry.register("restores late", RestoresLate)


@pytest.fixture(scope="module", autouse=True)
def short_waits() -> Iterator[None]:
    """Workers of a loader that is garbage in a cycle may not be told to end: torch waits so long for each of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield
        gc.collect()


def flat(batches: list[list[int]]) -> list[int]:
    return [window for batch in batches for window in batch]


def train(
    folder: Path,
    text: Path,
    checkpoint: Path | str | None = None,
    break_in: int | None = None,
    interrupt: tuple[str, int] | None = None,
    again: int | None = None,
    every_n_steps: int = 10**6,
    num_workers: int = 0,
    val_fraction: float = 0.0,
    batch_size: int = 4,
    keep_last: int = 1,
    skip: str | None = None,
    shuffle: Any = "global",
    tokenizer: str = "words",
    model: type[EmbeddingStub] = EmbeddingStub,
    **options: Any,
) -> tuple[list[list[int]], torch.Tensor]:
    """What a run trained on, and the token table that it ended with."""
    seed_everything(1, verbose=False)
    data = GPTDataModule(
        text,
        tokenizer,
        context_size=4,
        batch_size=batch_size,
        val_fraction=val_fraction,
        num_workers=num_workers,
        shuffle=shuffle,
        skip=skip,
    )
    stub = model(data.vocab_size, embed_dim=8, context_size=4, dropout=0.2)
    watch = Watch(break_in, interrupt, again)
    trainer = Trainer(
        **({"max_epochs": 3} | options),
        accelerator="cpu",
        logger=RunLogger(str(folder), version=0),
        callbacks=[watch, RunCheckpoint(every_n_steps, keep_last=keep_last), ModelSummary(0)],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    ends = contextlib.nullcontext()
    if interrupt:
        ends = pytest.raises(SystemExit, match="130")
    elif break_in:
        ends = pytest.raises(ConnectionError)
    with ends:
        trainer.fit(stub, data, ckpt_path=checkpoint, weights_only=True)
    return watch.trained, stub.embedding.token_embedding.weight.detach()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple]:
    """Runs that nobody stopped, one for each set of options: their windows, weights and curves."""
    runs: dict[str, tuple] = {}

    def undisturbed(**options: Any) -> tuple[list[list[int]], torch.Tensor, dict[str, list]]:
        if (key := repr(options)) not in runs:
            directory = tmp_path_factory.mktemp("whole")
            runs[key] = (*train(directory, text, **options), logged(directory / "version_0"))
        return runs[key]

    return undisturbed


@pytest.mark.parametrize(
    ("first", "then", "trained_before"),
    [
        pytest.param({"break_in": 16, "every_n_steps": 7}, {}, 14, id="killed within an epoch"),
        pytest.param({"break_in": 16, "every_n_steps": 7, "num_workers": 2}, {}, 14, id="with workers that prefetch"),
        pytest.param({"break_in": 15, "every_n_steps": 7}, {"num_workers": 2}, 14, id="workers only then"),
        pytest.param({"break_in": 13, "every_n_steps": EPOCH}, {}, EPOCH, id="saved at the last step of an epoch"),
        pytest.param({"break_in": 13}, {}, EPOCH, id="saved at the end of an epoch"),
        pytest.param({"max_steps": 5}, {}, 5, id="max_steps within an epoch"),
        pytest.param({"max_steps": EPOCH}, {}, EPOCH, id="max_steps at the end of an epoch"),
        pytest.param({"max_epochs": 1}, {}, EPOCH, id="more epochs"),
        pytest.param(
            {"break_in": 13, "every_n_steps": 6, "limit_train_batches": 5},
            {"limit_train_batches": 5},
            12,
            id="limit_train_batches",
        ),
        pytest.param(
            {"break_in": 13, "every_n_steps": 3, "accumulate_grad_batches": 2},
            {"accumulate_grad_batches": 2},
            11,
            id="in the middle of an accumulated step",
        ),
        pytest.param(
            {"break_in": 16, "every_n_steps": 7, "model": EstimatingStub},
            {"model": EstimatingStub},
            14,
            id="estimated steps",
        ),
        pytest.param(
            {"break_in": 16, "every_n_steps": 7, "model": EstimatingStub, "num_workers": 2},
            {"model": EstimatingStub, "num_workers": 2},
            14,
            id="estimated steps with workers",
        ),
        pytest.param(
            {"break_in": 14, "every_n_steps": 7, "val_fraction": 0.2},
            {"val_fraction": 0.2},
            14,
            id="with validation",
        ),
        pytest.param(
            {"break_in": 16, "every_n_steps": 7, "shuffle": "block"}, {"shuffle": "block"}, 14, id="shuffled in blocks"
        ),
        pytest.param({"break_in": 16, "every_n_steps": 7, "shuffle": False}, {"shuffle": False}, 14, id="not shuffled"),
        pytest.param(
            {
                "break_in": 16,
                "every_n_steps": 7,
                "strategy": "restores late",
                "model": EstimatingStub,
                "num_workers": 2,
            },
            {"strategy": "restores late", "model": EstimatingStub, "num_workers": 2},
            14,
            id="restored after the steps were estimated",
        ),
    ],
)
def test_a_run_that_was_stopped_goes_on_with_the_windows_it_has_not_seen_and_ends_with_the_same_weights(
    tmp_path: Path, text: Path, undisturbed: Any, first: dict[str, Any], then: dict[str, Any], trained_before: int
) -> None:
    whole, weights, _ = undisturbed(**then)
    before, _ = train(tmp_path, text, **first)
    after, resumed_weights = train(tmp_path, text, tmp_path / "version_0/checkpoints/last.ckpt", **then)
    assert before[:trained_before] + after == whole
    assert torch.equal(resumed_weights, weights)


@pytest.mark.parametrize(
    ("place", "trained_before", "options"),
    [
        pytest.param(("sanity check", 0), 1, {}, id="before the first step"),
        pytest.param(("training", 14), 15, {}, id="within an epoch"),
        pytest.param(("training", EPOCH - 1), EPOCH, {}, id="in the last step of an epoch"),
        pytest.param(("training", 3 * EPOCH - 1), 3 * EPOCH, {}, id="in the very last step"),
        pytest.param(("validation", EPOCH), EPOCH, {}, id="in a validation"),
        pytest.param(("validation", EPOCH), EPOCH, {"num_workers": 2}, id="in a validation, with workers"),
        pytest.param(("epoch end", EPOCH), EPOCH, {}, id="at the end of an epoch"),
        pytest.param(("training", 4), 5, {"val_check_interval": 5}, id="in the step before a validation"),
        pytest.param(("validation", 5), 5, {"val_check_interval": 5}, id="in a validation within an epoch"),
        pytest.param(("validation", 5), 5, {"val_check_interval": 5, "max_steps": 27}, id="which max_steps ends"),
        pytest.param(("training", 12), 14, {"accumulate_grad_batches": 3}, id="in an accumulated step"),
        pytest.param(
            ("validation", 5),
            6,
            {"val_check_interval": 5, "accumulate_grad_batches": 2},
            id="in a validation within an accumulated step",
        ),
        pytest.param(("training", EPOCH - 1), EPOCH, {"limit_val_batches": 0}, id="in the last step, no validation"),
        pytest.param(("training", EPOCH - 1), EPOCH, {"check_val_every_n_epoch": 2}, id="with no validation now"),
        pytest.param(
            ("training", 2), 3, {"val_check_interval": 3, "check_val_every_n_epoch": None}, id="across epochs"
        ),
        pytest.param(("validation", 4), 4, {"limit_train_batches": 4}, id="in a validation, limit_train_batches"),
    ],
)
def test_a_run_that_is_interrupted_goes_on_with_the_same_windows_weights_and_validations(
    tmp_path: Path, text: Path, undisturbed: Any, place: tuple[str, int], trained_before: int, options: dict[str, Any]
) -> None:
    options = {"batch_size": 3, "val_fraction": 0.25, **options}  # 11 batches for training, 4 for validation
    whole, weights, of_whole = undisturbed(**options)
    before, _ = train(tmp_path, text, interrupt=place, **options)
    after, resumed_weights = train(tmp_path, text, tmp_path / "version_0/checkpoints/last.ckpt", **options)
    assert len(before) == trained_before
    assert before + after == whole
    assert torch.equal(resumed_weights, weights)
    of_both = logged(tmp_path / "version_0")
    for tag in ("train/loss", "val/loss", "epoch"):
        assert of_both.get(tag) == of_whole.get(tag), tag


def test_a_run_on_a_token_store_goes_on_in_blocks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK_WINDOWS", 4)  # so that few windows are many blocks and groups
    monkeypatch.setattr(order, "GROUP_BLOCKS", 2)
    (tmp_path / "texts").mkdir()
    for part in range(3):
        (tmp_path / f"texts/{part}.txt").write_text(" ".join(f"{part}{i}" for i in range(60)))
    prepare(tmp_path / "texts", tmp_path / "store", num_processes=1, show_progress=False)
    options: dict[str, Any] = {"tokenizer": "gpt2", "shuffle": "block", "max_epochs": 2}
    whole, weights = train(tmp_path / "whole", tmp_path / "store", **options)
    before, _ = train(tmp_path / "stopped", tmp_path / "store", break_in=16, every_n_steps=7, **options)
    last = tmp_path / "stopped/version_0/checkpoints/last.ckpt"
    after, resumed_weights = train(tmp_path / "stopped", tmp_path / "store", last, num_workers=2, **options)
    assert before[:14] + after == whole
    assert torch.equal(resumed_weights, weights)


def test_an_epoch_has_every_window_once_but_those_of_the_batch_that_is_not_full(tmp_path: Path, text: Path) -> None:
    trained, _ = train(tmp_path, text)
    epochs = [flat(trained[start : start + EPOCH]) for start in range(0, 3 * EPOCH, EPOCH)]
    assert all(len(set(epoch)) == len(epoch) == 44 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("model", [EmbeddingStub, EstimatingStub])
@pytest.mark.parametrize(
    ("before", "after", "num_seen", "left"),
    [
        pytest.param(4, 2, 24, 10, id="smaller"),
        pytest.param(2, 4, 24, 5, id="larger"),
        pytest.param(4, 5, 24, 4, id="no multiple"),
        pytest.param(4, 8, 40, 0, id="nothing left for a batch so large"),
        pytest.param(4, 1, 44, 0, id="an epoch that is over stays so"),
        pytest.param(8, 2, 40, 0, id="an epoch that is over, and left out more"),
    ],
)
def test_with_another_batch_size_the_epoch_still_has_every_window_once(
    tmp_path: Path, text: Path, before: int, after: int, num_seen: int, left: int, model: type[EmbeddingStub]
) -> None:
    first, _ = train(tmp_path, text, batch_size=before, max_steps=num_seen // before, model=model)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    then, _ = train(tmp_path, text, last, batch_size=after, max_epochs=2, model=model)
    assert len(then) == left + 45 // after
    epoch = flat(first + then[:left])
    assert len(epoch) == len(set(epoch)) == num_seen + left * after
    assert len(set(flat(then[left:]))) == 45 // after * after
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert logged(tmp_path / "version_0")["epoch"][-1][1] == 1


def test_best_is_the_checkpoint_with_the_lowest_val_loss_also_after_going_on(tmp_path: Path, text: Path) -> None:
    def best() -> dict[str, Any]:
        return torch.load(tmp_path / "version_0/checkpoints/best.ckpt", weights_only=True)

    train(tmp_path, text, val_fraction=0.2, max_epochs=2)
    train(tmp_path, text, tmp_path / "version_0/checkpoints/last.ckpt", val_fraction=0.2, max_epochs=4)
    losses = dict(logged(tmp_path / "version_0")["val/loss"])
    assert len(losses) == 4
    lowest = min(losses, key=losses.__getitem__)
    assert best()["global_step"] == lowest + 1
    key = next(key for key in best()["callbacks"] if key.startswith("RunCheckpoint"))
    assert best()["callbacks"][key]["best_score"] == pytest.approx(losses[lowest])


@pytest.mark.parametrize("has_links", [True, False])
def test_the_last_checkpoints_stay_under_the_number_of_their_step(
    tmp_path: Path, text: Path, undisturbed: Any, monkeypatch: Any, has_links: bool
) -> None:
    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    train(tmp_path, text, every_n_steps=3, keep_last=3, max_steps=14)
    folder = tmp_path / "version_0/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", *(f"step-{n}.ckpt" for n in (11, 12, 14))]
    assert (folder / "last.ckpt").samefile(folder / "step-14.ckpt") is has_links
    whole, weights, _ = undisturbed()
    after, resumed_weights = train(tmp_path, text, folder / "step-12.ckpt", every_n_steps=100, keep_last=2)
    assert after == whole[12:]
    assert torch.equal(resumed_weights, weights)
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step-22.ckpt", "step-33.ckpt"]


def test_a_checkpoint_is_put_in_place_only_when_it_is_whole(tmp_path: Path, text: Path, monkeypatch: Any) -> None:
    train(tmp_path, text, max_epochs=1)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    good = last.read_bytes()

    def torn(self: Trainer, path: Path, **options: Any) -> None:
        path.write_bytes(good[: len(good) // 2])
        raise ConnectionError("the power went")

    monkeypatch.setattr(Trainer, "save_checkpoint", torn)
    train(tmp_path, text, last, break_in=99, max_epochs=2)
    assert last.read_bytes() == good


def test_an_error_of_the_disk_names_the_checkpoint(tmp_path: Path, text: Path, monkeypatch: Any) -> None:
    def full(self: Trainer, path: Path, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(FileError, match=r"last.ckpt cannot be written \(No space left on device\)"):
        train(tmp_path, text, max_epochs=1)


def test_a_write_that_fails_leaves_the_former_checkpoint_and_nothing_else(
    tmp_path: Path, text: Path, monkeypatch: Any
) -> None:
    train(tmp_path, text, max_epochs=1)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    good = last.read_bytes()

    def full(checkpoint: Any, file: Any) -> None:  # as torch tells of it
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("[enforce fail] unexpected pos")  # noqa: B904

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match="No space left on device"):
        train(tmp_path, text, last, max_epochs=2)
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert last.read_bytes() == good


CHECKPOINT = ["sync last", "name last", "sync checkpoints"]


def test_a_checkpoint_is_on_the_disk_before_its_name_and_its_name_before_the_training_goes_on(
    disk: Disk, tmp_path: Path, text: Path
) -> None:
    train(tmp_path, text, val_fraction=0.2, max_epochs=1)
    best = ["sync best", "name best", "sync checkpoints"]
    assert disk.events[-6:] == best + CHECKPOINT
    disk.events.clear()
    train(tmp_path, text, every_n_steps=5, max_epochs=1)  # of 11 steps
    assert disk.events == 3 * CHECKPOINT


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_error_at_any_moment_leaves_a_checkpoint_to_resume_from(
    disk: Disk, tmp_path: Path, text: Path, number: int
) -> None:
    train(tmp_path, text, max_epochs=1)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    former = last.read_bytes()
    disk.events.clear()
    disk.failing_at = number
    with pytest.raises(FileError, match=r"last.ckpt cannot be written \(Input/output error\)"):
        train(tmp_path, text, last, max_epochs=2)
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert (last.read_bytes() == former) == (number < 3)
    train(tmp_path, text, last, max_epochs=3)
    assert torch.load(last, weights_only=True)["global_step"] == 3 * EPOCH


def test_a_checkpoint_needs_no_directory_for_temporary_files(tmp_path: Path, text: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))
    train(tmp_path, text, max_epochs=1)
    assert torch.load(tmp_path / "version_0/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a file's size stands for a full disk")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_curves_that_cannot_be_written_end_a_run_by_an_error_that_names_them(tmp_path: Path, text: Path) -> None:
    import resource

    train(tmp_path, text, max_epochs=1)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(
            FileError, match=r"the curves in .*version_0 cannot be written \(File too large\). Make room"
        ):
            train(tmp_path, text, last, max_epochs=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.tmp"))
    train(tmp_path, text, last, max_epochs=2)
    assert torch.load(last, weights_only=True)["global_step"] == 2 * EPOCH


def test_runs_that_start_together_get_a_directory_each(tmp_path: Path) -> None:
    (tmp_path / "version_3").mkdir()
    (tmp_path / "version_old").mkdir()
    with ThreadPoolExecutor(16) as threads:
        loggers = [RunLogger(str(tmp_path)) for _ in range(16)]
        assert sorted(threads.map(lambda logger: logger.version, loggers)) == list(range(4, 20))
    assert len({logger.log_dir for logger in loggers}) == 16
    assert RunLogger(str(tmp_path), version=3).version == 3
    assert RunLogger(str(tmp_path), version="old").log_dir == str(tmp_path / "old")


def test_only_rank_zero_makes_the_directory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert RunLogger(str(tmp_path)).version == 0
    assert not list(tmp_path.iterdir())


def test_the_best_checkpoint_is_found_by_a_trainer_in_python(tmp_path: Path, text: Path) -> None:
    data = GPTDataModule(text, "words", context_size=4, batch_size=4, val_fraction=0.2)
    checkpoint = RunCheckpoint()
    assert checkpoint.best_model_path == ""
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=RunLogger(str(tmp_path)),
        callbacks=[checkpoint],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(EmbeddingStub(data.vocab_size, embed_dim=8, context_size=4), data)
    trainer.test(ckpt_path="best", datamodule=data, verbose=False)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(EmbeddingStub(data.vocab_size, embed_dim=8, context_size=4), data, ckpt_path="best")
    assert trainer.current_epoch == 2
    assert trainer.ckpt_path == checkpoint.best_model_path == str(tmp_path / "version_0/checkpoints/best.ckpt")
    assert checkpoint.last_model_path == str(tmp_path / "version_0/checkpoints/last.ckpt")


def test_a_training_that_begins_anew_tells_of_the_checkpoint_that_it_replaces(
    tmp_path: Path, text: Path, caplog: Any
) -> None:
    train(tmp_path, text, max_epochs=1)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    train(tmp_path, text, last, max_epochs=2)
    assert "former training" not in caplog.text
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):  # Lightning's own
        train(tmp_path, text, "last", max_epochs=1)
    assert f"{last} is of a former training and will be replaced" in caplog.text


def test_the_best_checkpoint_survives_spawned_processes_and_is_not_that_of_another_run(
    tmp_path: Path, text: Path
) -> None:
    checkpoints = tmp_path / "version_0/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt").write_bytes(b"of another run")
    checkpoint = RunCheckpoint()
    data = GPTDataModule(text, "words", context_size=4, batch_size=4, val_fraction=0.0)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        strategy="ddp_spawn",
        devices=1,
        logger=RunLogger(str(tmp_path), version=0),
        callbacks=[checkpoint],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(EmbeddingStub(data.vocab_size, embed_dim=8, context_size=4), data)
    assert checkpoint.best_model_path == ""
    assert (checkpoints / "last.ckpt").exists()


def make_run(directory: Path, age: float, *files: str) -> None:
    """Files of a run, written so many seconds ago; last.ckpt is of step 40."""
    for name in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"global_step": 40}, path)
        os.utime(path, (time.time() - age, time.time() - age))


LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


def test_last_is_that_of_the_newest_run_and_is_told_with_step_and_age(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gpt2_lit")
    for age, name in ((8000, "version_2"), (7300, "version_10"), (9000, "version_9")):
        make_run(tmp_path / name, age, LAST)
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_10" / LAST
    assert caplog.messages == [f"--ckpt_path last: {tmp_path}/version_10/{LAST} (step 40, 2 hours ago)"]
    make_run(tmp_path / "lightning_logs" / "version_0", 60, LAST)  # as CSVLogger has it
    assert find_checkpoint("last", tmp_path) == tmp_path / "lightning_logs/version_0" / LAST
    make_run(tmp_path, 30, LAST)  # as loggers without directories have it
    assert find_checkpoint("last", tmp_path) == tmp_path / LAST


def test_no_older_run_is_taken_in_place_of_the_newest_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in .* has a last.ckpt. Leave"):
        find_checkpoint("last", tmp_path)
    make_run(tmp_path / "version_0", 7200, LAST)
    with pytest.raises(FileNotFoundError, match=r"has a best.ckpt. The newest is .*version_0 \(2 hours ago\)"):
        find_checkpoint("best", tmp_path)
    make_run(tmp_path / "version_0", 7200, BEST)
    make_run(tmp_path / "version_1", 60, LAST)
    both = r"the newest run, .*version_1 \(1 minute ago\), has no best.ckpt. .*version_0.* \(step 40, 2 hours ago\)"
    with pytest.raises(FileNotFoundError, match=both):
        find_checkpoint("best", tmp_path)
    make_run(tmp_path / "version_2", 1, "config.yaml")  # died before its first checkpoint
    with pytest.raises(FileNotFoundError, match=r"version_2 \(less than a minute ago\), has no last.ckpt"):
        find_checkpoint("last", tmp_path)


def test_a_second_signal_stops_at_once(tmp_path: Path, text: Path, capfd: Any) -> None:
    # In one long step, which the first signal lets end.
    before, _ = train(tmp_path, text, interrupt=("training", 3), again=5, accumulate_grad_batches=10**6)
    assert len(before) == 5, "the step was not done, so that it went on"
    assert capfd.readouterr().err.count("Stopping when this step is done") == 1
    assert not (tmp_path / "version_0/checkpoints").exists()


def test_signals_that_were_taken_twice_are_given_back_and_a_thread_takes_none() -> None:
    trainer, signals, before = Trainer(logger=False, accelerator="cpu"), StopSignals(), signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as pool:
        pool.submit(signals.take, trainer).result()
    assert signal.getsignal(signal.SIGTERM) is before
    signals.take(trainer)
    signals.take(trainer)
    assert signal.getsignal(signal.SIGTERM) is not before
    signals.give_back()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_without_a_directory_leaves_signals_alone() -> None:
    trainer, before = Trainer(logger=False, accelerator="cpu"), signal.getsignal(signal.SIGTERM)
    checkpoint = RunCheckpoint()
    checkpoint.setup(trainer, EmbeddingStub(vocab_size=4, context_size=2, embed_dim=2), "fit")
    try:
        checkpoint.on_sanity_check_start(trainer, EmbeddingStub(vocab_size=4, context_size=2, embed_dim=2))
        checkpoint.on_train_start(trainer, EmbeddingStub(vocab_size=4, context_size=2, embed_dim=2))
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        checkpoint._signals.give_back()
