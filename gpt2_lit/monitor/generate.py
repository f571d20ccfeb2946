"""a prompt -> its continuation: a model's logits become text, one token at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from gpt2_lit.errors import InvalidValue


@torch.no_grad()
def generate(
    model: nn.Module,
    input_ids: Int64[Tensor, "B T"],
    num_tokens: int,
    context_size: int,
    temperature: int | float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "B _"]:
    """Append ``num_tokens`` tokens to each sequence, each drawn from the model's logits.

    Args:
        model: Maps ids (B, T) to logits (B, T, V): an EmbeddingStub, or a GPT.
        input_ids: The prompt, at least one token; shape (B, T).
        num_tokens: How many tokens to append.
        context_size: The longest sequence that the model takes; it sees the end of a longer text.
        temperature: Divides the logits: below 1 likely tokens become more likely, above 1 less. 0 always takes the most
            likely one.
        top_k: Draw from this many of the most likely tokens. None is all.
        generator: Decides the draws. None is PyTorch's own, which ``torch.manual_seed`` sets.

    Returns:
        The sequences with the new tokens; shape (B, T + num_tokens).

    Raises:
        ValueError: If the prompt has no token, ``temperature`` is negative or ``top_k`` below 1.
    """
    if not input_ids.shape[-1]:
        raise InvalidValue("a text needs at least one token to begin with. Give a longer prompt.")
    check_drawing(temperature, top_k)
    with evaluating(model):
        for _ in range(num_tokens):
            logits = model(input_ids[:, -context_size:])[:, -1]  # (B, V): only the last position is new
            if temperature == 0:
                next_ids = logits.argmax(-1, keepdim=True)
            else:
                if top_k is not None:
                    lowest_kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                    logits = logits.masked_fill(logits < lowest_kept, -torch.inf)
                probabilities = (logits.float() / temperature).softmax(-1)
                next_ids = torch.multinomial(probabilities, num_samples=1, generator=generator)
            input_ids = torch.cat([input_ids, next_ids], dim=-1)
    return input_ids


def check_drawing(temperature: int | float, top_k: int | None, of: str = "") -> None:
    """Raise an InvalidValue if tokens cannot be drawn like that; ``of`` is what the names of the options begin with."""
    way_out = f" Set {of}{{}}." if of else ""
    name = of.rpartition(".")[2]
    if not temperature >= 0:
        raise InvalidValue(f"{name}temperature must be at least 0, got {temperature}.{way_out.format('temperature')}")
    if top_k is not None and top_k < 1:
        raise InvalidValue(f"{name}top_k must be at least 1, got {top_k}.{way_out.format('top_k')}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout; after the block each of its modules is in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
