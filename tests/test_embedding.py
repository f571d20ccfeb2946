import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.profiler import profile

import gpt2_lit.embedding.embedding
from gpt2_lit import EmbeddingModule

IDS = torch.tensor([[1, 2, 3], [3, 2, 9]])


def small(**options) -> EmbeddingModule:
    return EmbeddingModule(**({"vocab_size": 10, "embed_dim": 4, "context_size": 5} | options))


def textbook(seed: int) -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(seed)
    return nn.Embedding(10, 4), nn.Embedding(5, 4)


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_a_vector_is_that_of_the_token_plus_that_of_its_place(rows):
    embedding = small()
    vectors = embedding(torch.tensor(rows))
    for b, row in enumerate(rows):
        for t, token_id in enumerate(row):
            expected = embedding.token_embedding.weight[token_id] + embedding.position_embedding.weight[t]
            assert torch.equal(vectors[b, t], expected)


def test_a_single_sequence_has_the_vectors_of_a_batch_of_one():
    embedding = small()
    assert embedding(IDS[0]).shape == (3, 4)
    assert torch.equal(embedding(IDS[0]), embedding(IDS)[0])


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_an_empty_batch_has_no_vectors(shape):
    assert small()(torch.empty(shape, dtype=torch.int64)).shape == (*shape, 4)


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_a_sequence_in_two_parts_has_the_vectors_of_the_whole(start):
    embedding = small()
    ids = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    assert torch.equal(embedding(ids[:, start:], start_position=start), embedding(ids)[:, start:])


def test_int32_ids_give_the_same_vectors():
    embedding = small()
    assert torch.equal(embedding(IDS.int()), embedding(IDS))


def test_the_tables_start_with_the_deviations_of_gpt2():
    torch.manual_seed(0)
    embedding = EmbeddingModule(vocab_size=5000, embed_dim=64, context_size=1000)
    for table, std in ((embedding.token_embedding.weight, 0.02), (embedding.position_embedding.weight, 0.01)):
        assert table.std().item() == pytest.approx(std, rel=0.02)
        assert abs(table.mean().item()) < std / 50


def test_normal_tables_are_those_of_two_pytorch_embeddings_made_in_this_order():
    tokens, positions = textbook(seed=123)
    torch.manual_seed(123)
    embedding = small(init="normal")
    first_row = torch.tensor([0.3374, -0.1778, -0.3035, -0.5880])
    assert torch.allclose(embedding.token_embedding.weight[0], first_row, atol=1e-4)
    assert torch.equal(embedding.token_embedding.weight, tokens.weight)
    assert torch.equal(embedding.position_embedding.weight, positions.weight)


def test_reset_parameters_fills_both_tables_anew():
    torch.manual_seed(7)
    embedding = small()
    before = copy.deepcopy(embedding.state_dict())
    embedding.reset_parameters()
    assert all(not torch.equal(table, before[name]) for name, table in embedding.state_dict().items())
    torch.manual_seed(7)
    embedding.reset_parameters()
    assert all(torch.equal(table, before[name]) for name, table in embedding.state_dict().items())


def test_the_tables_have_the_sizes_asked_for_and_nothing_else_is_learned():
    shapes = {name: tuple(table.shape) for name, table in small().named_parameters()}
    assert shapes == {"token_embedding.weight": (10, 4), "position_embedding.weight": (5, 4)}


def test_gpt2_small_has_the_sizes_of_gpt2_small():
    with torch.device("meta"):
        embedding = EmbeddingModule()
    assert embedding.token_embedding.weight.shape == (50257, 768)
    assert embedding.position_embedding.weight.shape == (1024, 768)


