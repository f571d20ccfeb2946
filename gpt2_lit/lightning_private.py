"""private parts of Lightning and torch -> functions: where their public interface is not enough, and what would be.

Seen with Lightning 2.6.6, to whose minor version pyproject.toml holds the package; tests would notice a change.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from inspect import signature
from itertools import islice
from traceback import walk_stack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever embeds without a Trainer need not import Lightning
    from lightning.pytorch import Callback, Trainer
    from torch import nn


def batches_trained(trainer: "Trainer") -> int:
    """Batches that a training has finished since it began, before and after a resume.

    ``batch_progress`` is not documented. ``global_step`` is, but counts optimizer steps: several batches may be
    accumulated into one, and a model may have several optimizers. A documented count of batches would do.
    """
    return vars(trainer.fit_loop.epoch_loop.batch_progress.total)["processed"]


def callbacks_of(trainer: "Trainer") -> "list[Callback]":
    """``trainer.callbacks``, which Lightning documents but does not declare: a type checker does not know it."""
    return vars(trainer)["callbacks"]


def arguments_of(module: "nn.Module") -> Collection[str]:
    """The names of the arguments of a module's ``forward``, also of one that ``torch.compile`` has wrapped.

    ``inspect.signature`` of the wrapper would do, if it had that of the module in it.
    """
    return signature(getattr(module, "_orig_mod", module).forward).parameters


def attributes_to_find(trainer: "Trainer") -> list[str]:
    """What the LearningRateFinders among the callbacks are to set; they raise an AttributeError if it is not there.

    A public attribute, or an error of its own kind, would do.
    """
    from lightning.pytorch.callbacks import LearningRateFinder

    finders = [callback for callback in callbacks_of(trainer) if isinstance(callback, LearningRateFinder)]
    return [name for finder in finders if (name := vars(finder)["_attr_name"])]


def sets_epoch_by_itself() -> bool:
    """Whether the Trainer or Fabric is calling ``set_epoch`` of a sampler, and not the user.

    Fabric does so before each pass, with the number of passes before it, whatever they were for. A way for a loader to
    say that it counts its epochs itself would do.
    """
    return any(frame.f_code.co_name == "_set_sampler_epoch" for frame, _ in islice(walk_stack(None), 10))


def counters_of_the_epoch(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Lightning's counters of the current epoch's batches, in a checkpoint: what is changed here is restored.

    How a checkpoint holds them is not documented. A loader that tells at which of its batches it begins would do.
    """
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]


def has_forward_hooks(module: "nn.Module") -> bool:
    """Whether somebody looks at what a module gives, and may keep it.

    torch tells of hooks in no public way. Without this the embedding would always add out of place, 17 % slower
    (8 x 1024 x 768).
    """
    return bool(module._forward_hooks)


def is_last_batch(trainer: "Trainer") -> bool:
    """Whether the training batch at hand, or the one that has just ended, is the last of its epoch.

    ``batch_idx`` and ``num_training_batches`` would do for a loader whose length is known.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def logs_this_step(trainer: "Trainer") -> bool:
    """Whether Lightning writes what is logged in the current training step, every ``log_every_n_steps``.

    Lightning's own callbacks read the same property. ``global_step`` would do for a model with one optimizer.
    """
    return trainer._logger_connector.should_update_logs


def set_log_interval(trainer: "Trainer", num_steps: int) -> None:
    """Let the trainer log each so many steps from now on.

    Lightning has an argument ``log_every_n_steps``, and an attribute that it declares nowhere.
    """
    vars(trainer)["log_every_n_steps"] = num_steps


def log_interval(trainer: "Trainer") -> int:
    """How many steps there are from one that is logged to the next."""
    return vars(trainer)["log_every_n_steps"]


@contextmanager
def validation_begins_again(trainer: "Trainer") -> Iterator[None]:
    """What is saved in a validation, within this, resumes at its beginning.

    Lightning itself saves no checkpoint there. These are its counts when a validation breaks off in its first batch.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    reached = progress.state_dict()
    progress.reset()
    progress.increment_ready()
    progress.increment_started()
    yield
    progress.load_state_dict(reached)


def validation_follows(trainer: "Trainer") -> bool:
    """Whether a validation comes between the training batch that has just ended and the next one.

    It depends on five options of the Trainer, on time, and on whether the training stops. A hook that is called after
    a batch and the validation that may follow it would do.
    """
    data_fetcher = trainer.fit_loop._data_fetcher
    assert data_fetcher, "it gave the batch that has just ended"
    return trainer.fit_loop.epoch_loop._should_check_val_fx(data_fetcher)


def validates_only_to_stop(trainer: "Trainer") -> bool:
    """Whether a validation follows the training batch that has just ended only because the training stops."""
    if not (trainer.should_stop and validation_follows(trainer)):
        return False
    trainer.should_stop = False
    is_due_anyway = validation_follows(trainer)
    trainer.should_stop = True
    return not is_due_anyway


@contextmanager
def before_validation(trainer: "Trainer") -> Iterator[None]:
    """What is saved in or after a validation, within this, resumes with the next batch: as if saved before it.

    Lightning would look for a validation that is due, find none if it came only to stop, and count one step too few.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.total, progress.current):
        counts.completed -= 1
    yield
    for counts in (progress.total, progress.current):
        counts.completed += 1
