import re
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from conftest import SMALL
from lightning.pytorch import Trainer

import gpt2_lit.cli.progress_bar
from gpt2_lit.cli.progress_bar import RunProgressBar, _line

METRICS = {"loss": "5.628", "val loss": "7.273", "tokens/s": "12,844", "data wait": "3%", "left": "1:12:27"}


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (None, "Epoch 5:  92%|{bar}| 72/78, loss=5.628, val loss=7.273, tokens/s=12,844, data wait=3%, left=1:12:27"),
        (110, "Epoch 5:  92%|{bar}| 72/78, loss=5.628, val loss=7.273, tokens/s=12,844, data wait=3%, left=1:12:27"),
        (90, "Epoch 5:  92%|{bar}| 72/78, loss=5.628, val loss=7.273, tokens/s=12,844, left=1:12:27"),
        (80, "Epoch 5:  92%|{bar}| 72/78, loss=5.628, tokens/s=12,844, left=1:12:27"),
        (68, "Epoch 5:|{bar}| 72/78, loss=5.628, tokens/s=12,844, left=1:12:27"),
    ],
)
def test_a_narrow_terminal_keeps_bar_loss_speed_and_time_left(width: int | None, line: str) -> None:
    assert _line(5, 72, 78, METRICS, "", width) == line
    assert width is None or len(line.replace("{bar}", 8 * "#")) <= width


def test_a_long_run_has_a_bar_at_80_columns() -> None:
    metrics = {**METRICS, "tokens/s": "120,844", "left": "112:03:27"}
    assert len(_line(12, 120000, 1250000, metrics, "", 80).replace("{bar}", "")) <= 75


def test_a_run_without_an_end_has_no_bar_and_names_of_metrics_may_have_braces() -> None:
    assert _line(0, 3, None, {"{x}": 1}, "", 80) == "Epoch 0: 3 steps, {{x}}=1"


@pytest.mark.parametrize(
    ("limits", "batches_left"),
    [
        ({"max_epochs": 3}, 18),
        ({"max_epochs": 3, "max_steps": 5}, 8),
        ({"max_epochs": -1, "max_steps": 5}, 8),
        ({"max_epochs": -1}, None),
    ],
    ids=str,
)
def test_the_time_left_is_that_of_the_batches_left(
    limits: dict[str, int], batches_left: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten batches an epoch, four a step, a second each: 12 batches are done, four of them before this run."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, accumulate_grad_batches=4, **limits)
    trainer.fit_loop.max_batches = 10
    trainer.fit_loop.epoch_loop.batch_progress.total.processed = 12
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 3
    bar = RunProgressBar()
    monkeypatch.setattr(gpt2_lit.cli.progress_bar, "time", SimpleNamespace(perf_counter=lambda: 8.0))
    bar.begun, bar.batches_before = 0.0, 4
    assert bar._seconds_left(trainer) == batches_left


@pytest.mark.skipif(sys.platform == "win32", reason="it needs a terminal that a program can look at")
def test_in_a_terminal_of_80_columns_a_run_is_one_bar_of_its_steps(in_terminal: Callable[..., list[str]]) -> None:
    lines = in_terminal("fit", *SMALL, "--trainer.max_steps=15")
    [bar] = [line for line in lines if "Epoch" in line]
    assert re.fullmatch(r"Epoch 1: 100%\|█+\| 15/15, loss=\d\.\d{3}, tokens/s=[\d,]+, left=0:00", bar)
    assert len(bar) <= 80
    assert not [line for line in lines if "Validation" in line or "Trainer.fit" in line]


def test_the_bar_of_a_resumed_run_continues(here: Callable[..., str]) -> None:
    here("fit", *SMALL, "--trainer.max_steps=15")
    printed = here("fit", "--ckpt_path=last", "--trainer.max_steps=20")
    steps = re.findall(r"Epoch 1: +(\d+)%\|.{10}\| (\d+)/20", printed)
    assert (steps[0], steps[-1]) == (("75", "15"), ("100", "20"))
