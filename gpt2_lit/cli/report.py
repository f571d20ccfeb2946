"""a run -> lines on the terminal: its data, its progress, its results, and how to resume it."""

import math
import os
import re
import shlex
import signal
import textwrap
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from gpt2_lit.cli.run import RunCheckpoint, run_directory
from gpt2_lit.cli.validation import validation_rule
from gpt2_lit.data.datamodule import GPTDataModule
from gpt2_lit.data.windows import IGNORED, Batch, DocumentBatch
from gpt2_lit.errors import printable
from gpt2_lit.lightning_private import batches_trained, callbacks_of
from gpt2_lit.monitor.counts import token_counts, unigram_perplexity
from gpt2_lit.monitor.monitor import NORM_TAGS
from gpt2_lit.monitor.stub import Throughput

COLUMNS = 80  # of a terminal


class RunReport(Callback):
    """Prints the data of a run, its results, where they are, and the command that resumes it."""

    REPORTED = ("train/loss", *NORM_TAGS.values())

    def __init__(self, prog: str) -> None:
        self.prog = prog
        self.seconds = 0.0
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        self._throughput = next(callback for callback in callbacks_of(trainer) if isinstance(callback, Throughput))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and (data := _data(trainer)):
            print(f"\n{printable(data.summary())}\n  val at  {validation_rule(trainer, data)}\n", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self.first) < len(self.REPORTED):
            self.first = self._values(trainer) | self.first

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.perf_counter() - self.begun
        self.last = self._values(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step and not self.last and trainer.is_global_zero:
            print(f"nothing was left to do: this run had come to its end, {trainer.global_step:,} steps")

    def state_dict(self) -> dict[str, Any]:
        self._throughput.count(self._trainer)  # all processes are here
        return {"seconds": self.seconds, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "num_tokens" in state_dict:  # of a run before Throughput kept it
            self._throughput.num_tokens = state_dict["num_tokens"]
        self.seconds, self.first = state_dict["seconds"], state_dict["first"]

    def _values(self, trainer: Trainer) -> dict[str, float]:
        return {tag: trainer.callback_metrics[tag].item() for tag in self.REPORTED if tag in trainer.callback_metrics}

    def _results(self, trainer: Trainer) -> str:
        """The results of a run on a few lines: its length, the first and last values logged, and the best one."""
        change = {tag: f"{self.first[tag]:.2f} -> {self.last[tag]:.2f}" for tag in self.last if tag in self.first}
        of_data = getattr(getattr(trainer, "datamodule", None), "epochs_trained", None)
        epochs = of_data() if of_data else batches_trained(trainer) / trainer.num_training_batches
        lines = {
            "trained": f"{trainer.global_step:,} steps, {epochs:.3g} epochs, {self._throughput.num_tokens:,} tokens in "
            f"{minutes(self.seconds)} min",
            "loss": change.pop("train/loss", ""),
            **self._best(trainer),
            "mean norms": ", ".join(f"{tag.rpartition('/')[2]} {values}" for tag, values in change.items()),
        }
        return "\n".join(_row(name, line) for name, text in lines.items() for line in text.splitlines())

    def _best(self, trainer: Trainer) -> dict[str, str]:
        """The best value of what best.ckpt is chosen by."""
        checkpoint, data = trainer.checkpoint_callback, _data(trainer)
        if not isinstance(checkpoint, RunCheckpoint) or math.isinf(checkpoint.best_score):
            return {}
        best = f"{checkpoint.best_score:.2f}"
        if checkpoint.monitor == "val/loss" and data and data.val_dataset:
            counts = token_counts(data.train_dataset, data.vocab_size)
            unigram = unigram_perplexity(counts, token_counts(data.val_dataset, data.vocab_size, "target_ids"))
            perplexity = math.exp(checkpoint.best_score)
            best += f", perplexity {perplexity:,.0f} ({unigram:,.0f} from the tokens' frequencies alone)"
        return {f"best {checkpoint.monitor.replace('/', ' ')}": best}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Batch | DocumentBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        data = _data(trainer)
        if batch_idx or not trainer.is_global_zero or data is None:
            return
        decode = data.tokenizer.decode
        print("\n\na text, what the model expects next, and what comes next:")
        for input_ids, target_ids, *documents, expected in list(zip(*batch, outputs, strict=True))[:5]:
            kept = (target_ids != IGNORED).nonzero()[:, 0].tolist()
            if not kept:  # a row whose answer was cut off
                continue
            at = kept[-1] if len(kept) == len(target_ids) else kept[len(kept) // 2]  # at the end, or amid an answer
            text_ids = input_ids[: at + 1]
            if documents:  # what stands before its document is another text
                text_ids = text_ids[documents[1][: at + 1] == documents[1][at]]
            parts = (text_ids[-8:], target_ids[at : at + 1], expected[at : at + 1])
            text, next_text, guess = (decode(ids.tolist()) for ids in parts)
            print(f"  {text!r} -> {guess!r} ({next_text!r})")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            limit = "max_steps" if trainer.global_step == trainer.max_steps else "max_epochs"
            longer = [f"--trainer.{limit}", str(2 * (getattr(trainer, limit) or 1))]
            results = f"\n{self._results(trainer)}" if self.last and trainer.is_global_zero else ""
            self._print_end(trainer, results, "train for longer", longer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit):
            self._print_end(trainer, f"\nstopped at step {trainer.global_step}", "resume", [])
        elif isinstance(exception, KeyboardInterrupt):  # outside of the training, in which RunCheckpoint has it
            raise SystemExit(128 + signal.SIGINT) from None

    def _print_end(self, trainer: Trainer, news: str, purpose: str, options: list[str]) -> None:
        directory = run_directory(trainer)
        if not trainer.is_global_zero:
            return
        if directory is None:
            reason = "fast_dev_run is a trial" if getattr(trainer, "fast_dev_run", False) else "logger is false"
            print(printable(f"{news}\n\nnothing was saved: trainer.{reason}"), flush=True)
            return
        parts = [news, _row("saved in", str(directory)), *(_look(logger) for logger in trainer.loggers)]
        checkpoint = directory / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            parts.append(f"{purpose}:\n{_command(*self.prog.split(' '), 'fit', '--ckpt_path', checkpoint, *options)}")
        print(printable("\n\n".join(parts)), flush=True)


def _row(name: str, text: str) -> str:
    """A line of the report, or several: none is wider than a terminal."""
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=f"  {name:<13}  ",
        subsequent_indent=17 * " ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _command(*words: str | Path) -> str:
    """A command on lines of its own, each but the last with a backslash, as shells other than those of Windows take."""
    lines: list[str] = []
    for word in map(shlex.quote, map(str, words)):
        if lines and (os.name == "nt" or len(f"{lines[-1]} {word} \\") <= COLUMNS):
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}" if lines else word)
    return " \\\n".join(lines)


def _look(logger: Logger) -> str:
    """How to look at what a logger has written. Addresses begin their line: a terminal that wraps it keeps the link."""
    if isinstance(logger, TensorBoardLogger):
        directory = Path(logger.log_dir)
        command = _command("tensorboard", "--logdir", directory.parent)
        page = f"http://localhost:6006/{norms_page(directory.name)}"
        return f"look at it, and open the link (reload it once to see the Projector):\n{command}\n{page}"
    if isinstance(logger, CSVLogger):
        return _row("curves", f"{logger.log_dir}/metrics.csv")
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        return f"look at it:\n{run.url or _command('wandb', 'sync', Path(run.dir).parent)}"
    return _row("curves", f"where {type(logger).__name__} keeps them")


def norms_page(run: str) -> str:
    """The part of an address by which TensorBoard shows losses, norms and pictures of one run, without smoothing."""
    # "ding_" is in embedding_norm and embedding_picture alone: the address of run version_0 has 80 characters.
    return f"?runFilter={quote(re.escape(run))}%24&tagFilter=loss%7Cding_&smoothing=0"


def minutes(seconds: float) -> str:
    """Seconds as minutes and seconds, from an hour on with hours.

    Example:
        >>> minutes(59.6), minutes(3600.0)
        ('1:00', '1:00:00')
    """
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}:{rest:02}" if whole < 60 else f"{whole // 60}:{whole % 60:02}:{rest:02}"


def _data(trainer: Trainer) -> GPTDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, GPTDataModule) else None
