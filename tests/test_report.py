import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import torch
import yaml
from conftest import SMALL
from lightning.pytorch import Trainer

from gpt2_lit import EmbeddingStub, GPTDataModule
from gpt2_lit.cli.report import RunReport, minutes, norms_page


def test_a_run_that_went_on_tells_what_came_of_the_whole_of_it(here: Callable[..., str], tmp_path: Path) -> None:
    whole = here("fit", *SMALL, "--trainer.max_steps=30")
    here("fit", *SMALL, "--trainer.max_steps=16")
    on = here("fit", "--ckpt_path", "last", "--trainer.max_steps=30")

    def results(printed: str) -> str:
        return re.sub(r" in \d:\d\d min", "", re.findall(r"\n\n(  trained .*?)\n\n", printed, re.DOTALL)[-1])

    assert "30 steps, 2.5 epochs, 7,680 tokens" in results(on)
    assert results(on) == results(whole)
    again = here("fit", "--ckpt_path=last", "--trainer.max_steps=30")
    assert "trained" not in again
    assert "nothing was left to do: this run had come to its end, 30 steps" in again
    assert "nothing was left to do" not in whole + on


def test_a_checkpoint_of_a_report_that_counted_for_itself_still_loads(here: Callable[..., str], tmp_path: Path) -> None:
    whole = here("fit", *SMALL, "--trainer.max_steps=30")
    here("fit", *SMALL, "--trainer.max_steps=16")
    last = tmp_path / "logs/version_1/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["RunReport"]["best_val_loss"] = 1.0  # RunCheckpoint has it, too
    torch.save(checkpoint, last)
    resumed = here("fit", f"--ckpt_path={last}", "--trainer.max_steps=30")
    assert "7,680 tokens" in resumed
    assert [re.findall(r"best val loss.*", printed) for printed in (resumed, whole)] == [
        re.findall(r"best val loss.*", whole)
    ] * 2


def test_the_best_value_is_that_of_the_checkpoints_monitor(here: Callable[..., str]) -> None:
    printed = here("fit", *SMALL, "--trainer.max_epochs=1", "--checkpoint.monitor=val/perplexity")
    assert re.search(r"  best val perplexity  \d{3}\.\d\d\n", printed)


