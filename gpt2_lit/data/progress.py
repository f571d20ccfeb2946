"""the trainer's count of batches -> a position in the data, and back from a checkpoint."""

import json
from typing import Any

import numpy as np
from jaxtyping import Int64
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lit.data.identity import DataIdentity, Segment
from gpt2_lit.data.order import Position, WindowSampler
from gpt2_lit.errors import InvalidValue
from gpt2_lit.lightning_private import batches_trained, callbacks_of, counters_of_the_epoch


class Progress(Callback):
    """How far a training has come in its data, in windows.

    Lightning counts batches, whose size may change when a run resumes.

    Args:
        trainer: The trainer whose batches count: those it has finished, because workers prefetch.
        sampler: The training's sampler.
        identity: What a position refers to.
    """

    def __init__(self, trainer: Trainer, sampler: WindowSampler, identity: DataIdentity) -> None:
        self.trainer = trainer
        self.sampler = sampler
        self.identity = identity
        self._as_counted = True  # whether the epoch has the batches that a checkpoint counts
        self._segments: list[Segment] = []
        self._restored: dict[str, Any] = {"epoch": 0, "window": 0, "batches": 0, "global_batch": sampler.global_batch}
        self._begin_segment()

    def position(self) -> Position:
        """The epoch, and the windows of it that were trained on by all processes together."""
        return self._position_after(batches_trained(self.trainer))

    def epochs(self) -> float:
        """Epochs of the data that were trained on, whatever the size of their batches was."""
        position = self.position()
        left, whole = (self.sampler.batches_from(start) for start in (position, Position(position.epoch, 0)))
        return position.epoch + (1 - left / whole if whole else 0.0)

    def last_windows(self) -> Int64[np.ndarray, " _"]:
        """The windows of this process in the batch that has just ended."""
        return self.sampler.next_batch(self._position_after(batches_trained(self.trainer) - 1))[1]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        epoch, window = self.position()
        batches = batches_trained(self.trainer)
        counts = {"epoch": epoch, "window": window, "batches": batches, "global_batch": self.sampler.global_batch}
        return counts | {"segments": json.dumps(self._segments)} | self.identity.state()

    def resize(self, batch_size: int) -> None:
        """Continue from here with batches of another size."""
        state, former = self.state(), self.sampler.batch_size
        self.sampler.batch_size = batch_size
        try:
            self.sampler.check_batches()
        except InvalidValue:
            self.sampler.batch_size = former
            raise
        self._restored, self._as_counted = state | {"global_batch": self.sampler.global_batch}, True
        self._begin_segment()

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from the state of a checkpoint.

        Raises:
            ValueError: If it is of a training on other data, and that is not wanted.
        """
        position, same_data, same_skips = self.identity.resume(state)
        self._restored = state | position._asdict()
        self._as_counted = same_data and same_skips and state["global_batch"] == self.sampler.global_batch
        self._segments = [Segment(*values) for values in json.loads(state.get("segments", "[]"))] if same_data else []
        if not self._as_counted or not self._segments:
            self._begin_segment()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """With other batches, tell Lightning how many the epoch has left, before it restores its counters."""
        if trainer.state.fn != "fit" or trainer.limit_train_batches != 1.0 or self._as_counted:
            return
        counters = counters_of_the_epoch(checkpoint)
        if counters["is_last_batch"]:  # the epoch is over, even if the windows left out make a batch of the new size
            self._restored = self._restored | {"epoch": self._restored["epoch"] + 1, "window": 0}
            self._segments[-1] = self._segments[-1]._replace(epoch=self._restored["epoch"], window=0)
            return
        batches_left = self.sampler.batches_from(Position(self._restored["epoch"], self._restored["window"]))
        counters["is_last_batch"] = not batches_left
        current = counters["current"]
        shift = len(self.sampler) - batches_left - current["processed"]
        for count in ("ready", "started", "processed", "completed"):  # the last lags by one at a step's end
            current[count] += shift

    def _begin_segment(self) -> None:
        step, epoch, window = (self._restored[name] for name in ("batches", "epoch", "window"))
        begun = Segment(step, epoch, window, self.sampler.global_batch, len(self.identity.skip.entries))
        self._segments = [*(segment for segment in self._segments if segment.step < step), begun]

    def _position_after(self, batches: int) -> Position:
        # The trainer's count is restored after this object: until then it is below that of the checkpoint.
        more = max(batches - self._restored["batches"], 0)
        return self.sampler.after(Position(self._restored["epoch"], self._restored["window"]), more)


def follow(trainer: Trainer, sampler: WindowSampler, identity: DataIdentity) -> Progress:
    """The progress of a training that begins, as one of the trainer's callbacks; each pass begins at its position."""
    progress, callbacks = Progress(trainer, sampler, identity), callbacks_of(trainer)
    sampler.position = progress.position
    callbacks[:] = [progress, *(callback for callback in callbacks if not isinstance(callback, Progress))]
    return progress
