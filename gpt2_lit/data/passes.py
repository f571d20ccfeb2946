"""passes over a loader of training windows -> the position at which the next one begins, in a plain loop."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from logging import getLogger
from typing import Any, TypeVar

import torch

from gpt2_lit.data.order import Position, WindowSampler
from gpt2_lit.errors import InvalidValue
from gpt2_lit.lightning_private import sets_epoch_by_itself

T = TypeVar("T")
logger = getLogger(__name__)


class Passes:
    """The passes of a plain loop, which has no Trainer to count its batches.

    A pass that comes to its end is an epoch, and the next pass begins the next one. A pass that is broken off, or made
    without gradients (``torch.no_grad()``), only looks: the next one begins where it began.

    Args:
        sampler: The training's sampler; each of its passes begins at the position of this object.
        identity: What a position refers to, in plain numbers and strings.
        continue_with_other_data: Whether a state of another identity is taken.
        on_training: Called when a pass begins that may train.
    """

    def __init__(
        self,
        sampler: WindowSampler,
        identity: dict[str, Any],
        continue_with_other_data: bool = False,
        on_training: Callable[["Passes"], None] | None = None,
    ) -> None:
        self.sampler = sampler
        self.identity = identity
        self.continue_with_other_data = continue_with_other_data
        self.on_training = on_training
        self.num_under_way = 0
        self._stand_at(Position(0, 0))
        sampler.position = self._where
        sampler.set_epoch = self._set_by_sampler

    def follow(self, batches: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The batches of one pass, to the end of its epoch, counted when they are given: workers prefetch."""
        trains = torch.is_grad_enabled()
        if trains and self.on_training:
            self.on_training(self)
        begin = self.next_begin
        next_epoch = Position(begin.epoch + 1, 0)
        num_batches = self.sampler.batches_from(begin.window)
        self.num_under_way += 1
        try:
            for number, batch in enumerate(islice(batches(), num_batches), 1):
                if trains:
                    self.reached = self.sampler.after(begin, number)
                    self.next_begin = begin if number < num_batches else next_epoch
                yield batch
        finally:
            self.num_under_way -= 1
        if trains:
            self._stand_at(next_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass with this epoch, or at a position within it that was loaded."""
        if epoch != self.next_begin.epoch:
            self._stand_at(Position(epoch, 0))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position after the last batch that was given to train on."""
        return self.reached._asdict() | self.identity

    def restore(self, state: Mapping[str, Any]) -> None:
        """Begin the next pass at the position of a state.

        Raises:
            ValueError: If it is of a training on other data, and that is not wanted.
        """
        differing = differences(state, self.identity)
        check_same_data(differing, self.continue_with_other_data, self.sampler.rank)
        self._stand_at(Position(state.get("epoch", 0), 0 if differing else state["window"]))

    def _set_by_sampler(self, epoch: int) -> None:
        if not sets_epoch_by_itself():
            self.set_epoch(epoch)

    def _where(self) -> Position:
        return self.next_begin

    def _stand_at(self, position: Position) -> None:
        self.next_begin = self.reached = position


def differences(state: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """What the data of a checkpoint has otherwise than the data at hand, in words."""
    return [
        f"{name} was {state.get(name)} and is {value}" for name, value in identity.items() if state.get(name) != value
    ]


def check_same_data(differing: list[str], continue_with_other_data: bool, rank: int) -> None:
    """Raise an InvalidValue where a position would be one among other windows, or tell of it if that is wanted."""
    told = f"the checkpoint is of a run on other data: {', '.join(differing)}."
    if differing and not continue_with_other_data:
        raise InvalidValue(
            f"{told} Give the data options of that run (they are in the config.yaml beside its checkpoints); or keep "
            "its weights, optimizer and step count and begin an epoch of this data: --data.continue_with_other_data "
            "true; or start a new run from its weights: EmbeddingStub.load_from_checkpoint(path)."
        )
    if differing and rank == 0:
        logger.warning(f"{told} Training continues at the beginning of an epoch of this data.")
