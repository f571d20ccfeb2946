import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.throughput import measure_flops
from torch import nn
from torch.func import functional_call
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

import gpt2_lit.embedding.loss
from gpt2_lit import EmbeddingModule
from gpt2_lit.embedding.loss import summed_cross_entropy

IDS = torch.tensor([[1, 2, 3], [3, 2, 9]])


def small(**options) -> EmbeddingModule:
    return EmbeddingModule(**({"vocab_size": 10, "embed_dim": 4, "context_size": 5} | options))


def plain_loss(embedding: EmbeddingModule, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(embedding.logits(hidden).flatten(0, -2), target_ids.flatten())


def loss_and_gradients(loss, embedding, hidden, target_ids) -> list[torch.Tensor]:
    embedding.zero_grad()
    hidden = hidden.detach().requires_grad_()
    value = loss(hidden, target_ids)
    (3 * value).backward()
    assert embedding.position_embedding.weight.grad is None
    return [value.detach(), hidden.grad, embedding.token_embedding.weight.grad]


def test_a_logit_is_the_product_of_a_vector_with_a_tokens():
    embedding, hidden = small(init="normal"), torch.randn(2, 3, 4)
    logits = embedding.logits(hidden)
    assert logits.shape == (2, 3, 10)
    expected = sum(hidden[1, 2, d] * embedding.token_embedding.weight[7, d] for d in range(4))
    assert logits[1, 2, 7].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_of_equal_logits_is_that_of_guessing():
    embedding = small(pad_vocab_to_multiple_of=128)
    loss = embedding.next_token_loss(torch.zeros(2, 3, 4), IDS)
    assert loss.item() == pytest.approx(math.log(10))


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 300),
    st.sampled_from([1, 8]),
    st.sampled_from([1, 100, 2**22]),
)
@settings(deadline=None, max_examples=80)
def test_the_loss_and_its_gradients_are_the_plain_ones_however_the_tokens_are_cut(
    num_tokens, embed_dim, vocab_size, multiple, chunk_logits
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2_lit.embedding.loss, "CHUNK_LOGITS", chunk_logits)
        embedding = EmbeddingModule(vocab_size, embed_dim, 5, 0.0, "normal", multiple).double()
        hidden = torch.randn(num_tokens, embed_dim, dtype=torch.float64)
        target_ids = torch.randint(vocab_size, (num_tokens,))
        found = loss_and_gradients(embedding.next_token_loss, embedding, hidden, target_ids)
        expected = loss_and_gradients(partial(plain_loss, embedding), embedding, hidden, target_ids)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found[2][vocab_size:].count_nonzero() == 0


@pytest.mark.parametrize("target_ids", [IDS, torch.tensor([[-100, 2, 3], [3, -100, -100]])])
def test_gradients_of_the_loss_are_those_of_differences(target_ids):
    embedding = small(init="normal").double()
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def loss(hidden, table):
        weights = {"token_embedding.weight": table}
        return functional_call(
            Head(embedding), {f"embedding.{name}": w for name, w in weights.items()}, (hidden, target_ids)
        )

    torch.autograd.gradcheck(loss, (hidden, embedding.token_embedding.weight))


class Head(nn.Module):
    """Makes the loss what a module's forward gives."""

    def __init__(self, embedding: EmbeddingModule) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        return self.embedding.next_token_loss(hidden, target_ids)


