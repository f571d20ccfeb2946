import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SMALL, logged
from lightning.pytorch import Trainer

import gpt2_lit.cli.validation
from gpt2_lit import EmbeddingStub, GPTDataModule
from gpt2_lit.cli.run import RunCheckpoint, RunLogger

# In words, the tale has 12 training batches of windows that do not overlap, 48 at a stride of 8, and 2 for validation.
LONG = [*SMALL, "--data.stride=8"]
VOCAB_SIZE = GPTDataModule(tokenizer="words").vocab_size


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 20 steps, on one batch, instead of 2,000 and 50."""
    monkeypatch.setattr(gpt2_lit.cli.validation, "EVERY_N_STEPS", 20)
    monkeypatch.setattr(gpt2_lit.cli.validation, "NUM_BATCHES", 1)


@pytest.mark.parametrize(
    ("options", "rule", "after"),
    [
        ([*LONG, "--trainer.max_steps=22"], "step 0, every 20 steps and the end; on 1 of 2 batches", [20, 22]),
        ([*SMALL, "--trainer.max_epochs=1"], "step 0, after each epoch and the end; on 1 of 2 batches", [12]),
        (
            [*SMALL, "--trainer.max_steps=5", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4"],
            "step 0, every 2 steps and the end; on 1 of 2 batches",
            [2, 4, 5],
        ),
        (
            [
                *SMALL,
                "--trainer.max_epochs=3",
                "--trainer.check_val_every_n_epoch=2",
                "--trainer.limit_val_batches=1.0",
            ],
            "step 0, after every 2 epochs and the end; on all 2 batches",
            [24],
        ),
    ],
    ids=str,
)
def test_a_run_is_validated_when_its_summary_says_so(
    here: Callable[..., str], tmp_path: Path, options: list[str], rule: str, after: list[int]
) -> None:
    printed = here("fit", *options)
    assert next(line.partition("val at")[2].strip() for line in printed.splitlines() if "val at" in line) == rule
    (start, loss), *later = logged(tmp_path / "logs/version_0")["val/loss"]
    assert start == 0
    assert loss == pytest.approx(math.log(VOCAB_SIZE), abs=0.01)  # nothing is learned yet
    assert [step + 1 for step, _ in later] == after  # Lightning counts steps from 0
    assert (tmp_path / "logs/version_0/checkpoints/best.ckpt").exists()


def test_a_resumed_run_does_not_repeat_the_validation_at_its_former_end(
    here: Callable[..., str], tmp_path: Path
) -> None:
    here("fit", *SMALL, "--trainer.max_steps=3")
    last, best = (
        torch.load(tmp_path / f"logs/version_0/checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best")
    )
    scores = [checkpoint["callbacks"]["RunCheckpoint"]["best_score"] for checkpoint in (last, best)]
    assert scores == [pytest.approx(logged(tmp_path / "logs/version_0")["val/loss"][1][1])] * 2
    here("fit", "--ckpt_path=best", "--trainer.max_steps=6")
    run = logged(tmp_path / "logs/version_0")
    assert [step for step, _ in run["train/loss"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in run["val/loss"]] == [0, 2, 5]


def test_a_resumed_run_is_not_validated_before_its_first_step(here: Callable[..., str], tmp_path: Path) -> None:
    here("fit", *SMALL, "--trainer.max_epochs=1")
    here("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert [step for step, _ in logged(tmp_path / "logs/version_0")["val/loss"]] == [0, 11, 23]


def test_a_start_without_a_validation_may_be_asked_for(here: Callable[..., str], tmp_path: Path) -> None:
    printed = here("fit", *SMALL, "--trainer.max_steps=1", "--trainer.num_sanity_val_steps=0")
    assert "val at  after each epoch and the end;" in printed
    assert len(logged(tmp_path / "logs/version_0")["val/loss"]) == 1


def test_the_best_checkpoint_is_that_of_a_number_once_there_is_one(tmp_path: Path) -> None:
    data = GPTDataModule(tokenizer="words", context_size=4)
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, limit_train_batches=1, callbacks=[RunCheckpoint(monitor="score")],
        logger=RunLogger(str(tmp_path)), enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Scored(data.vocab_size, [math.nan, 3.0, math.nan]), data)
    best = torch.load(tmp_path / "version_0/checkpoints/best.ckpt", weights_only=True)
    assert best["callbacks"]["RunCheckpoint"]["best_score"] == 3


class Scored(EmbeddingStub):
    """Gives these values one after the other, one each validation."""

    def __init__(self, vocab_size: int, scores: list[float]) -> None:
        super().__init__(vocab_size, embed_dim=4, context_size=4)
        self.scores = scores

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", self.scores.pop(0))
