"""windows -> a trained step: where the time of a step of the default `fit` goes, and what the optimizer's pass costs.

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

REPEATS = 5
NUM_STEPS = 40
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
        before, now = now, time.perf_counter()
        parts.setdefault(part, []).append(1e3 * (now - before))

    for _ in range(NUM_STEPS):
        now = time.perf_counter()
        input_ids, target_ids = next(batches)
        done("data: the next batch")
        vectors = embedding(input_ids)
        done("embedding: forward")
        hidden = vectors.detach().requires_grad_()
        embedding.next_token_loss(hidden, target_ids).backward()
        done("head: scores, loss, and back")
        assert isinstance(hidden.grad, Tensor)
        vectors.backward(hidden.grad)
        done("embedding: backward")
        optimizer.step()
        done("optimizer: AdamW, fused")
        optimizer.zero_grad()
        done("optimizer: gradients let go")
    return {part: median(ms) for part, ms in parts.items()}


class Clock(Callback):
    """The time from the end of one step to that of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.perf_counter())


def by_trainer(log_every_n_steps: int) -> float:
    """Milliseconds of a step within Trainer.fit: the mean, because not every step logs."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            logger=TensorBoardLogger(folder, default_hp_metric=False),
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
    torch.set_num_threads(2)
    return {
        **by_hand(),
        "a step of Trainer.fit": by_trainer(1000),
        "a step of Trainer.fit that logs": by_trainer(1),
    }


def optimizer_pass(name: str, sizes: tuple[int, int, int]) -> float:
    """Milliseconds of one step of an optimizer over the two tables, all of whose gradients are there."""
    torch.set_num_threads(2)
    parameters = list(EmbeddingModule(*sizes).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = OPTIMIZERS[name](parameters)
    ms = []
    for _ in range(8):
        begun = time.perf_counter()
        optimizer.step()
        ms.append(1e3 * (time.perf_counter() - begun))
    return median(ms[2:])


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    steps = in_turns({"step": partial(in_fresh_process, whole_step)}, REPEATS)["step"]
    ms = {part: median(step[part] for step in steps) for part in steps[0]}
    whole = ms["a step of Trainer.fit"]
    print_table(["part", "ms", "of a step"], [[part, f"{x:.2f}", f"{x / whole:.0%}"] for part, x in ms.items()], 1)
    print()

    passes = in_turns(
        {
            (name, sizes): partial(in_fresh_process, optimizer_pass, name, sizes)
            for name in OPTIMIZERS
            for sizes in TABLES
        },
        3,
    )
    times = {key: median(results) for key, results in passes.items()}
    rows = [
        [
            f"{vocab_size:,} x {embed_dim}",
            name,
            f"{times[name, (vocab_size, embed_dim, size)]:.1f}",
            f"{times[name, (vocab_size, embed_dim, size)] / times['AdamW, fused', (vocab_size, embed_dim, size)]:.2f}x",
        ]
        for vocab_size, embed_dim, size in TABLES
        for name in OPTIMIZERS
    ]
    print_table(["table", "optimizer", "ms a step", "AdamW, fused"], rows)
    print_versions()


if __name__ == "__main__":
    main()
