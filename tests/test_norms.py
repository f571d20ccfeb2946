import pytest
import torch

from gpt2_lit.norms import mean_norm


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
