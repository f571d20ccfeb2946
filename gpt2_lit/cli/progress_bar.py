"""a training under way -> one line: its steps, loss, speed, and the time left."""

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from gpt2_lit.cli.report import minutes
from gpt2_lit.lightning_private import batches_trained

NAMES = {
    "train/loss": ("loss", "{:.3f}"),
    "val/loss": ("val loss", "{:.3f}"),
    "throughput/tokens_per_second": ("tokens/s", "{:,.0f}"),
    "throughput/data_wait_fraction": ("data wait", "{:.0%}"),
}
ALWAYS_SHOWN = ("loss", "tokens/s", "left")
LEAST_BAR = 8
SECONDS_BETWEEN = 0.1  # the eye sees no more, and a small step takes a few milliseconds


class RunProgressBar(TQDMProgressBar):
    """One bar for all steps of a run, also of a resumed one, and for its validations.

    In a narrow terminal it leaves out what matters least, so that loss, tokens a second and the time left are seen.
    """

    _shown_at = 0.0

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        trainer: Trainer = args[0]
        self.begun = time.perf_counter()
        self.batches_before = batches_trained(trainer)
        self._show(*args)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Lightning's begins a new bar."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(batch_idx + 1):
            self._show(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module)

    def on_sanity_check_start(self, *_: Any) -> None:
        super().on_sanity_check_start(*_)
        self.val_progress_bar.bar_format = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
        self.val_progress_bar.set_description("Validation before step 1")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            return
        number = batch_idx + 1
        total = sum(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)
        if not self._is_due(number):
            return
        if trainer.sanity_checking:
            self.val_progress_bar.total, self.val_progress_bar.n = total, number
            self.val_progress_bar.refresh()
        else:
            self._show(trainer, pl_module, f", validation {number}/{total}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            super().on_validation_end(trainer, pl_module)
        elif not trainer.sanity_checking:
            self._show(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        # Under its own name: what another model logs for the bar. The perplexity is in the results at the end.
        metrics = {tag: value for tag, value in super().get_metrics(trainer, pl_module).items() if tag != "v_num"}
        metrics.pop("val/perplexity", None)
        named = {name: text.format(metrics.pop(tag)) for tag, (name, text) in NAMES.items() if tag in metrics}
        left = self._seconds_left(trainer)
        return named | metrics | ({} if left is None else {"left": minutes(left)})

    def _is_due(self, number: int) -> bool:
        """Whether to show a batch: by the time in a terminal, and each hundredth, say, in a file."""
        if self.refresh_rate > 1 or self.is_disabled:
            return self.is_enabled and number % self.refresh_rate == 0
        return time.perf_counter() - self._shown_at > SECONDS_BETWEEN

    def _show(self, trainer: Trainer, pl_module: LightningModule, doing: str = "") -> None:
        bar = self.train_progress_bar
        if bar.disable:
            return
        self._shown_at = time.perf_counter()
        bar.n, bar.total = trainer.global_step, _total_steps(trainer)
        metrics = self.get_metrics(trainer, pl_module)
        bar.bar_format = _line(trainer.current_epoch, bar.n, bar.total, metrics, doing, bar.format_dict["ncols"])
        bar.refresh()

    def _seconds_left(self, trainer: Trainer) -> float | None:
        """From the time that each batch of this run took, with its share of validation; None if there is no end."""
        trained = batches_trained(trainer)
        left = _of_all_epochs(trainer, trainer.num_training_batches) - trained
        if trainer.max_steps >= 0:
            left = min(left, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
        if trainer.sanity_checking or trained == self.batches_before or math.isinf(left):
            return None
        return max(left, 0) * (time.perf_counter() - self.begun) / (trained - self.batches_before)


def _of_all_epochs(trainer: Trainer, number: int | float) -> int | float:
    """So many in each epoch, in all of them."""
    return math.inf if trainer.max_epochs in (None, -1) else (trainer.max_epochs or 0) * number


def _total_steps(trainer: Trainer) -> int | None:
    """The step at which a run ends; None if it has no end."""
    steps = math.inf
    if not math.isinf(trainer.num_training_batches):
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    total = min(_of_all_epochs(trainer, steps), trainer.max_steps if trainer.max_steps >= 0 else math.inf)
    return None if math.isinf(total) else int(total)


def _line(epoch: int, step: int, total: int | None, metrics: dict[str, Any], doing: str, width: int | None) -> str:
    """The line in tqdm's form, in which {bar} takes what is left of the width."""
    kept = {name: f", {name}={value}" for name, value in metrics.items()}
    head, percent = f"Epoch {epoch}:", f" {100 * step / total:3.0f}%" if total else ""
    count = f" {step}/{total}{doing}" if total else f" {step} steps{doing}"
    room = math.inf if width is None else width - len(head + count) - LEAST_BAR - 3
    for name in [name for name in reversed(kept) if name not in ALWAYS_SHOWN]:
        if len(percent) + sum(map(len, kept.values())) > room:
            del kept[name]
    if len(percent) + sum(map(len, kept.values())) > room:
        percent = ""
    text = count + "".join(kept.values())
    return f"{head}{percent}{'|{bar}|' if total else ''}" + text.replace("{", "{{").replace("}", "}}")
