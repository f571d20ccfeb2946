"""prompt -> text: a trained model continues a prompt, one token at a time.

python -m examples.sample "The Rain Book" --temperature 0.8 --top_k 50
"""

from typing import Any

import torch
import yaml
from jaxtyping import Int64
from jsonargparse import auto_cli
from torch import Tensor, nn

from gpt2_lit import EmbeddingStub, GPTDataModule
from gpt2_lit.cli.run import directory_of_checkpoint, find_checkpoint


@torch.no_grad()
def generate(
    model: nn.Module,
    input_ids: Int64[Tensor, "B T"],
    num_tokens: int,
    context_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int64[Tensor, "B _"]:
    """Append ``num_tokens`` tokens to each sequence, each drawn from the model's logits.

    Args:
        model: Maps ids (B, T) to logits (B, T, V): an EmbeddingStub, or a GPT.
        input_ids: The prompt, at least one token; shape (B, T).
        num_tokens: How many tokens to append.
        context_size: The longest sequence that the model takes; it sees the end of a longer text.
        temperature: Divides the logits: below 1 likely tokens become more likely, above 1 less. 0 always takes the most
            likely one. ``torch.manual_seed`` decides the draws.
        top_k: Draw from this many of the most likely tokens. None is all.

    Returns:
        The sequences with the new tokens; shape (B, T + num_tokens).

    Raises:
        ValueError: If the prompt has no token, ``temperature`` is negative or ``top_k`` below 1.
    """
    if not input_ids.shape[-1]:
        raise ValueError("a text needs at least one token to begin with. Give a longer prompt.")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}.")
    was_training = model.training
    model.eval()  # without dropout
    for _ in range(num_tokens):
        logits = model(input_ids[:, -context_size:])[:, -1]  # (B, V): only the last position is new
        if temperature == 0:
            next_ids = logits.argmax(-1, keepdim=True)
        else:
            if top_k is not None:
                lowest_kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < lowest_kept, -torch.inf)
            next_ids = torch.multinomial((logits / temperature).softmax(-1), num_samples=1)
        input_ids = torch.cat([input_ids, next_ids], dim=-1)
    model.train(was_training)
    return input_ids


def continue_text(model: nn.Module, data: GPTDataModule, prompt: str, num_tokens: int, **how: Any) -> str:
    """A prompt, continued by a model that was trained on ``data``; ``how`` as in :func:`generate`."""
    input_ids = torch.tensor([data.tokenizer.encode(prompt)], dtype=torch.int64)
    output_ids = generate(model, input_ids, num_tokens, data.context_size, **how)
    return data.tokenizer.decode(output_ids[0].tolist())


def main(
    prompt: str,
    checkpoint: str = "last",
    num_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 42,
) -> None:
    """Print a prompt, continued by a model that ``train_stub.py fit`` has trained.

    Args:
        prompt: The beginning of the text.
        checkpoint: A .ckpt file in the directory of its run, or last or best: that of the newest run in logs/.
        num_tokens: How many tokens to append.
        temperature: Below 1 likely tokens become more likely, above 1 less; 0 always takes the most likely one.
        top_k: Draw from this many of the most likely tokens. None is all.
        seed: Decides the draws.
    """
    path = find_checkpoint(checkpoint)
    directory = directory_of_checkpoint(path)
    if directory is None:
        raise FileNotFoundError(f"{path} is not in the directory of its run, whose config.yaml names the tokenizer.")
    model = EmbeddingStub.load_from_checkpoint(path, map_location="cpu")
    # The tokenizer is that of the run's data; words is built from the same text again.
    data = GPTDataModule(**yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))["data"])
    torch.manual_seed(seed)
    print(continue_text(model, data, prompt, num_tokens, temperature=temperature, top_k=top_k))


if __name__ == "__main__":
    auto_cli(main)
