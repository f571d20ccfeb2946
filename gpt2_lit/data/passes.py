"""passes over a loader of training windows -> the position at which the next one begins, in a plain loop."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import torch

from gpt2_lit.data.identity import DataIdentity
from gpt2_lit.data.order import Position, WindowSampler
from gpt2_lit.lightning_private import sets_epoch_by_itself

T = TypeVar("T")


class Passes:
    """The passes of a plain loop, which has no Trainer to count its batches.

    A pass that comes to its end is an epoch, and the next pass begins the next one. A pass that is broken off, or made
    without gradients (``torch.no_grad()``), only looks: the next one begins where it began.

    Args:
        sampler: The training's sampler; each of its passes begins at the position of this object.
        identity: What a position refers to.
        on_training: Called when a pass begins that may train.
    """

    def __init__(
        self,
        sampler: WindowSampler,
        identity: DataIdentity,
        on_training: Callable[["Passes"], None] | None = None,
    ) -> None:
        self.sampler = sampler
        self.identity = identity
        self.on_training = on_training
        self.num_under_way = 0
        self._stand_at(Position(0, 0), 0)
        sampler.position = self._where
        sampler.set_epoch = self._set_by_sampler

    def follow(self, batches: Callable[[], Iterator[T]]) -> Iterator[T]:
        """The batches of one pass, to the end of its epoch, counted when they are given: workers prefetch."""
        trains = torch.is_grad_enabled()
        if trains and self.on_training:
            self.on_training(self)
        begin, before = self.next_begin, self.batches_before
        num_batches = self.sampler.batches_from(begin)
        end = Position(begin.epoch + 1, 0), before + num_batches
        self.num_under_way += 1
        try:
            for number, batch in enumerate(islice(batches(), num_batches), 1):
                if trains:
                    self.next_begin, self.batches_before = (begin, before) if number < num_batches else end
                    self.given = begin, before, number
                yield batch
        finally:
            self.num_under_way -= 1
        if trains:
            self._stand_at(*end)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass with this epoch, or at a position within it that was loaded."""
        if epoch != self.next_begin.epoch:
            batches = sum(self.sampler.batches_from(Position(earlier, 0)) for earlier in range(epoch))
            self._stand_at(Position(epoch, 0), batches)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position after the last batch that was given to train on."""
        begin, before, number = self.given
        batches = {"batches": before + number}
        return self.sampler.after(begin, number)._asdict() | batches | self.identity.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Begin the next pass at the position of a state.

        Raises:
            ValueError: If it is of a training on other data, and that is not wanted.
        """
        self._stand_at(self.identity.resume(state).position, state.get("batches", 0))

    def _set_by_sampler(self, epoch: int) -> None:
        if not sets_epoch_by_itself():
            self.set_epoch(epoch)

    def _where(self) -> Position:
        return self.next_begin

    def _stand_at(self, position: Position, batches: int) -> None:
        self.next_begin, self.batches_before = position, batches
        # A position and its number of batches, and how many more were given to train on.
        self.given = position, batches, 0
