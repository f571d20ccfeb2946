"""prompt -> text: a trained model continues a prompt, one token at a time.

python -m examples.sample "The Rain Book" --temperature 0.8 --top_k 50
"""

from typing import Any

import torch
import yaml
from jsonargparse import auto_cli
from torch import nn

from gpt2_lit import EmbeddingStub, GPTDataModule
from gpt2_lit.cli.run import directory_of_checkpoint, find_checkpoint
from gpt2_lit.monitor.generate import generate


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
