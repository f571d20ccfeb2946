from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gpt2_lit.monitor.atlas
from gpt2_lit.monitor.atlas import nearest, write_parquet

parquet = pytest.importorskip("pyarrow.parquet")


def test_neighbours_are_those_of_a_slow_comparison_whatever_is_compared_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(gpt2_lit.monitor.atlas, "ROWS_AT_ONCE", 7)
    for row, found in enumerate(nearest(table, first_row=100)):
        cosines = F.cosine_similarity(table[row], table, dim=1).tolist()
        others = sorted((1 - cosine, other) for other, cosine in enumerate(cosines) if other != row)[:10]
        assert found["ids"] == [100 + other for _, other in others]
        assert found["distances"] == pytest.approx([distance for distance, _ in others], abs=1e-5)


def test_a_file_has_a_row_for_each_token_and_position_with_neighbours_in_its_own_table(tmp_path: Path) -> None:
    tokens, positions = torch.tensor([[3.0, 4.0], [1.0, 0.0], [6.0, 8.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    write_parquet(tmp_path / "a.parquet", tokens, positions, ["a", "b", "c"], np.array([5, 0, 1]))
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [(row["kind"], row["id"], row["text"], row["count"]) for row in rows] == [
        ("token", 0, "a", 5),
        ("token", 1, "b", 0),
        ("token", 2, "c", 1),
        ("position", 0, "position 0", None),
        ("position", 1, "position 1", None),
    ]
    assert [row["norm"] for row in rows] == [5.0, 1.0, 10.0, 2.0, 1.0]
    assert [row["vector"] for row in rows] == [*tokens.tolist(), *positions.tolist()]
    assert [row["neighbors"]["ids"] for row in rows] == [[2, 1], [0, 2], [0, 1], [4], [3]]
    assert rows[0]["neighbors"]["distances"] == pytest.approx([0.0, 0.4], abs=1e-6)


def test_counts_that_are_not_known_are_left_empty(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", torch.eye(2), torch.eye(2), ["a", "b"])
    assert parquet.read_table(tmp_path / "a.parquet")["count"].to_pylist() == 4 * [None]
