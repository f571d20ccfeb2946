"""the trainer's count of batches -> a position in the data, and back from a checkpoint."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lit.data.order import Position, WindowSampler
from gpt2_lit.errors import InvalidValue
from gpt2_lit.lightning_private import batches_trained, callbacks_of, counters_of_the_epoch


class Progress(Callback):
    """How far a training has come in its data, in windows.

    Lightning counts batches, whose size may change when a run resumes.

    Args:
        trainer: The trainer whose batches count: those it has finished, because workers prefetch.
        sampler: The training's sampler.
        identity: What a position refers to, in plain numbers and strings; a checkpoint of another identity is refused.
    """

    def __init__(self, trainer: Trainer, sampler: WindowSampler, identity: dict[str, Any]) -> None:
        self.trainer = trainer
        self.sampler = sampler
        self.identity = identity
        self._restored: dict[str, Any] = {"epoch": 0, "window": 0, "batches": 0, "global_batch": sampler.global_batch}

    def position(self) -> Position:
        """The epoch, and the windows of it that were trained on by all processes together."""
        # The trainer's count is restored after this object: until then it is below that of the checkpoint.
        batches = max(batches_trained(self.trainer) - self._restored["batches"], 0)
        return self.sampler.after(Position(self._restored["epoch"], self._restored["window"]), batches)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        epoch, window = self.position()
        batches = batches_trained(self.trainer)
        counts = {"epoch": epoch, "window": window, "batches": batches, "global_batch": self.sampler.global_batch}
        return counts | self.identity

    def resize(self, batch_size: int) -> None:
        """Continue from here with batches of another size."""
        state, former = self.state(), self.sampler.batch_size
        self.sampler.batch_size = batch_size
        try:
            self.sampler.check_batches()
        except InvalidValue:
            self.sampler.batch_size = former
            raise
        self._restored = state | {"global_batch": self.sampler.global_batch}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from the state of a checkpoint.

        Raises:
            ValueError: If it is of a training on other data, where the position would be one among other windows.
        """
        differing = [
            f"{name} was {state.get(name)} and is {value}"
            for name, value in self.identity.items()
            if state.get(name) != value
        ]
        if differing:
            raise InvalidValue(
                f"the checkpoint is of a run on other data: {', '.join(differing)}. Give the data options of that run "
                "(they are in the config.yaml beside its checkpoints), or start a new run from its weights: "
                "EmbeddingStub.load_from_checkpoint(path)."
            )
        self._restored = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """With batches of another size, tell Lightning how many the epoch has left, before it restores its counters."""
        same_size = self._restored["global_batch"] == self.sampler.global_batch
        if trainer.state.fn != "fit" or trainer.limit_train_batches != 1.0 or same_size:
            return
        counters = counters_of_the_epoch(checkpoint)
        if counters["is_last_batch"]:  # the epoch is over, even if the windows left out make a batch of the new size
            self._restored = self._restored | {"epoch": self._restored["epoch"] + 1, "window": 0}
            return
        batches_left = self.sampler.batches_from(self._restored["window"])
        counters["is_last_batch"] = not batches_left
        current = counters["current"]
        shift = len(self.sampler) - batches_left - current["processed"]
        for count in ("ready", "started", "processed", "completed"):  # the last lags by one at a step's end
            current[count] += shift


def follow(trainer: Trainer, sampler: WindowSampler, identity: dict[str, Any]) -> Progress:
    """The progress of a training that begins, as one of the trainer's callbacks; each pass begins at its position."""
    progress, callbacks = Progress(trainer, sampler, identity), callbacks_of(trainer)
    sampler.position = progress.position
    callbacks[:] = [progress, *(callback for callback in callbacks if not isinstance(callback, Progress))]
    return progress