@pytest.mark.parametrize("start", [0, 2])
def test_gradients_are_those_of_the_textbooks_two_embeddings(start):
    tokens, positions = textbook(seed=1)
    torch.manual_seed(1)
    embedding = small(init="normal")
    weights = torch.randn(2, 3, 4)
    (embedding(IDS, start) * weights).sum().backward()
    ((tokens(IDS) + positions(torch.arange(start, start + 3))) * weights).sum().backward()
    assert torch.allclose(embedding.token_embedding.weight.grad, tokens.weight.grad)
    assert torch.allclose(embedding.position_embedding.weight.grad, positions.weight.grad)
    assert embedding.token_embedding.weight.grad[0].count_nonzero() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"embed_dim": -1}, "embed_dim must be at least 1, got -1"),
        ({"context_size": 0}, "context_size must be at least 1, got 0"),
        ({"pad_vocab_to_multiple_of": 0}, "pad_vocab_to_multiple_of must be at least 1, got 0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_a_setting_out_of_its_range_is_an_error_with_the_limits(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize(
    ("ids", "start", "error", "message"),
    [
        (torch.ones(2, 3), 0, TypeError, r"must be int64 or int32, got torch.float32.*\.long\(\)"),
        (torch.ones(2, 3, dtype=torch.int16), 0, TypeError, "must be int64 or int32, got torch.int16"),
        (torch.ones(2, 3, dtype=torch.bool), 0, TypeError, "must be int64 or int32, got torch.bool"),
        (IDS[None], 0, ValueError, r"must have shape \(B, T\) or \(T,\), got \(1, 2, 3\)"),
        (torch.zeros(1, 6).long(), 0, ValueError, "context_size = 5 tokens, got 6 from position 0 on"),
        (torch.zeros(6).long(), 0, ValueError, "context_size = 5 tokens, got 6 from position 0 on"),
        (IDS, 3, ValueError, "context_size = 5 tokens, got 3 from position 3 on"),
        (IDS, -1, ValueError, "start_position must be at least 0, got -1"),
        (IDS + 1, 0, IndexError, "from 0 to vocab_size - 1 = 9, got ids from 2 to 10"),
        (IDS - 2, 0, IndexError, "from 0 to vocab_size - 1 = 9, got ids from -1 to 7"),
    ],
)
def test_ids_that_do_not_fit_are_an_error_with_the_limits(ids, start, error, message):
    with pytest.raises(error, match=message):
        small()(ids, start)


@pytest.mark.parametrize("shape", ["of the batch", "of one window"])
def test_documents_packed_into_one_window_start_at_their_first_place_again(shape):
    embedding = small()
    first, second = torch.tensor([1, 2, 3]), torch.tensor([4, 5])
    window, places = torch.cat([first, second]), torch.tensor([0, 1, 2, 0, 1])
    if shape == "of the batch":
        vectors = embedding(window.expand(2, 5), position_ids=places.expand(2, 5))[1]
    else:
        vectors = embedding(window, position_ids=places)
        assert torch.equal(embedding(window.expand(2, 5), position_ids=places)[1], vectors)
    assert torch.equal(vectors, torch.cat([embedding(first), embedding(second)]))


def test_every_sequence_of_a_batch_can_have_its_own_places():
    embedding = small()
    places = torch.tensor([[0, 1, 2], [4, 4, 0]])
    for b in range(2):
        assert torch.equal(embedding(IDS, position_ids=places)[b], embedding(IDS[b], position_ids=places[b]))
    expected = embedding.token_embedding.weight[9] + embedding.position_embedding.weight[0]
    assert torch.equal(embedding(IDS, position_ids=places)[1, 2], expected)


def test_a_window_of_many_documents_may_be_longer_than_the_context():
    embedding = small()
    window = embedding(torch.tensor([7] * 12), position_ids=torch.arange(12) % 3)
    assert torch.equal(window, embedding(torch.tensor([7, 7, 7])).repeat(4, 1))