def test_logits_of_any_size_have_a_finite_loss():
    embedding, hidden = small(init="normal"), 1e4 * torch.randn(2, 3, 4)
    for ours, theirs in zip(
        loss_and_gradients(embedding.next_token_loss, embedding, hidden, IDS),
        loss_and_gradients(partial(plain_loss, embedding), embedding, hidden, IDS),
        strict=True,
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


def test_a_token_that_is_looked_up_and_scored_gets_the_gradients_of_both():
    embedding = small(init="normal")
    gradients = []
    for loss in (embedding.next_token_loss, partial(plain_loss, embedding)):
        embedding.zero_grad()
        for _ in range(2):  # accumulated, as over two batches
            loss(embedding(IDS).tanh(), IDS).backward()
        gradients.append([table.grad for table in embedding.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_loss_can_be_gone_back_through_twice_and_has_no_second_derivative():
    embedding, hidden = small(), torch.randn(2, 3, 4, requires_grad=True)
    loss = embedding.next_token_loss(hidden, IDS)
    loss.backward(retain_graph=True)
    once = hidden.grad.clone()
    loss.backward()
    assert torch.equal(hidden.grad, 2 * once)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*F.cross_entropy\(embedding.logits"):
        torch.autograd.grad(embedding.next_token_loss(hidden, IDS), hidden, create_graph=True)


@pytest.mark.parametrize("frozen", ["table", "hidden"])
def test_what_is_frozen_gets_no_gradient(frozen):
    embedding, hidden = small(init="normal"), torch.randn(2, 3, 4)
    expected = loss_and_gradients(embedding.next_token_loss, embedding, hidden, IDS)
    embedding.zero_grad()
    embedding.token_embedding.requires_grad_(frozen != "table")
    hidden.requires_grad_(frozen != "hidden")
    (3 * embedding.next_token_loss(hidden, IDS)).backward()
    for gradient, name, theirs in (
        (hidden.grad, "hidden", expected[1]),
        (embedding.token_embedding.weight.grad, "table", expected[2]),
    ):
        assert (gradient is None) if name == frozen else torch.equal(gradient, theirs)


@pytest.mark.parametrize("frozen", [["table"], ["hidden"], ["table", "hidden"], []])
def test_a_gradient_that_nobody_asks_for_is_not_computed(frozen):
    embedding, hidden = small(), torch.randn(2, 3, 4)
    embedding.token_embedding.requires_grad_("table" not in frozen)
    hidden.requires_grad_("hidden" not in frozen)
    with FlopCounterMode(display=False) as counter:
        embedding.next_token_loss(hidden, IDS)
    products = counter.get_total_flops() / (2 * 6 * 4 * 10)  # each of 6 tokens, 4 numbers and 10 ids
    assert products == 3 - len(frozen)


def test_on_the_cpu_a_target_that_does_not_count_costs_nothing():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        small().next_token_loss(hidden, torch.tensor([[1, -100, -100], [-100, 3, -100]]))
    assert counter.get_total_flops() == 3 * 2 * 2 * 4 * 10


def test_flops_are_counted_on_the_meta_device_where_nothing_has_a_value():
    with torch.device("meta"):
        embedding, ids = small(), torch.randint(0, 10, (2, 3))
    by_logits = measure_flops(embedding, lambda: embedding(ids), lambda vectors: embedding.logits(vectors).sum())
    by_loss = measure_flops(embedding, lambda: embedding(ids), lambda vectors: embedding.next_token_loss(vectors, ids))
    assert by_logits == by_loss == 3 * 2 * 6 * 4 * 10  # forward, and the gradients of the vectors and of the table


def test_without_gradients_the_loss_is_the_same_and_keeps_nothing():
    embedding, hidden = small(), torch.randn(2, 3, 4)
    with torch.no_grad():
        loss = embedding.next_token_loss(hidden, IDS)
    assert torch.equal(loss, embedding.next_token_loss(hidden, IDS).detach())
    assert not loss.requires_grad


def test_the_loss_holds_the_logits_of_a_chunk_and_not_all_of_them():
    embedding = EmbeddingModule(vocab_size=20_000, embed_dim=256, context_size=4)
    hidden = torch.randn(4096, 256, requires_grad=True)
    target_ids = torch.randint(0, 20_000, (4096,))
    logits, table = 4 * 4096 * 20_000, 4 * 20_000 * 256
    for loss, least, most in (
        (partial(plain_loss, embedding), 2 * logits, 4 * logits),
        (embedding.next_token_loss, 2 * table, 5 * table),
    ):
        with profile(profile_memory=True) as profiled:
            loss(hidden, target_ids).backward()
        embedding.zero_grad()
        assert least < peak_of_memory(profiled) < most


def peak_of_memory(profiled: profile) -> int:
    """The most bytes that tensors held at one time beyond those from before."""
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("target_ids", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "target_ids must be int64 or int32, got torch.float32"),
        (IDS[:, :2], ValueError, r"target_ids must have the shape .* \(2, 3\), got \(2, 2\)"),
        (IDS[0], ValueError, r"target_ids must have the shape .* \(2, 3\), got \(3,\)"),
        (IDS - 100, IndexError, "target_ids must be from 0 to vocab_size - 1 = 9, got ids from -99 to -91"),
        (IDS + 1, IndexError, "target_ids must be from 0 to vocab_size - 1 = 9, got ids from 2 to 10"),
    ],
)
def test_targets_that_do_not_fit_are_an_error_with_the_limits(target_ids, error, message):
    with pytest.raises(error, match=message):
        small().next_token_loss(torch.randn(2, 3, 4), target_ids)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.sampled_from([1, 8]), st.sampled_from([1, 100, 2**22]))
@settings(deadline=None, max_examples=60)
def test_the_loss_is_the_mean_over_the_targets_that_are_kept(kept, multiple, chunk_logits):
    if not any(kept):
        kept[0] = True  # of none F.cross_entropy gives NaN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2_lit.embedding.loss, "CHUNK_LOGITS", chunk_logits)
        embedding = EmbeddingModule(11, 3, 5, 0.0, "normal", multiple).double()
        hidden = torch.randn(len(kept), 3, dtype=torch.float64)
        target_ids = torch.where(torch.tensor(kept), torch.randint(11, (len(kept),)), -100)
        expected = loss_and_gradients(partial(plain_loss, embedding), embedding, hidden, target_ids)
        found = loss_and_gradients(embedding.next_token_loss, embedding, hidden, target_ids)
        masked = loss_and_gradients(partial(as_on_a_gpu, embedding), embedding, hidden, target_ids)
    for ours, on_a_gpu, theirs in zip(found, masked, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(on_a_gpu, theirs)
    assert found[1][~torch.tensor(kept)].count_nonzero() == 0


def as_on_a_gpu(embedding: EmbeddingModule, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    """All rows are computed, and those that do not count are masked."""
    kept, table = target_ids != -100, embedding.token_embedding.weight
    summed = summed_cross_entropy(hidden, table, target_ids.clamp(min=0), kept, embedding.vocab_size)
    return summed / kept.sum()


@pytest.mark.parametrize("target_ids", [torch.full((2, 3), -100), torch.zeros(0, 3, dtype=torch.int64)])
def test_without_a_target_that_counts_the_loss_is_0_with_gradients_of_0(target_ids):
    embedding = small(init="normal")
    loss, *gradients = loss_and_gradients(
        embedding.next_token_loss, embedding, torch.randn(*target_ids.shape, 4), target_ids
    )
    assert loss == 0
    assert all(gradient.count_nonzero() == 0 and gradient.isfinite().all() for gradient in gradients)


def test_another_value_may_stand_for_what_does_not_count():
    embedding, hidden = small(init="normal"), torch.randn(2, 3, 4)
    ours = embedding.next_token_loss(hidden, torch.tensor([[1, 0, 3], [0, 2, 9]]), ignore_index=0)
    theirs = embedding.next_token_loss(hidden, torch.tensor([[1, -100, 3], [-100, 2, 9]]))
    assert torch.equal(ours, theirs)
    with pytest.raises(IndexError, match="got ids from -100 to 3"):
        embedding.next_token_loss(hidden[0], torch.tensor([1, -100, 3]), ignore_index=0)
