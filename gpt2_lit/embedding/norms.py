"""vectors -> norms: how long embeddings are, in the unit of the vectors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gpt2_lit.embedding.embedding import EmbeddingModule


def vector_norms(vectors: Float[Tensor, "*N D"]) -> Float[Tensor, "*N"]:
    """The L2 norm of each vector; in float32 where the vectors have fewer bits.

    Example:
        >>> vector_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([5., 1.])
    """
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.promote_types(vectors.dtype, torch.float32))


def mean_norm(vectors: Float[Tensor, "*N D"]) -> Float[Tensor, ""]:
    """The mean of the L2 norms of the vectors.

    A vector of D normal numbers with standard deviation s has a norm of about s * sqrt(D): GPT-2 small's token
    vectors start at 0.02 * sqrt(768) = 0.55, its position vectors at 0.28.

    Example:
        >>> mean_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor(3.)
    """
    return vector_norms(vectors).mean()


def row_norms(table: Float[Tensor, "V D"], ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """The norm of each id's row of a table. A row is read once, however often its id comes."""
    rows, inverse = ids.unique(return_inverse=True)
    return vector_norms(F.embedding(rows, table))[inverse]


def embedding_norms(
    embedding: EmbeddingModule,
    input_ids: Int[Tensor, "*B T"],
    vectors: Float[Tensor, "*B T D"],
    start_position: int = 0,
    position_ids: Int[Tensor, "..."] | None = None,
) -> dict[str, Float[Tensor, "*_"]]:
    """The norms of what an embedding made of ``input_ids``; positions as they were given to it.

    Returns:
        ``token``, shape (B, T); ``position``, shape (T,) or that of position_ids; ``input``, shape (B, T): of the sums,
        which the backbone receives.
    """
    table = embedding.position_embedding.weight
    with torch.no_grad():
        if position_ids is None:
            position_norms = vector_norms(table[start_position : start_position + input_ids.shape[-1]])
        else:
            position_norms = row_norms(table, position_ids)
        return {
            "token": row_norms(embedding.token_embedding.weight, input_ids),
            "position": position_norms,
            "input": vector_norms(vectors),
        }


class Band(NamedTuple):
    """The mean of some numbers, and their 5th and 95th percentiles."""

    mean: Float[Tensor, ""]
    p05: Float[Tensor, ""]
    p95: Float[Tensor, ""]


def band(norms: Float[Tensor, "*N"]) -> Band:
    """The mean and the 5th and 95th percentile of all norms, interpolated linearly.

    Example:
        >>> [round(value.item(), 2) for value in band(torch.arange(101.0))]
        [50.0, 5.0, 95.0]
    """
    flat = norms.flatten()
    p05, p95 = torch.quantile(flat, torch.tensor([0.05, 0.95], dtype=flat.dtype, device=flat.device))
    return Band(flat.mean(), p05, p95)
