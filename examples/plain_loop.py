"""batches -> a trained GPT: the DataModule and the EmbeddingModule in a plain PyTorch loop, without a Trainer.

python -m examples.plain_loop
"""

from collections.abc import Iterator

import torch
from torch import nn

from examples.gpt import GPT, Blocks, next_token_loss
from examples.sample import continue_text
from gpt2_lit import EmbeddingModule, GPTDataModule


def train(gpt: GPT, data: GPTDataModule, num_epochs: int, learning_rate: float = 2e-3) -> Iterator[float]:
    """Train a model, and yield the mean loss of each epoch, in nats.

    Args:
        gpt: The model.
        data: Its text; it is set up here.
        num_epochs: Passes over the windows of the text.
        learning_rate: About how far each parameter moves in a step.
    """
    data.setup("fit")
    # Made once: each pass over it is the next epoch, in a different order. A new loader would begin with the first.
    # To stop and resume, save loader.state_dict() with the weights.
    loader = data.train_dataloader()
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    gpt.train()
    for _ in range(num_epochs):
        losses = []
        for input_ids, target_ids in loader:
            loss = next_token_loss(gpt(input_ids), target_ids)
            optimizer.zero_grad()
            loss.backward()
            # One batch with a large gradient would throw the model back to knowing only how frequent words are.
            nn.utils.clip_grad_norm_(gpt.parameters(), max_norm=1.0)
            optimizer.step()
            losses.append(loss.detach())
        yield torch.stack(losses).mean().item()


def main() -> None:
    """Learn the tale by heart, with an id for each word, and tell its beginning."""
    torch.manual_seed(42)
    data = GPTDataModule(tokenizer="words", context_size=128, stride=32, batch_size=4, val_fraction=0.0)
    embedding = EmbeddingModule(data.vocab_size, embed_dim=128, context_size=data.context_size)
    gpt = GPT(embedding, Blocks(embed_dim=128, num_layers=4, num_heads=4))
    for epoch, loss in enumerate(train(gpt, data, num_epochs=30)):
        print(f"epoch {epoch:2}  loss {loss:.3f}")
    print(continue_text(gpt, data, "The Rain Book", num_tokens=100, temperature=0.0))


if __name__ == "__main__":
    main()
