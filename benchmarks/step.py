"""windows -> a trained step: where the time of a step of the default `fit` goes, and what the optimizer's pass costs.

Seconds are those that the process computed for, on one thread: other programs on the machine do not count.

Run it with: python benchmarks/step.py
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from statistics import median
from typing import Any

import torch
from _measure import in_fresh_process, in_turns, print_table, print_versions
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from gpt2_lit import EmbeddingModule, EmbeddingStub, GPTDataModule

REPEATS = 2
NUM_STEPS = 20
TABLES = ((50257, 64, 32), (50257, 768, 1024))  # V, D, T: the default run, GPT-2 small
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW, one by one": partial(torch.optim.AdamW, foreach=False),
    "AdamW, foreach": partial(torch.optim.AdamW, foreach=True),
    "AdamW, fused": partial(torch.optim.AdamW, fused=True),
    "SGD": partial(torch.optim.SGD, lr=0.1),
}


def by_hand() -> dict[str, float]:
    """Milliseconds of each part of a step, medians: the work that Trainer.fit does, without Trainer."""
    model, data = EmbeddingStub(), GPTDataModule()
    data.setup("fit")
    batches: Iterator[Any] = chain.from_iterable(data.train_dataloader() for _ in repeat(None))
    optimizer: Any = model.configure_optimizers()
    embedding = model.embedding
    parts: dict[str, list[float]] = {}
    now = 0.0

    def done(part: str) -> None:
        nonlocal now
        before, now = now, time.process_time()
        parts.setdefault(part, []).append(1e3 * (now - before))

    for _ in range(NUM_STEPS):
        now = time.process_time()
        input_ids, target_ids = next(batches)
        done("data: the next batch")
        vectors = embedding(input_ids)
        done("embedding: forward")
        hidden = vectors.detach().requires_grad_()
        embedding.next_token_loss(hidden, target_ids).backward()
        done("head: logits, loss, and back")
        assert isinstance(hidden.grad, Tensor)
        vectors.backward(hidden.grad)
        done("embedding: backward")
        optimizer.step()
        done("optimizer: AdamW, fused")
        optimizer.zero_grad()
        done("optimizer: gradients freed")
    return {part: median(ms) for part, ms in parts.items()}


class Clock(Callback):
    """When each step was done."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.process_time())


def by_trainer(log_every_n_steps: int) -> float:
    """Milliseconds of a step within Trainer.fit: the mean, because not every step logs."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            accelerator="cpu",
            logger=TensorBoardLogger(directory, default_hp_metric=False),
            callbacks=[clock],
            max_steps=NUM_STEPS + 1,
            limit_val_batches=0,
            log_every_n_steps=log_every_n_steps,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(EmbeddingStub(), GPTDataModule())
    return median(1e3 * (end - begin) for begin, end in zip(clock.ends, clock.ends[1:], strict=False))


def whole_step() -> dict[str, float]:
    """The parts of a step, and the step in a Trainer that logs at every step and at none."""
    seed_everything(1, verbose=False)
    torch.set_num_threads(1)
    return {
        **by_hand(),
        "a step of Trainer.fit": by_trainer(1000),
        "a step of Trainer.fit that logs": by_trainer(1),
    }


def optimizer_rows(vocab_size: int, embed_dim: int, context_size: int) -> list[list[str]]:
    """One step of each optimizer, in turns, over the two tables, all of whose gradients are there."""
    torch.set_num_threads(1)
    parameters = list(EmbeddingModule(vocab_size, embed_dim, context_size).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)

    def milliseconds(optimizer: torch.optim.Optimizer) -> float:
        begun = time.process_time()
        optimizer.step()
        return 1e3 * (time.process_time() - begun)

    optimizers = {name: make(parameters) for name, make in OPTIMIZERS.items()}
    for optimizer in optimizers.values():
        optimizer.step()  # makes its state
    steps = in_turns({name: partial(milliseconds, optimizer) for name, optimizer in optimizers.items()}, 5)
    ms = {name: median(repeats) for name, repeats in steps.items()}
    table = f"{vocab_size:,} x {embed_dim}"
    return [[table, name, f"{x:.1f}", f"{x / ms['AdamW, fused']:.2f}x"] for name, x in ms.items()]


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    steps = in_turns({"step": partial(in_fresh_process, whole_step)}, REPEATS)["step"]
    ms = {part: median(step[part] for step in steps) for part in steps[0]}
    whole = ms["a step of Trainer.fit"]
    print_table(["part", "ms", "of a step"], [[part, f"{x:.2f}", f"{x / whole:.0%}"] for part, x in ms.items()], 1)
    rows = [row for sizes in TABLES for row in in_fresh_process(optimizer_rows, *sizes)]
    print()
    print_table(["table", "optimizer", "ms a step", "time of AdamW, fused"], rows)
    print_versions()


if __name__ == "__main__":
    main()
