"""a step -> its learning rate, and parameters -> groups with and without weight decay."""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from torch import nn

from gpt2_lit.errors import InvalidValue, real_number, whole_number

Decay = Literal["none", "linear", "cosine"]


class Schedule(NamedTuple):
    """How the learning rate changes: a pure function of the step, so that a resumed run continues with the same.

    Args:
        warmup_steps: Steps in which it rises linearly to its full size.
        decay: How it falls after that: not at all, on a straight line, or along half a cosine.
        decay_steps: The step at which it has fallen; it stays there.
        min_lr_ratio: What is left of it then, as a share of its full size.

    Example:
        >>> schedule = Schedule(warmup_steps=1, decay="cosine", decay_steps=5, min_lr_ratio=0.1)
        >>> [round(schedule.factor(step), 3) for step in range(7)]
        [0.5, 1.0, 0.868, 0.55, 0.232, 0.1, 0.1]
    """

    warmup_steps: int = 0
    decay: Decay = "none"
    decay_steps: int | None = None
    min_lr_ratio: float = 0.1

    @classmethod
    def checked(cls, warmup_steps: int, decay: str, decay_steps: int | None, min_lr_ratio: int | float) -> "Schedule":
        """The schedule of a user's options; an InvalidValue if one is out of its range."""
        warmup_steps = whole_number("warmup_steps", warmup_steps, least=0, of="model.")
        if decay not in ("none", "linear", "cosine"):
            raise InvalidValue(f"lr_decay must be none, linear or cosine, got {decay!r}. Set model.lr_decay.")
        if decay_steps is not None:
            decay_steps = whole_number("decay_steps", decay_steps, least=warmup_steps + 1, of="model.")
        min_lr_ratio = real_number("min_lr_ratio", min_lr_ratio, of="model.")
        if not 0 <= min_lr_ratio <= 1:
            raise InvalidValue(f"min_lr_ratio must be from 0 to 1, got {min_lr_ratio}. Set model.min_lr_ratio.")
        return cls(warmup_steps, decay, decay_steps, min_lr_ratio)  # type: ignore[arg-type]

    @property
    def is_constant(self) -> bool:
        return self.decay == "none" and not self.warmup_steps

    def ending_at(self, num_steps: int | float) -> "Schedule":
        """The same with an end: that of the training, unless there is one."""
        if self.decay == "none" or self.decay_steps is not None:
            return self
        if math.isinf(num_steps):
            raise InvalidValue(
                f"lr_decay {self.decay} needs the step at which it ends, and this training has no end. Set "
                "model.decay_steps, trainer.max_steps or trainer.max_epochs."
            )
        return self._replace(decay_steps=int(num_steps))

    def factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of its full size."""
        if step < self.warmup_steps:
            # Source: nanoGPT, train.py, get_lr: the first step moves already, and the first after the warmup is full.
            return (step + 1) / (self.warmup_steps + 1)
        if self.decay == "none":
            return 1.0
        assert self.decay_steps is not None, "ending_at gives one"
        done = (step - self.warmup_steps) / max(self.decay_steps - self.warmup_steps, 1)
        left = 1 - min(done, 1.0)
        if self.decay == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * left


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices and tables, which decay, and all vectors, which do not: norms and biases.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        >>> [len(group["params"]) for group in decay_groups(model.parameters())]
        [1, 3]
    """
    parameters = list(parameters)
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2]},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
