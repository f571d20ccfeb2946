"""a run -> lines on the terminal: its data, its progress, its results, and how to resume it."""

import math
import shlex
import signal
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
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
        epochs = batches_trained(trainer) / trainer.num_training_batches
        lines = {
            "trained": f"{trainer.global_step:,} steps, {epochs:.3g} epochs, {self._throughput.num_tokens:,} tokens in "
            f"{minutes(self.seconds)} min",
            "loss": change.pop("train/loss", ""),
            **self._best(trainer),
            "mean norms": ", ".join(f"{tag.rpartition('/')[2]} {values}" for tag, values in change.items()),
        }
        return "\n".join(f"  {name:<20}  {text}" for name, text in lines.items() if text)

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
            longer = f" --trainer.{limit} {2 * (getattr(trainer, limit) or 1)}"
            results = f"\n{self._results(trainer)}\n" if self.last and trainer.is_global_zero else ""
            self._print_directory(trainer, "train for longer", longer, results)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit):
            self._print_directory(trainer, "resume", "", f"\nstopped at step {trainer.global_step}\n")
        elif isinstance(exception, KeyboardInterrupt):  # outside of the training, in which RunCheckpoint has it
            raise SystemExit(128 + signal.SIGINT) from None

    def _print_directory(self, trainer: Trainer, purpose: str, options: str, news: str = "") -> None:
        directory = run_directory(trainer)
        if directory is None or not trainer.is_global_zero:
            return
        lines = [
            news,
            f"  logs and checkpoints  {directory}",
            f"  look at the norms     tensorboard --logdir {shlex.quote(str(directory.parent))}, then open",
            "                        http://localhost:6006/?tagFilter=embedding_&smoothing=0#timeseries",
        ]
        checkpoint = directory / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            lines.append(f"  {purpose:<20}  {self.prog} fit --ckpt_path {shlex.quote(str(checkpoint))}{options}")
        print(printable("\n".join(lines)), flush=True)


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
