import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2_lit import EmbeddingModule
from gpt2_lit.embedding.norms import band, embedding_norms, mean_norm, row_norms, vector_norms


@pytest.mark.parametrize(
    ("vectors", "mean"),
    [
        ([3.0, 4.0], 5.0),
        ([[3.0, 4.0], [0.0, 1.0]], 3.0),
        ([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [-6.0, 8.0]]], 4.0),
        ([[0.0, 0.0]], 0.0),
    ],
    ids=["one", "two", "a batch", "zero"],
)
def test_it_is_the_mean_of_the_lengths_of_the_vectors(vectors, mean):
    norm = mean_norm(torch.tensor(vectors))
    assert norm.shape == ()
    assert norm == mean


@pytest.mark.parametrize(("std", "expected"), [(0.02, 0.5543), (0.01, 0.2771)])
def test_normal_numbers_have_a_norm_of_their_deviation_times_the_root_of_their_count(std, expected):
    torch.manual_seed(1)
    assert mean_norm(std * torch.randn(200, 768)) == pytest.approx(expected, rel=0.01)


def test_it_is_not_the_norm_of_the_mean_nor_of_the_table():
    opposite = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
    assert mean_norm(opposite) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_short_numbers_are_added_up_in_long_ones(dtype):
    vectors = torch.full((3, 1000), 0.01, dtype=dtype)
    exact = vectors.double().square().sum(-1).sqrt()
    assert vector_norms(vectors).dtype == torch.float32
    assert torch.allclose(vector_norms(vectors).double(), exact, rtol=1e-5)
    assert vector_norms(vectors.double()).dtype == torch.float64


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_norms_of_rows_are_those_of_the_rows_that_are_named_in_their_order(ids):
    table = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, -2.0], [6.0, 8.0], [5.0, 12.0]])
    lengths = [0.0, 5.0, 1.0, 2.0, 10.0, 13.0]
    assert row_norms(table, torch.tensor(ids)).tolist() == [lengths[i] for i in ids]
    assert row_norms(table, torch.tensor([ids, ids[::-1]])).shape == (2, len(ids))


@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=50))
def test_a_band_is_the_mean_and_the_percentiles(norms):
    mean, p05, p95 = band(torch.tensor(norms))
    assert mean.item() == pytest.approx(np.mean(norms), rel=1e-4, abs=1e-6)
    assert [p05.item(), p95.item()] == pytest.approx(np.percentile(norms, [5, 95]).tolist(), rel=1e-4, abs=1e-6)


def test_a_band_of_float64_keeps_its_digits():
    values = band(1 + torch.arange(101, dtype=torch.float64) * 1e-12)
    assert [value.dtype for value in values] == 3 * [torch.float64]
    assert [round((value.item() - 1) * 1e12) for value in values] == [50, 5, 95]


@pytest.mark.parametrize("start", [0, 2])
def test_the_norms_of_an_embedding_are_those_of_both_parts_and_their_sum(start):
    embedding = EmbeddingModule(9, 4, 5, init="normal")
    input_ids = torch.tensor([[1, 8, 1], [0, 3, 2]])
    vectors = embedding(input_ids, start)
    norms = embedding_norms(embedding, input_ids, vectors, start)
    tokens, positions = (table.detach() for table in embedding.parameters())
    for b in range(2):
        for t in range(3):
            token, position = tokens[input_ids[b, t]], positions[start + t]
            assert norms["token"][b, t].item() == pytest.approx(token.square().sum().sqrt().item())
            assert norms["position"][t].item() == pytest.approx(position.square().sum().sqrt().item())
            assert norms["input"][b, t].item() == pytest.approx((token + position).square().sum().sqrt().item())
    assert not any(value.requires_grad for value in norms.values())
