"""a run's length -> when it is validated, and on how much."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from gpt2_lit.data.datamodule import GPTDataModule
from gpt2_lit.lightning_private import is_last_batch

EVERY_N_STEPS = 2000
NUM_BATCHES = 50


class RunValidation(Callback):
    """Validates before the first step, after each epoch or every 2,000 steps of longer ones, and at the end.

    On at most 50 batches. What the user has set wins.

    Args:
        interval_is_given: Whether the user has said how often.
        limit_is_given: Whether the user has said on how many batches.
        start_is_given: Whether the user has said on how many batches before the first step.
    """

    def __init__(
        self, interval_is_given: bool = False, limit_is_given: bool = False, start_is_given: bool = False
    ) -> None:
        self.interval_is_given = interval_is_given
        self.limit_is_given = limit_is_given
        self.start_is_given = start_is_given

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(trainer, "fast_dev_run", False) or not trainer.limit_val_batches:
            return
        interval = EVERY_N_STEPS * trainer.accumulate_grad_batches
        if not self.interval_is_given and batches_in_epoch(trainer) > interval:
            trainer.val_check_interval, trainer.check_val_every_n_epoch = interval, None
        if not self.limit_is_given and not getattr(trainer, "overfit_batches", 0):
            trainer.limit_val_batches = NUM_BATCHES
        if not self.start_is_given:
            trainer.num_sanity_val_steps = 0 if trainer.ckpt_path else float("inf")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put its values on the curves: it is the validation before the first step."""
        if trainer.num_sanity_val_steps == float("inf"):
            metrics = {tag: float(value) for tag, value in trainer.logged_metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": 0, **metrics}, step=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A validation follows a batch after which the training is to stop.
        is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (is_last_epoch and is_last_batch(trainer)):
            trainer.should_stop = True


def batches_in_epoch(trainer: Trainer) -> int:
    """Training batches of an epoch, before the trainer knows it."""
    data = getattr(trainer, "datamodule", None)
    num_batches = len(data.train_dataloader()) if isinstance(data, GPTDataModule) else 0
    return _limited(num_batches, trainer.limit_train_batches)


def validation_rule(trainer: Trainer, data: GPTDataModule) -> str:
    """When a fit is validated, and on how much: ``step 0, every 2,000 steps and the end; on 50 of 281 batches``."""
    if not data.val_dataset or not trainer.limit_val_batches:
        return "never"
    start = "" if trainer.ckpt_path or not trainer.num_sanity_val_steps else "step 0, "
    total = -(-len(data.val_dataset) // (data.batch_size * trainer.world_size))
    num_batches = _limited(total, trainer.limit_val_batches)
    number = f"all {total:,}" if num_batches == total else f"{num_batches:,} of {total:,}"
    return f"{start}{_how_often(trainer)} and the end; on {number} batches"


def _how_often(trainer: Trainer) -> str:
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if not isinstance(interval, int | float):
        return f"every {interval} of time"
    if interval == 1.0 and isinstance(interval, float):
        return "after each epoch" if epochs == 1 else f"after every {epochs} epochs"
    batches = interval if isinstance(interval, int) else int(batches_in_epoch(trainer) * interval)
    steps, rest = divmod(batches, trainer.accumulate_grad_batches)
    return f"every {batches:,} batches" if rest else f"every {steps:,} steps"


def _limited(number: int, limit: int | float) -> int:
    """What a limit of the trainer leaves of a number of batches: a count of them, or a share."""
    return min(number, limit) if isinstance(limit, int) else int(number * limit)
