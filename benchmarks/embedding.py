"""ids -> vectors: milliseconds of the embedding, forward and backward, of the textbook's and of ours.

Run it with: python benchmarks/embedding.py
"""

import os
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from _measure import in_fresh_process, in_turns, print_table, print_versions, seconds_per_call
from torch import Tensor, nn

from gpt2_lit import EmbeddingModule

VOCAB_SIZE = 50257
# Windows in a batch, tokens in a window, numbers in a vector: GPT-2 small, a small model, the default run.
SHAPES = ((8, 1024, 768), (64, 128, 256), (8, 32, 64))
REPEATS = 25
SECONDS = 0.1  # at least, of one measurement


class TextbookEmbedding(nn.Module):
    """Token and position embedding as textbooks have them: two tables, and the positions looked up in theirs."""

    def __init__(self, vocab_size: int, embed_dim: int, context_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, embed_dim)
        self.position_embedding = nn.Embedding(context_size, embed_dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.position_embedding(torch.arange(input_ids.shape[-1]))


def forward(module: nn.Module, input_ids: Tensor, gradient: Tensor) -> None:
    with torch.no_grad():
        module(input_ids)


def forward_and_backward(module: nn.Module, input_ids: Tensor, gradient: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    (module(input_ids) * gradient).sum().backward()


def table_rows(batch_size: int, context_size: int, embed_dim: int) -> list[list[str]]:
    """Both modules at one shape, in turns, and for scale one copy of their output."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a second would wait for its core whenever the machine is busy, and that be measured
    sizes = (VOCAB_SIZE, embed_dim, context_size)
    modules = {"gpt2_lit": EmbeddingModule(*sizes), "textbook": TextbookEmbedding(*sizes)}
    input_ids = torch.randint(VOCAB_SIZE, (batch_size, context_size))
    gradient = torch.randn(batch_size, context_size, embed_dim)

    calls: dict[tuple[str, str], Callable[[], object]] = {("copy", ""): gradient.clone}
    for step in (forward, forward_and_backward):
        for name, module in modules.items():
            calls[step.__name__, name] = partial(step, module, input_ids, gradient)
    measurements = {name: partial(seconds_per_call, call, SECONDS) for name, call in calls.items()}
    ms = {name: 1e3 * median(repeats) for name, repeats in in_turns(measurements, REPEATS).items()}

    rows = []
    for step in ("forward", "forward_and_backward"):
        ours, textbook, copy = ms[step, "gpt2_lit"], ms[step, "textbook"], ms["copy", ""]
        shape = f"{batch_size} x {context_size} x {embed_dim}"
        numbers = [f"{ours:.3f}", f"{textbook:.3f}", f"{textbook / ours:.2f}x", f"{copy:.3f}"]
        rows.append([shape, step.replace("_", " "), *numbers])
    return rows


def main() -> None:
    # Keep freed memory in the process. Whether glibc hands that of a gradient back, and must fetch it anew at the next
    # step, hangs on what happens to lie behind it: by luck, one module or the other would take twice the time.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
    rows = [row for shape in SHAPES for row in in_fresh_process(table_rows, *shape)]
    print_table(["batch", "step", "gpt2_lit ms", "textbook ms", "textbook's speed", "copy of the output ms"], rows)
    print_versions()


if __name__ == "__main__":
    main()
