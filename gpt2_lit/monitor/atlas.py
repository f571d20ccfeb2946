"""tables -> a Parquet file: each token and each position with its count, norm, neighbours and vector, for a viewer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gpt2_lit.embedding.norms import vector_norms
from gpt2_lit.errors import MissingPackage
from gpt2_lit.store.storage import write_aside

NUM_NEIGHBOURS = 10
ROWS_AT_ONCE = 512  # of a table, compared with all others: 100 MB for GPT-2's tokens


def write_parquet(
    path: str | Path,
    tokens: Float[Tensor, "V D"],
    positions: Float[Tensor, "T D"],
    labels: Sequence[str],
    counts: Int64[np.ndarray, " V"] | None = None,
) -> None:
    """Write both tables as rows, the tokens first, atomically.

    Columns: kind (token or position), id, text, count (in the training text, if it is known), norm, neighbors (the ten
    rows of highest cosine in the same table, by row number, with 1 - cosine as distances), vector.

    Raises:
        ImportError: If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingPackage("a Parquet file needs pyarrow: pip install 'gpt2-lit[parquet]'.") from None
    sizes = {"token": len(tokens), "position": len(positions)}
    vectors = torch.cat([tokens, positions]).float().contiguous()
    known = [None] * len(tokens) if counts is None else counts.tolist()
    neighbors = [*nearest(tokens), *nearest(positions, first_row=len(tokens))]
    table = pa.table(
        {
            "kind": [kind for kind, size in sizes.items() for _ in range(size)],
            "id": [number for size in sizes.values() for number in range(size)],
            "text": [*labels, *(f"position {number}" for number in range(len(positions)))],
            "count": pa.array([*known, *[None] * len(positions)], pa.int64()),
            "norm": vector_norms(vectors).numpy(),
            "neighbors": neighbors,
            "vector": pa.FixedSizeListArray.from_arrays(vectors.flatten().numpy(), vectors.shape[1]),
        }
    )
    with write_aside(Path(path)) as file:
        pq.write_table(table, file)


def nearest(table: Float[Tensor, "N D"], first_row: int = 0) -> list[dict[str, Any]]:
    """For each row the others of highest cosine: their numbers, counted from ``first_row``, and 1 - cosine.

    Example:
        >>> nearest(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))[0]
        {'ids': [2, 1], 'distances': [0.0, 1.0]}
    """
    directions, found = F.normalize(table.float(), dim=-1), []
    for rows in torch.arange(len(table)).split(ROWS_AT_ONCE):
        cosines, others = most_similar(directions, rows, NUM_NEIGHBOURS)
        ids, distances = (others + first_row).tolist(), (1 - cosines).tolist()
        found += [{"ids": i, "distances": d} for i, d in zip(ids, distances, strict=True)]
    return found


def most_similar(
    directions: Float[Tensor, "N D"], rows: Int64[Tensor, " R"], num: int
) -> tuple[Float[Tensor, "R _"], Int64[Tensor, "R _"]]:
    """For each of some rows of length 1 the highest cosines, and the numbers of the other rows that have them."""
    similarity = directions[rows] @ directions.T
    similarity[torch.arange(len(rows)), rows] = -2.0  # below any other: a row is not its own neighbour
    best = similarity.topk(min(num, len(directions) - 1))
    return best.values, best.indices
