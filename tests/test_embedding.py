import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import profile

from gpt2_lit import EmbeddingModule
from gpt2_lit.embedding.embedding import _check_settings

IDS = torch.tensor([[1, 2, 3], [3, 2, 9]])


def small(**options) -> EmbeddingModule:
    return EmbeddingModule(**({"vocab_size": 10, "embed_dim": 4, "context_size": 5} | options))


def textbook(seed: int) -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(seed)
    return nn.Embedding(10, 4), nn.Embedding(5, 4)


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_a_vector_is_that_of_the_token_plus_that_of_its_position(rows):
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
def test_documents_packed_into_one_window_start_at_their_first_position_again(shape):
    embedding = small()
    first, second = torch.tensor([1, 2, 3]), torch.tensor([4, 5])
    window, positions = torch.cat([first, second]), torch.tensor([0, 1, 2, 0, 1])
    if shape == "of the batch":
        vectors = embedding(window.expand(2, 5), position_ids=positions.expand(2, 5))[1]
    else:
        vectors = embedding(window, position_ids=positions)
        assert torch.equal(embedding(window.expand(2, 5), position_ids=positions)[1], vectors)
    assert torch.equal(vectors, torch.cat([embedding(first), embedding(second)]))


def test_every_sequence_of_a_batch_can_have_its_own_positions():
    embedding = small()
    positions = torch.tensor([[0, 1, 2], [4, 4, 0]])
    for b in range(2):
        assert torch.equal(embedding(IDS, position_ids=positions)[b], embedding(IDS[b], position_ids=positions[b]))
    expected = embedding.token_embedding.weight[9] + embedding.position_embedding.weight[0]
    assert torch.equal(embedding(IDS, position_ids=positions)[1, 2], expected)


def test_a_window_of_many_documents_may_be_longer_than_the_context():
    embedding = small()
    window = embedding(torch.tensor([7] * 12), position_ids=torch.arange(12) % 3)
    assert torch.equal(window, embedding(torch.tensor([7, 7, 7])).repeat(4, 1))


def test_positions_that_follow_each_other_give_what_start_position_gives_with_gradients():
    embedding, weights = small(init="normal"), torch.randn(2, 3, 4)
    gradients = []
    for options in ({"start_position": 2}, {"position_ids": torch.tensor([2, 3, 4])}):
        embedding.zero_grad()
        (embedding(IDS, **options) * weights).sum().backward()
        gradients.append([table.grad for table in embedding.parameters()])
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("positions", "start", "error", "message"),
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
def test_positions_that_do_not_fit_are_an_error_with_the_limits(positions, start, error, message):
    embedding = small(pad_vocab_to_multiple_of=1 if start else 8)
    with pytest.raises(error, match=message):
        embedding(IDS, start, torch.tensor(positions))


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


@pytest.mark.parametrize("token", ["tok_emb.weight", "token_emb.weight", "wte.weight", "token_embedding_table.weight"])
@pytest.mark.parametrize("position", ["pos_emb.weight", "position_emb.weight", "wpe.weight"])
@pytest.mark.parametrize("within_a_model", [False, True])
def test_tables_load_by_the_names_that_others_give_them(token, position, within_a_model):
    embedding, other = small(), small()
    prefix = "1." if within_a_model else ""
    tables = [parameter.detach().clone() for parameter in embedding.parameters()]
    state = {f"{prefix}{token}": tables[0], f"{prefix}{position}": tables[1]}
    model = nn.Sequential(nn.Identity(), other) if within_a_model else other
    model.load_state_dict(state)
    assert torch.equal(other(IDS), embedding(IDS))
    assert list(state) == [f"{prefix}{token}", f"{prefix}{position}"], "what was given stays"


def test_names_that_are_no_tables_stay_unexpected():
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"tok_emb.weight"'):
        small().load_state_dict({**small().state_dict(), "tok_emb.weight": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        small().load_state_dict({"tok_emb.weight": torch.ones(1)})
    mine = copy.deepcopy(small())
    mine.load_state_dict({"wte.weight": mine.token_embedding.weight, "wpe.weight": mine.position_embedding.weight})


def test_on_the_meta_device_ids_without_values_give_shapes():
    with torch.device("meta"):
        embedding, ids = small(pad_vocab_to_multiple_of=8), torch.randint(0, 10, (2, 3))
    assert embedding(ids).shape == (2, 3, 4)
    assert embedding(ids, position_ids=torch.arange(3, device="meta")).shape == (2, 3, 4)


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


def test_an_unknown_init_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"init must be one of gpt2, normal, got 'gpt3'\. Set model\.init\."):
        _check_settings(10, 4, 5, 0.0, "gpt3", 1)
