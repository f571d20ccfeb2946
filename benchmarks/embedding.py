"""ids -> vectors -> loss: time and memory of the embedding and of the tied head, beside what one would use instead.

Run it with: python benchmarks/embedding.py
"""

import os
import resource
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from _measure import in_fresh_process, in_turns, print_table, print_versions
from torch import Tensor, nn

from gpt2_lit import EmbeddingModule

VOCAB_SIZE = 50257
# Windows in a batch, tokens in a window, numbers in a vector: GPT-2 small, a small model, the default run.
SHAPES = ((8, 1024, 768), (64, 128, 256), (8, 32, 64))
REPEATS = 25

# Tokens, numbers in a vector, and how often: the default run, a window of GPT-2 small, its batch of eight.
HEADS = ((256, 64, 9), (1024, 768, 2), (8192, 768, 1))
CHUNKED_AT_MOST = 256  # tokens that F.linear_cross_entropy gets in chunks: at 1,024 x 768 it takes 11 s and more

# glibc may return the memory of a gradient to the system and fetch it again, page by page, at the next step: it depends
# on the size and on what lies next to it. With these settings it keeps all; without them, this is most of a step.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


class TextbookEmbedding(nn.Module):
    """Token and position embedding as textbooks have them: two tables, and the positions looked up in theirs."""

    def __init__(self, vocab_size: int, embed_dim: int, context_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, embed_dim)
        self.position_embedding = nn.Embedding(context_size, embed_dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.position_embedding(torch.arange(input_ids.shape[-1]))


class HuggingFaceEmbedding(nn.Module):
    """The first lines of transformers' GPT2Model.forward: wte, wpe, their sum, dropout."""

    def __init__(self, vocab_size: int, embed_dim: int, context_size: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, embed_dim)
        self.wpe = nn.Embedding(context_size, embed_dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, input_ids: Tensor) -> Tensor:
        position_ids = torch.arange(input_ids.shape[-1]).unsqueeze(0)
        return self.drop(self.wte(input_ids) + self.wpe(position_ids))


def forward(module: Callable, tables: nn.Module, input_ids: Tensor, gradient: Tensor) -> None:
    with torch.no_grad():
        module(input_ids)


def forward_and_backward(module: Callable, tables: nn.Module, input_ids: Tensor, gradient: Tensor) -> None:
    tables.zero_grad(set_to_none=True)
    module(input_ids).backward(gradient)


def seconds_of(call: Callable[[], object], num_threads: int) -> float:
    """Seconds of the second of two calls: those of computing, of one thread, of which other programs take none."""
    clock = time.process_time if num_threads == 1 else time.perf_counter
    call()
    begun = clock()
    call()
    return clock() - begun


def embedding_rows(
    batch_size: int, context_size: int, embed_dim: int, num_threads: int, compiled: bool
) -> list[list[str]]:
    """The modules at one shape, in turns; for scale a copy of their output, and a new gradient full of zeros."""
    torch.manual_seed(0)
    torch.set_num_threads(num_threads)
    sizes = (VOCAB_SIZE, embed_dim, context_size)
    kinds = {"gpt2_lit": EmbeddingModule, "textbook": TextbookEmbedding, "transformers": HuggingFaceEmbedding}
    input_ids = torch.randint(VOCAB_SIZE, (batch_size, context_size))
    gradient = torch.randn(batch_size, context_size, embed_dim)

    calls: dict[tuple[str, str], Callable[[], object]] = {
        ("scale", "copy"): gradient.clone,
        ("scale", "zeros"): partial(torch.zeros, VOCAB_SIZE, embed_dim),
    }
    for name, kind in kinds.items():
        tables = kind(*sizes)
        module = torch.compile(tables, fullgraph=True) if compiled else tables
        for step in (forward, forward_and_backward):
            step(module, tables, input_ids, gradient)
            calls[step.__name__, name] = partial(step, module, tables, input_ids, gradient)
    measurements = {name: partial(seconds_of, call, num_threads) for name, call in calls.items()}
    ms = {name: 1e3 * median(repeats) for name, repeats in in_turns(measurements, REPEATS).items()}

    rows: list[list[str]] = []
    shape = f"{batch_size} x {context_size} x {embed_dim}{', compiled' if compiled else ''}"
    for step, scale in (("forward", "copy"), ("forward_and_backward", "zeros")):
        ours, textbook, others = (ms[step, name] for name in kinds)
        numbers = [
            f"{ours:.3f}",
            f"{textbook / ours:.2f}x",
            f"{others / ours:.2f}x",
            f"{ours / ms['scale', scale]:.2f}",
        ]
        rows.append([shape, str(num_threads), step.replace("_", " "), *numbers])
    return rows


def plain(embedding: EmbeddingModule, hidden: Tensor, target_ids: Tensor) -> Tensor:
    return F.cross_entropy(embedding.logits(hidden), target_ids)


def chunked(embedding: EmbeddingModule, hidden: Tensor, target_ids: Tensor) -> Tensor:
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, embedding.token_embedding.weight, target_ids, options=options)