def test_places_that_follow_each_other_give_what_start_position_gives_with_gradients():
    embedding, weights = small(init="normal"), torch.randn(2, 3, 4)
    gradients = []
    for options in ({"start_position": 2}, {"position_ids": torch.tensor([2, 3, 4])}):
        embedding.zero_grad()
        (embedding(IDS, **options) * weights).sum().backward()
        gradients.append([table.grad for table in embedding.parameters()])
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("places", "start", "error", "message"),
    [
        (
            [0, 1, 5],
            0,
            IndexError,
            "position_ids must be from 0 to context_size - 1 = 4, got ids from 0 to 5. Make the",
        ),
        ([0, -1, 2], 0, IndexError, "position_ids must be from 0 to context_size - 1 = 4, got ids from -1 to 2"),
        ([0, 1, 2], 1, ValueError, "start_position or position_ids, not both, got start_position 1"),
        ([0, 1], 0, ValueError, r"shape of input_ids, \(2, 3\), or \(3,\), got \(2,\)"),
        ([[0, 1, 2]], 0, ValueError, r"shape of input_ids, \(2, 3\), or \(3,\), got \(1, 3\)"),
        ([0.0, 1.0, 2.0], 0, TypeError, r"position_ids must be int64 or int32, got torch.float32.*\.long\(\)"),
    ],
)
def test_places_that_do_not_fit_are_an_error_with_the_limits(places, start, error, message):
    embedding = small(pad_vocab_to_multiple_of=1 if start else 8)
    with pytest.raises(error, match=message):
        embedding(IDS, start, torch.tensor(places))


@pytest.mark.parametrize(("multiple", "rows"), [(1, 10), (5, 10), (8, 16), (128, 128)])
def test_a_padded_table_has_a_multiple_of_rows_and_only_the_ids_of_tokens(multiple, rows):
    torch.manual_seed(0)
    plain = small()
    padded = small(pad_vocab_to_multiple_of=multiple)
    assert padded.token_embedding.weight.shape == (rows, 4)
    assert padded.vocab_size == 10
    with torch.no_grad():
        padded.token_embedding.weight[:10] = plain.token_embedding.weight
        padded.position_embedding.weight.copy_(plain.position_embedding.weight)
    assert torch.equal(padded(IDS), plain(IDS))
    torch.testing.assert_close(padded.logits(padded(IDS)), plain.logits(plain(IDS)))
    with pytest.raises(IndexError, match="from 0 to vocab_size - 1 = 9, got ids from 2 to 10"):
        padded(IDS + 1)
    with pytest.raises(IndexError, match="target_ids must be from 0 to vocab_size - 1 = 9, got ids from 2 to 10"):
        padded.next_token_loss(padded(IDS), IDS + 1)


def plain_loss(embedding: EmbeddingModule, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(embedding.logits(hidden).flatten(0, -2), target_ids.flatten())


def loss_and_gradients(loss, embedding, hidden, target_ids) -> list[torch.Tensor]:
    embedding.zero_grad()
    hidden = hidden.detach().requires_grad_()
    value = loss(hidden, target_ids)
    (3 * value).backward()
    assert embedding.position_embedding.weight.grad is None
    return [value.detach(), hidden.grad, embedding.token_embedding.weight.grad]


def test_a_score_is_the_product_of_a_vector_with_a_tokens():
    embedding, hidden = small(init="normal"), torch.randn(2, 3, 4)
    scores = embedding.logits(hidden)
    assert scores.shape == (2, 3, 10)
    expected = sum(hidden[1, 2, d] * embedding.token_embedding.weight[7, d] for d in range(4))
    assert scores[1, 2, 7].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_of_equal_scores_is_that_of_guessing():
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
    num_tokens, embed_dim, vocab_size, multiple, chunk_scores
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2_lit.embedding.embedding, "CHUNK_SCORES", chunk_scores)
        embedding = EmbeddingModule(vocab_size, embed_dim, 5, 0.0, "normal", multiple).double()
        hidden = torch.randn(num_tokens, embed_dim, dtype=torch.float64)
        target_ids = torch.randint(vocab_size, (num_tokens,))
        found = loss_and_gradients(embedding.next_token_loss, embedding, hidden, target_ids)
        expected = loss_and_gradients(partial(plain_loss, embedding), embedding, hidden, target_ids)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found[2][vocab_size:].count_nonzero() == 0


