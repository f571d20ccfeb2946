"""vectors -> vectors -> logits: GPT-2's blocks, and the whole model with an EmbeddingModule.

    vectors (B, T, D)
     |   num_layers times:
     |     vectors + attention(norm(vectors))    each position gathers from those before it
     |     vectors + mlp(norm(vectors))          each position works on what it has
     |   norm
     v
    hidden (B, T, D)
     |   product with each row of the token table
     v
    logits (B, T, V)

The letters are those of gpt2_lit; H is the number of heads.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn

from gpt2_lit import EmbeddingModule

# Source: openai/gpt-2, src/model.py: conv1d draws its matrices with a standard deviation of 0.02.
INIT_STD = 0.02


def document_mask(document_ids: Int64[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Which positions each one gathers from, if documents are kept apart: those before it in its own document.

    Example:
        >>> document_mask(torch.tensor([[0, 0, 1]])).int().tolist()
        [[[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]]
    """
    same_document = document_ids[:, :, None] == document_ids[:, None, :]
    return same_document.tril()[:, None]  # the same for all heads


def cu_seqlens(document_ids: Int64[Tensor, "B T"]) -> Int32[Tensor, " K"]:
    """Where each document begins in the windows laid end to end, and the end of the last one.

    It is what kernels for sequences of different lengths ask for instead of a mask, as flash_attn_varlen_func.

    Example:
        >>> cu_seqlens(torch.tensor([[0, 0, 1], [0, 0, 0]]))
        tensor([0, 2, 3, 6], dtype=torch.int32)
    """
    begins = torch.ones_like(document_ids, dtype=torch.bool)  # a window begins a document in any case
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return F.pad(begins.flatten().nonzero().flatten(), (0, 1), value=document_ids.numel()).int()


class CausalSelfAttention(nn.Module):
    """Each position gathers from itself and the positions before it, or those that a mask has; none can look ahead.

    Args:
        embed_dim: Length of a vector, D.
        num_heads: Number of heads, H; each works on D / H of the numbers.
        dropout: Share of the attention weights set to zero in training.

    Raises:
        ValueError: If ``embed_dim`` is no multiple of ``num_heads``.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads = {num_heads}, got {embed_dim}.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, vectors: Float[Tensor, "B T D"], mask: Bool[Tensor, "B 1 T T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        # One product makes all three; then the heads are a dimension beside the batch, and do not see each other.
        heads = self.query_key_value(vectors).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, H, D / H)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, H, T, D / H) each
        gathered = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=self.dropout if self.training else 0.0, is_causal=mask is None
        )
        return self.output(gathered.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Each position works alone on its vector, in a hidden layer of four times its width."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(embed_dim, 4 * embed_dim)
        # Source: openai/gpt-2, src/model.py: gelu is the approximation by tanh.
        self.activation = nn.GELU(approximate="tanh")
        self.output = nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, vectors: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.output(self.activation(self.expand(vectors)))


class Block(nn.Module):
    """Attention, then MLP, each added to its input.

    The norms are inside the branches ("pre-norm"): the sum runs through the whole model unchanged, and the gradient
    runs back along it.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = CausalSelfAttention(embed_dim, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = MLP(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, vectors: Float[Tensor, "B T D"], mask: Bool[Tensor, "B 1 T T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        vectors = vectors + self.dropout(self.attention(self.attention_norm(vectors), mask))
        return vectors + self.dropout(self.mlp(self.mlp_norm(vectors)))


class Blocks(nn.Module):
    """All blocks of GPT-2 and the final norm: a backbone for EmbeddingStub.

    With ``document_ids`` (``--data.document_ids true``), no position gathers from another document of its window.

    Args:
        embed_dim: Length of a vector, D; that of the embedding.
        num_layers: Number of blocks.
        num_heads: Attention heads in each block; embed_dim must be a multiple of it.
        dropout: Share of the numbers set to zero in training, from 0 to below 1. GPT-2 was trained with 0.1.

    Raises:
        ValueError: If ``embed_dim`` is not a multiple of ``num_heads``, or not that of the vectors.

    Example:
        >>> import torch
        >>> blocks = Blocks(embed_dim=8, num_layers=2, num_heads=2)
        >>> blocks(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, embed_dim: int = 768, num_layers: int = 12, num_heads: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.blocks = nn.Sequential(*[Block(embed_dim, num_heads, dropout) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the matrices as in GPT-2; biases start at zero."""
        # Source: Radford et al. 2019, section 2.3: each block adds two branches to the sum, so the last matrix of each
        # branch starts smaller, by the square root of their number. The sum then has the size of one branch.
        branch_std = INIT_STD / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                nn.init.normal_(parameter, std=branch_std if ".output." in name else INIT_STD)

    def forward(
        self, vectors: Float[Tensor, "B T D"], document_ids: Int64[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        if vectors.shape[-1] != self.embed_dim:
            raise ValueError(
                f"the blocks are made for vectors of embed_dim = {self.embed_dim} numbers, got {vectors.shape[-1]}. "
                "Give the blocks the embed_dim of the embedding."
            )
        mask = None if document_ids is None else document_mask(document_ids)
        for block in self.blocks:
            vectors = block(vectors, mask)
        return self.norm(vectors)


class GPT(nn.Module):
    """The whole model: embedding, blocks, and a logit for each token that could come next.

    Args:
        embedding: Turns ids into vectors; its token table is also the head ("tied").
        blocks: Any module that maps (B, T, D) to (B, T, D), and takes document_ids if they are given.

    Example:
        >>> import torch
        >>> gpt = GPT(EmbeddingModule(10, 8, context_size=5), Blocks(8, num_layers=1, num_heads=2))
        >>> gpt(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 10])
    """

    def __init__(self, embedding: EmbeddingModule, blocks: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = blocks

    def forward(
        self,
        input_ids: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "B T"] | None = None,
        document_ids: Int64[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        vectors = self.embedding(input_ids, position_ids=position_ids)
        hidden = self.blocks(vectors) if document_ids is None else self.blocks(vectors, document_ids=document_ids)
        return self.embedding.logits(hidden)


def next_token_loss(logits: Float[Tensor, "B T V"], target_ids: Int64[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The mean cross-entropy of the next token, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), target_ids.flatten())
