"""vectors -> norms: how long embeddings are, in the unit of the vectors."""

import torch
from jaxtyping import Float
from torch import Tensor


def mean_norm(vectors: Float[Tensor, "*N D"]) -> Float[Tensor, ""]:
    """The mean of the L2 norms of the vectors.

    A vector of D normal numbers with standard deviation s has a norm of about s * sqrt(D): GPT-2 small's token
    vectors start at 0.02 * sqrt(768) = 0.55, its position vectors at 0.28.

    Example:
        >>> mean_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor(3.)
    """
    return torch.linalg.vector_norm(vectors, dim=-1).mean()
