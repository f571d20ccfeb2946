"""ids -> logits: a GPTModel as the textbooks write it, with the EmbeddingModule in place of its first three layers.

    model = GPTModel({"vocab_size": 50257, "context_length": 256, "emb_dim": 768, ...})

Under one seed it has the same logits as with them, and it loads weights that were trained with them. The blocks are
those of gpt.py; take your own.
"""

from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from examples.gpt import Block
from gpt2_lit import EmbeddingModule

# Of the book of Raschka; its context_length is our context_size.
GPT_CONFIG_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
}


class GPTModel(nn.Module):
    """A GPT whose head has a table of its own, made from a dictionary of sizes.

    Args:
        cfg: vocab_size, context_length, emb_dim, n_heads, n_layers and drop_rate, as in ``GPT_CONFIG_124M``.

    Example:
        >>> import torch
        >>> sizes = {"vocab_size": 10, "context_length": 5, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0}
        >>> GPTModel(sizes)(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 10])
    """

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        # The textbooks have here:
        #   self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        #   self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        #   self.drop_emb = nn.Dropout(cfg["drop_rate"])
        # and init="normal" draws the same tables; GPT-2's own are smaller (the default).
        self.embedding = EmbeddingModule(
            cfg["vocab_size"], cfg["emb_dim"], cfg["context_length"], cfg["drop_rate"], init="normal"
        )
        self.trf_blocks = nn.Sequential(
            *[Block(cfg["emb_dim"], cfg["n_heads"], cfg["drop_rate"]) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = nn.LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        # And here: tok_emb(in_idx) + pos_emb(torch.arange(in_idx.shape[1])), then drop_emb.
        vectors = self.embedding(in_idx)
        return self.out_head(self.final_norm(self.trf_blocks(vectors)))


def load_textbook_weights(model: GPTModel, weights: dict[str, Tensor]) -> None:
    """Load a state dict of the model before: its two tables go into the embedding, which knows their names."""
    tables = ("tok_emb.weight", "pos_emb.weight")
    model.load_state_dict({f"embedding.{name}" if name in tables else name: table for name, table in weights.items()})