def reference(embedding: EmbeddingModule, hidden: Tensor, target_ids: Tensor) -> Tensor:
    return F.linear_cross_entropy(hidden, embedding.token_embedding.weight, target_ids)


HEAD_WAYS = {
    "F.cross_entropy": plain,
    "F.linear_cross_entropy": reference,
    "the same, chunked": chunked,
    "next_token_loss": EmbeddingModule.next_token_loss,
}


def head(way: str, num_tokens: int, embed_dim: int, num_calls: int) -> tuple[float, float]:
    """Seconds of computing for a loss with its backward, and the megabytes that the process grew by."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    embedding = EmbeddingModule(VOCAB_SIZE, embed_dim, 1)
    hidden = torch.randn(num_tokens, embed_dim, requires_grad=True)
    target_ids = torch.randint(VOCAB_SIZE, (num_tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(num_calls):
        embedding.zero_grad()
        begun = time.process_time()  # on one thread, other programs on the machine do not count
        HEAD_WAYS[way](embedding, hidden, target_ids).backward()
        seconds.append(time.process_time() - begun)
    return median(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def head_rows(num_tokens: int, embed_dim: int, num_calls: int) -> list[list[str]]:
    ways = [way for way in HEAD_WAYS if num_tokens <= CHUNKED_AT_MOST or way in ("F.cross_entropy", "next_token_loss")]
    measurements = {way: partial(in_fresh_process, head, way, num_tokens, embed_dim, num_calls) for way in ways}
    results = in_turns(measurements, 1 if num_tokens > 1024 else 3)
    middle = {way: [median(numbers) for numbers in zip(*repeats, strict=True)] for way, repeats in results.items()}
    plain_seconds, plain_mb = middle["F.cross_entropy"]
    return [
        [
            f"{num_tokens} x {embed_dim}",
            way,
            f"{1e3 * seconds:,.0f}",
            f"{plain_seconds / seconds:.2f}x",
            f"{mb:,.0f}",
            f"{mb / plain_mb:.2f}x",
        ]
        for way, (seconds, mb) in middle.items()
    ]


def main() -> None:
    rows = [row for shape in HEADS for row in head_rows(*shape)]
    print_table(["tokens", "loss", "ms", "plain speed", "extra MB", "plain memory"], rows)
    os.environ |= KEEP_MEMORY
    settings = [(shape, threads, False) for shape in SHAPES for threads in (1, 2)]
    settings += [(SHAPES[0], threads, True) for threads in (1, 2)]
    rows = [row for shape, *rest in settings for row in in_fresh_process(embedding_rows, *shape, *rest)]
    print()
    header = ["batch", "threads", "step", "gpt2_lit ms", "textbook's", "transformers'", "copies or zeros"]
    print_table(header, rows, num_names=3)
    print_versions()


if __name__ == "__main__":
    main()
