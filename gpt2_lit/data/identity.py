"""what the positions of a training refer to -> whether one of a checkpoint may be taken, and where it lies."""

import json
from collections.abc import Mapping
from logging import getLogger
from typing import Any, NamedTuple

from torch import distributed

from gpt2_lit.data.order import Position
from gpt2_lit.data.skip import Skip
from gpt2_lit.errors import InvalidValue

logger = getLogger(__name__)


class Resumed(NamedTuple):
    """Where a state of a checkpoint resumes."""

    position: Position
    same_data: bool
    same_skips: bool  # nothing more is left out than before


class Segment(NamedTuple):
    """Steps of a training that follow each other in one order, with batches of one size."""

    step: int  # the first
    epoch: int  # where it begins
    window: int
    global_batch: int
    num_skips: int  # how many entries are left out


class DataIdentity:
    """What positions refer to: the text and its split, the windows, their order, and what is left out of it.

    Args:
        values: What decides the windows and their order, in plain numbers and strings.
        skip: What is left out of the order.
        continue_with_other_data: Whether a state of other data is taken, and then begins an epoch.
    """

    def __init__(self, values: dict[str, Any], skip: Skip, continue_with_other_data: bool = False) -> None:
        self.values = values
        self.skip = skip
        self.continue_with_other_data = continue_with_other_data

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.values | ({"skip": self.skip.state()} if self.skip.entries else {})

    def resume(self, state: Mapping[str, Any]) -> Resumed:
        """The position of a state, after which training leaves out what it did, and what has come since.

        Raises:
            InvalidValue: If the state is of other data and that is not wanted, or of a training that left out more.
        """
        differing = [
            f"{name} was {state.get(name)} and is {value}"
            for name, value in self.values.items()
            if state.get(name) != value
        ]
        if differing:
            self._check_other_data(f"the checkpoint is of a run on other data: {', '.join(differing)}.")
            position = Position(state.get("epoch", 0), 0)
            self.skip.resolve(position, state.get("batches", 0))
            return Resumed(position, False, False)
        position = Position(state["epoch"], state["window"])
        has_more = self.skip.restore(state.get("skip", "[]"), position, state["batches"])
        return Resumed(position, True, not has_more)

    def segment_of(self, state: Mapping[str, Any], step: int) -> Segment:
        """The segment that a step is in, by the state of a training; the order then leaves out what it did.

        Raises:
            InvalidValue: If the state is of other data, or of a training that was on other data at that step.
        """
        position, _, same_skips = self.resume(state)
        segments = [Segment(*values) for values in json.loads(state["segments"])]
        if not same_skips:
            more = {"step": state["batches"], **position._asdict(), "num_skips": len(self.skip.entries)}
            segments.append(segments[-1]._replace(**more))
        if step < segments[0].step:
            raise InvalidValue(
                f"at step {step} this training was on other data: it continued with this at step {segments[0].step}."
            )
        *_, found = (segment for segment in segments if segment.step <= step)
        self.skip.leave_out(found.num_skips)
        return found

    def check_ranks(self) -> None:
        """Raise an InvalidValue in all processes of a training if one has other data, and would train on it."""
        sampler = self.skip.sampler
        if sampler.num_replicas == 1 or not distributed.is_initialized():
            return
        mine, of_ranks = self.state() | {"batch_size": sampler.batch_size}, [None] * sampler.num_replicas
        distributed.all_gather_object(of_ranks, mine)
        for rank, theirs in enumerate(of_ranks):
            for name, value in (theirs or {}).items():
                first = (of_ranks[0] or {}).get(name)
                if value != first:
                    raise InvalidValue(
                        f"the processes do not train on the same data: {name} is {first} in process 0 and {value} in "
                        f"process {rank}. Give all nodes the same files and options."
                    )

    def _check_other_data(self, told: str) -> None:
        if not self.continue_with_other_data:
            raise InvalidValue(
                f"{told} Give the data options of that run (they are in the config.yaml beside its checkpoints); or "
                "keep its weights, optimizer and step count and begin an epoch of this data: "
                "--data.continue_with_other_data true; or start a new run from its weights: "
                "EmbeddingStub.load_from_checkpoint(path)."
            )
        if self.skip.sampler.rank == 0:
            logger.warning(f"{told} Training continues at the beginning of an epoch of this data.")