def test_gradients_of_the_loss_are_those_of_differences():
    embedding = small(init="normal").double()
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def loss(hidden, table):
        weights = {"token_embedding.weight": table}
        return functional_call(Head(embedding), {f"embedding.{name}": w for name, w in weights.items()}, (hidden, IDS))

    torch.autograd.gradcheck(loss, (hidden, embedding.token_embedding.weight))


class Head(nn.Module):
    """Makes the loss what a module's forward gives."""

    def __init__(self, embedding: EmbeddingModule) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        return self.embedding.next_token_loss(hidden, target_ids)


def test_scores_of_any_size_have_a_finite_loss():
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


def test_without_gradients_the_loss_is_the_same_and_keeps_nothing():
    embedding, hidden = small(), torch.randn(2, 3, 4)
    with torch.no_grad():
        loss = embedding.next_token_loss(hidden, IDS)
    assert torch.equal(loss, embedding.next_token_loss(hidden, IDS).detach())
    assert not loss.requires_grad


def test_the_loss_holds_the_scores_of_a_chunk_and_not_all_of_them():
    embedding = EmbeddingModule(vocab_size=20_000, embed_dim=256, context_size=4)
    hidden = torch.randn(4096, 256, requires_grad=True)
    target_ids = torch.randint(0, 20_000, (4096,))
    scores, table = 4 * 4096 * 20_000, 4 * 20_000 * 256
    for loss, least, most in (
        (partial(plain_loss, embedding), 2 * scores, 4 * scores),
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


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    plain = small(init="normal")
    embedding = small(init="normal", dropout=0.5)
    embedding.load_state_dict(plain.state_dict())
    many = IDS.repeat(100, 1)
    dropped = embedding.train()(many)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(dropped[kept], 2 * plain(many)[kept])
    assert torch.equal(embedding.eval()(many), plain(many))


def test_a_copy_has_its_own_tables():
    embedding = small()
    twin = copy.deepcopy(embedding)
    assert torch.equal(twin(IDS), embedding(IDS))
    with torch.no_grad():
        twin.token_embedding.weight.add_(1)
    assert torch.allclose(twin(IDS), embedding(IDS) + 1)


def test_saved_tables_load_into_another_module(tmp_path):
    embedding, other = small(), small()
    torch.save(embedding.state_dict(), tmp_path / "tables.pt")
    assert not torch.equal(other(IDS), embedding(IDS))
    other.load_state_dict(torch.load(tmp_path / "tables.pt", weights_only=True))
    assert torch.equal(other(IDS), embedding(IDS))


def test_it_trains_under_bfloat16_autocast():
    embedding = small(init="normal", dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = embedding(IDS)
        (vectors @ embedding.token_embedding.weight.T).float().sum().backward()
    assert vectors.dtype == torch.float32
    assert all(table.grad.isfinite().all() and table.grad.any() for table in embedding.parameters())


def test_bfloat16_tables_give_bfloat16_vectors():
    embedding = small().bfloat16()
    expected = embedding.token_embedding.weight[IDS] + embedding.position_embedding.weight[:3]
    assert embedding(IDS).dtype == torch.bfloat16
    assert torch.equal(embedding(IDS), expected)


@pytest.mark.parametrize("num_masks", [0, 1])
def test_a_forward_pass_allocates_its_output_and_the_mask_of_dropout_and_no_more(num_masks):
    embedding = EmbeddingModule(vocab_size=100, embed_dim=64, context_size=256, dropout=0.1 * num_masks)
    ids = torch.randint(0, 100, (16, 256))
    with torch.no_grad(), profile(profile_memory=True) as profiled:
        output = embedding(ids)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profiled.events())
    expected = (1 + num_masks) * output.numel() * 4
    assert expected <= allocated <= expected + 65_536


def test_the_gradient_keeps_the_ids_and_no_vectors():
    embedding = small()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        embedding(IDS)
    assert [tuple(tensor.shape) for tensor in kept] == [(2, 3)]
    assert kept[0].dtype == torch.int64
