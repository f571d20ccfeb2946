"""losses of windows -> those that are highest, and where these windows come from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor

from gpt2_lit.errors import InvalidValue
from gpt2_lit.monitor.counts import as_block


class HighestLosses:
    """Keeps the windows of highest loss that a training has met, each once.

    Args:
        num: How many.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.found: list[tuple[float, int, int]] = []  # loss, step and window, the highest first

    def check(self, trainer: Trainer) -> None:
        """Raise an InvalidValue if windows cannot be named."""
        data = getattr(trainer, "datamodule", None)
        if self.num and (not hasattr(data, "origins") or getattr(trainer, "overfit_batches", 0)):
            raise InvalidValue(
                "monitor.highest_losses names windows of a GPTDataModule, in its own order: without it, or with "
                "overfit_batches, there are none. Leave it out."
            )

    def add(self, outputs: Any, step: int, windows: Callable[[], np.ndarray]) -> None:
        """Take in what a training step gave: ``window_losses``, shape (B,), beside ``loss``."""
        losses = outputs.get("window_losses") if isinstance(outputs, dict) else None
        if losses is None:
            raise InvalidValue(
                "monitor.highest_losses takes a training_step that returns {'loss': ..., 'window_losses': ...}, the "
                "mean loss of each window, where the model's gives_window_losses is true. Leave it out, or let it do "
                "so."
            )
        losses = losses.float().cpu().nan_to_num(torch.inf, torch.inf)  # what is no number is the worst
        if len(self.found) < self.num or losses.max() > self.found[-1][0]:
            self.merge([(loss, step, window) for loss, window in zip(losses.tolist(), windows().tolist(), strict=True)])

    def merge(self, others: list[tuple[float, int, int]]) -> None:
        """Keep the highest of these and of those that were found."""
        highest: dict[int, tuple[float, int, int]] = {}
        for one in sorted([*self.found, *others], reverse=True):
            highest.setdefault(one[2], one)
        self.found = list(highest.values())[: self.num]

    def unite(self, trainer: Trainer) -> None:
        """Those of all processes; a collective operation."""
        if self.num and trainer.world_size > 1:
            rows = torch.full((self.num, 3), -1.0, dtype=torch.float64)
            rows[: len(self.found)] = torch.tensor(self.found, dtype=torch.float64).reshape(-1, 3)
            rows = trainer.strategy.all_gather(rows.to(trainer.strategy.root_device)).reshape(-1, 3).tolist()
            self.merge([(loss, int(step), int(window)) for loss, step, window in rows if window >= 0])

    def as_text(self, data: Any) -> str:
        """In Markdown, with the sources and the text of each window."""
        parts = [f"the {len(self.found)} windows of highest loss since the last text"]
        for loss, step, window in self.found:
            text = data.tokenizer.decode(data.train_dataset[window].input_ids.tolist())
            origins = "\n".join(map(str, data.origins(window)))
            parts.append(as_block(f"loss {loss:.3f} in step {step:,}, window {window:,}\n{origins}\n\n{text}"))
        return "\n\n---\n\n".join(parts)


def window_losses(
    loss: Callable[[Tensor, Tensor], Tensor], hidden: Float[Tensor, "B T D"], target_ids: Tensor
) -> Float[Tensor, " B"]:
    """The mean loss of each window, one after the other: no more memory than the loss of one."""
    with torch.no_grad():
        return torch.stack([loss(vectors, targets) for vectors, targets in zip(hidden, target_ids, strict=True)])