def test_checkpoints_and_model_summary_may_be_switched_off(here: Callable[..., str], tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=1", "--trainer.logger.save_dir=deep/logs"]
    switched_off = ["--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false"]
    printed = here("fit", *SMALL, *options, *switched_off)
    assert "trained        12 steps" in printed
    for name in ("best", "EmbeddingModule", "--ckpt_path"):
        assert name not in printed
    assert not list(tmp_path.rglob("*.ckpt"))
    assert list(tmp_path.glob("deep/logs/version_0/events*"))


def end(printed: str) -> list[str]:
    """The lines of the report from the results on, its continued commands as one line each."""
    printed = re.sub(r" \\\n +", " ", printed[printed.index("  trained ") :])
    return [line for line in printed.splitlines() if line]


def logging_to(*loggers: tuple[str, str], folder: Path) -> str:
    made = [
        {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": json.loads(arguments)}
        for name, arguments in loggers
    ]
    (folder / "loggers.yaml").write_text(yaml.safe_dump({"trainer": {"logger": made}}))
    return "--config=loggers.yaml"


def test_commands_and_the_link_stand_on_lines_of_their_own_within_80_columns(here: Callable[..., str]) -> None:
    printed = here("fit", *SMALL, "--trainer.max_steps=2", "--trainer.enable_progress_bar=false")
    assert max(map(len, printed[printed.index("  trained ") :].splitlines())) <= 80
    lines = end(printed)
    link = lines.index("http://localhost:6006/?runFilter=version_0%24&tagFilter=loss%7Cding_&smoothing=0")
    assert lines[link - 1] == "tensorboard --logdir logs"
    assert lines[link + 1] == "train for longer:"
    resume = "python train_stub.py fit --ckpt_path logs/version_0/checkpoints/last.ckpt --trainer.max_steps 4"
    assert lines[link + 2] == resume


def test_a_link_is_of_its_run_alone() -> None:
    [(_, pattern), (_, tags), (_, smoothing)] = parse_qsl(norms_page("v1.5 (a)")[1:])
    assert re.search(pattern, "v1.5 (a)")
    assert not re.search(pattern, "v1.5 (a)0")
    assert not re.search(pattern, "v125 (a)")
    assert [
        tag for tag in ("train/loss", "embedding_norm/input", "gradient_norm/token_embedding") if re.search(tags, tag)
    ] == [
        "train/loss",
        "embedding_norm/input",
    ]
    assert smoothing == "0"


def test_without_a_logger_results_are_told_and_that_nothing_was_saved(here: Callable[..., str], tmp_path: Path) -> None:
    lines = end(here("fit", *SMALL, "--trainer.max_steps=2", "--trainer.logger=false"))
    assert re.match("  trained        2 steps", lines[0])
    assert lines[-1] == "nothing was saved: trainer.logger is false"
    assert not list(tmp_path.rglob("*.ckpt"))
    assert end(here("fit", *SMALL, "--trainer.fast_dev_run=1"))[-1].endswith("trainer.fast_dev_run is a trial")


def test_the_files_of_several_loggers_are_told(here: Callable[..., str], tmp_path: Path) -> None:
    loggers = [("CSVLogger", '{"save_dir": "a"}'), ("TensorBoardLogger", '{"save_dir": "b", "name": "mine"}')]
    lines = end(here("fit", *SMALL, "--trainer.max_steps=2", logging_to(*loggers, folder=tmp_path)))
    assert "  saved in       a/lightning_logs/version_0" in lines
    assert "  curves         a/lightning_logs/version_0/metrics.csv" in lines
    assert "tensorboard --logdir b/mine" in lines
    for path in ("a/lightning_logs/version_0/metrics.csv", "a/lightning_logs/version_0/checkpoints/last.ckpt"):
        assert (tmp_path / path).exists()
    assert list(tmp_path.glob("b/mine/version_0/events*"))


def test_weights_and_biases_gets_curves_and_pictures_offline_too(
    here: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = logging_to(("WandbLogger", '{"save_dir": "w", "offline": true}'), folder=tmp_path)
    lines = end(here("fit", *SMALL, "--trainer.max_steps=2", logger))
    curves = dict(wandb.run.summary)
    wandb.finish()
    [run] = tmp_path.glob("w/wandb/offline-run-*")
    assert lines[lines.index("look at it:") + 1] == f"wandb sync {run.relative_to(tmp_path)}"
    pictures = {path.name.rsplit("_", 2)[0] for path in run.glob("files/media/images/embedding_picture/*.png")}
    assert pictures == {"norm_by_count", "norm_by_position", "position_similarity"}
    assert {"train/loss", "embedding_norm/input", "norm_band/token_p05"} <= set(curves)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.0, "59:59"), (3600.0, "1:00:00")]
)
def test_times_are_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert minutes(seconds) == shown


@pytest.mark.parametrize(
    ("document_ids", "text"), [(False, "c <|endoftext|> d e f g h i"), (True, "d e f g h i")], ids=str
)
def test_predictions_are_shown_after_the_end_of_the_last_document_of_a_window(
    tmp_path: Path, capfd: Any, document_ids: bool, text: str
) -> None:
    (tmp_path / "test.txt").write_text("a b c|d e f g h i j" + 11 * "|a b c d e f g h i j")
    data = GPTDataModule.from_text(
        "a b c d e f g h i j " * 9,
        tokenizer="words",
        context_size=10,
        batch_size=4,
        test_source=tmp_path / "test.txt",
        document_separator="|",
        document_ids=document_ids,
    )
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[RunReport("train")], enable_progress_bar=False)
    trainer.predict(EmbeddingStub(data.vocab_size, embed_dim=8, context_size=10), data)
    printed = capfd.readouterr().out
    assert re.search(rf"what comes next:\n  '{re.escape(text)}' -> '\S+' \('j'\)\n", printed), printed
    assert printed.count(" -> ") == 4, "of the first batch"
