"""The examples do what their pages say: GPT-2's blocks, learned by heart in three ways, and text out of them again."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT, logged
from lightning.pytorch import Trainer
from torch import Tensor, nn

from examples.gpt import GPT, Block, Blocks, CausalSelfAttention, cu_seqlens, document_mask, next_token_loss
from examples.own_module import LitGPT
from examples.plain_loop import train
from examples.sample import continue_text, generate, main
from examples.textbook_gpt import GPT_CONFIG_124M, GPTModel, load_textbook_weights
from gpt2_lit import EmbeddingModule, EmbeddingStub, GPTDataModule, tokenize

TALE = PROJECT / "gpt2_lit" / "assets" / "tale.txt"
PETER_RABBIT = PROJECT.parent / "shared" / "data" / "Peter_Rabbit.txt"
V, D, T, H, LAYERS = 11, 8, 6, 2, 3

needs_peter_rabbit = pytest.mark.skipif(not PETER_RABBIT.exists(), reason="needs Peter Rabbit beside the project")


def small_gpt(dropout: float = 0.0) -> GPT:
    torch.manual_seed(1)
    return GPT(EmbeddingModule(V, D, T), Blocks(D, LAYERS, H, dropout))


def by_loops(attention: CausalSelfAttention, vectors: Tensor) -> Tensor:
    """What attention is, head by head and place by place."""
    query, key, value = attention.query_key_value(vectors).chunk(3, dim=-1)
    gathered = torch.zeros_like(vectors)
    for b in range(len(vectors)):
        for head in torch.arange(D).split(D // H):
            for t in range(vectors.shape[1]):
                scores = torch.stack([query[b, t, head] @ key[b, s, head] for s in range(t + 1)]) / math.sqrt(D // H)
                weights = scores.exp() / scores.exp().sum()
                gathered[b, t, head] = sum(weights[s] * value[b, s, head] for s in range(t + 1))
    return attention.output(gathered)


def test_attention_is_a_weighted_mean_of_the_values_so_far() -> None:
    torch.manual_seed(1)
    attention = CausalSelfAttention(D, H, dropout=0.0)
    vectors = torch.randn(2, 5, D)
    torch.testing.assert_close(attention(vectors), by_loops(attention, vectors))


def test_no_place_sees_what_comes_after_it() -> None:
    gpt = small_gpt()
    input_ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    scores = gpt(input_ids)
    for t in range(T):
        changed = input_ids.clone()
        changed[0, t] = 2
        same = (gpt(changed) == scores).all(dim=-1)[0].tolist()
        assert same == [place < t for place in range(T)]


def test_no_document_sees_another_one_of_its_window() -> None:
    gpt = small_gpt()
    input_ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    document_ids = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    position_ids = torch.tensor([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]])
    logits = gpt(input_ids, position_ids, document_ids)
    for document in range(3):
        changed = input_ids.clone()
        changed[0, document_ids[0] == document] = 7
        same = (gpt(changed, position_ids, document_ids) == logits).all(dim=-1)
        assert torch.equal(same[0], document_ids[0] != document)
        assert same[1].all()
    moved = (gpt(changed, position_ids) != gpt(input_ids, position_ids)).any(dim=-1)
    assert moved[0].tolist() == [False] * 5 + [True]
    changed[0, 0] = 7
    assert (gpt(changed, position_ids) != gpt(input_ids, position_ids)).any(dim=-1)[0].all(), "without document_ids"
    for number, document in enumerate(([3, 1], [4, 1, 5], [9])):
        torch.testing.assert_close(logits[0, document_ids[0] == number], gpt(torch.tensor([document]))[0])


def test_documents_as_lengths_are_those_of_the_mask() -> None:
    document_ids = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    borders = cu_seqlens(document_ids).tolist()
    assert borders == [0, 2, 5, 6, 9, 12, 18]
    mask = torch.zeros(18, 18, dtype=torch.bool)
    for start, stop in pairwise(borders):
        mask[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
    assert torch.equal(torch.block_diag(*document_mask(document_ids)[:, 0]).bool(), mask)


def test_the_blocks_are_those_of_gpt2() -> None:
    """The reference is Hugging Face's GPT2Model, given the same weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=LAYERS, n_head=H)
    theirs = transformers.GPT2Model(config).eval()
    ours = small_gpt().eval()
    names = {
        "attention_norm": "ln_1",
        "attention.query_key_value": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.expand": "mlp.c_fc",
        "mlp.output": "mlp.c_proj",
    }
    state = {
        "wte.weight": ours.embedding.token_embedding.weight,
        "wpe.weight": ours.embedding.position_embedding.weight,
        "ln_f.weight": ours.blocks.norm.weight,
        "ln_f.bias": ours.blocks.norm.bias,
    }
    for name, parameter in ours.blocks.blocks.named_parameters():
        torch.nn.init.normal_(parameter)  # norms and biases too: they begin as ones and zeros, which hide mistakes
        number, _, rest = name.partition(".")
        layer, _, kind = rest.rpartition(".")
        # Their matrices are the other way round.
        state[f"h.{number}.{names[layer]}.{kind}"] = parameter.T if parameter.ndim == 2 else parameter
    theirs.load_state_dict({name: tensor.detach() for name, tensor in state.items()})
    input_ids = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    hidden = ours.blocks(ours.embedding(input_ids))
    torch.testing.assert_close(hidden, theirs(input_ids).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_the_matrices_begin_as_small_as_gpt2s_and_smaller_where_a_branch_ends() -> None:
    torch.manual_seed(1)
    blocks = Blocks(embed_dim=64, num_layers=8, num_heads=4)
    ends = [layer for block in blocks.blocks for layer in (block.attention.output, block.mlp.output)]
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            expected = 0.02 / math.sqrt(16) if any(module is end for end in ends) else 0.02
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()


def test_what_a_block_is_given_runs_through_it_untouched() -> None:
    blocks = small_gpt().blocks
    for block in blocks.blocks:
        nn.init.zeros_(block.attention.output.weight)
        nn.init.zeros_(block.mlp.output.weight)
    vectors = torch.randn(2, T, D)
    assert torch.equal(blocks.blocks(vectors), vectors)
    assert torch.equal(blocks(vectors), F.layer_norm(vectors, [D]))


def test_dropout_works_in_training_alone() -> None:
    blocks = small_gpt(dropout=0.5).blocks
    vectors = torch.randn(2, T, D)
    assert not torch.equal(blocks(vectors), blocks(vectors))
    blocks.eval()
    assert torch.equal(blocks(vectors), blocks(vectors))
    attention = CausalSelfAttention(D, H, dropout=0.5)
    assert not torch.equal(attention(vectors), attention(vectors))
    assert torch.equal(attention.eval()(vectors), attention(vectors))


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="embed_dim must be a multiple of num_heads = 3, got 8"):
        Blocks(embed_dim=8, num_layers=1, num_heads=3)
    with pytest.raises(ValueError, match="made for vectors of embed_dim = 8 numbers, got 4"):
        small_gpt().blocks(torch.zeros(1, 2, 4))


def test_a_gpt_scores_every_token_by_its_row_of_the_table() -> None:
    gpt = small_gpt()
    input_ids = torch.tensor([[3, 1, 4]])
    hidden, table = gpt.blocks(gpt.embedding(input_ids)), gpt.embedding.token_embedding.weight
    for v in range(V):
        torch.testing.assert_close(gpt(input_ids)[0, :, v], hidden[0] @ table[v])


class TextbookGPT(nn.Module):
    """The same model as the textbooks begin it: two embeddings, their sum, and dropout."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        blocks = [Block(cfg["emb_dim"], cfg["n_heads"], cfg["drop_rate"]) for _ in range(cfg["n_layers"])]
        self.trf_blocks = nn.Sequential(*blocks)
        self.final_norm = nn.LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx: Tensor) -> Tensor:
        vectors = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(torch.arange(in_idx.shape[1])))
        return self.out_head(self.final_norm(self.trf_blocks(vectors)))


SIZES = GPT_CONFIG_124M | {"vocab_size": V, "context_length": T, "emb_dim": D, "n_heads": H, "n_layers": LAYERS}


@pytest.mark.parametrize("training", [True, False])
def test_a_gpt_as_in_the_textbooks_has_the_same_logits_and_gradients_with_the_embedding_module(training: bool) -> None:
    logits, gradients = [], []
    for model_class in (TextbookGPT, GPTModel):
        torch.manual_seed(123)
        model = model_class(SIZES).train(training)
        logits.append(model(torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])))
        logits[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert torch.equal(*logits)
    assert all(torch.allclose(*pair) for pair in zip(*gradients, strict=True))


def test_a_gpt_with_the_embedding_module_loads_the_weights_of_the_textbooks_one() -> None:
    theirs, ours = TextbookGPT(SIZES).eval(), GPTModel(SIZES).eval()
    load_textbook_weights(ours, theirs.state_dict())
    input_ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(ours(input_ids), theirs(input_ids))
    weights = theirs.state_dict()
    del weights["out_head.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"out_head.weight"'):
        load_textbook_weights(ours, weights)


def test_the_loss_of_even_scores_is_that_of_guessing() -> None:
    assert next_token_loss(torch.zeros(2, 3, V), torch.ones(2, 3, dtype=torch.int64)).item() == pytest.approx(
        math.log(V)
    )


class FixedScores(nn.Module):
    """The same scores at each place, and a note of what was asked."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)
        self.asked: list[list[int]] = []

    def forward(self, input_ids: Tensor) -> Tensor:
        assert not self.training
        self.asked.append(input_ids[0].tolist())
        return self.scores.expand(*input_ids.shape, -1)


def test_the_model_is_shown_the_last_context_size_tokens() -> None:
    model = FixedScores([0.0, 2.0, 1.0])
    assert generate(model, torch.tensor([[0, 0, 2]]), 3, context_size=3, temperature=0.0).tolist() == [
        [0, 0, 2, 1, 1, 1]
    ]
    assert model.asked == [[0, 0, 2], [0, 2, 1], [2, 1, 1]]
    assert model.training


def test_generating_greedily_appends_the_likeliest_token_to_each_sequence() -> None:
    gpt = small_gpt().eval()
    input_ids = torch.tensor([[3, 1], [4, 1]])
    expected = input_ids
    for _ in range(8):
        likeliest = [max(range(V), key=gpt(row[None, -T:])[0, -1].tolist().__getitem__) for row in expected]
        expected = torch.cat([expected, torch.tensor(likeliest)[:, None]], dim=1)
    assert torch.equal(generate(gpt, input_ids, 8, T, temperature=0.0), expected)
    assert torch.equal(generate(gpt, input_ids, 8, T, top_k=1), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "kept"), [(None, [0, 1, 2]), (2, [0, 2]), (99, [0, 1, 2])])
def test_tokens_are_drawn_by_the_softmax_of_the_scores_that_are_left(
    temperature: float, top_k: int | None, kept: list[int]
) -> None:
    scores = [1.0, 0.2, 2.0]
    torch.manual_seed(1)
    starts = torch.zeros(20_000, 1, dtype=torch.int64)
    drawn = generate(FixedScores(scores), starts, 1, 3, temperature, top_k)[:, 1]
    weights = [math.exp(score / temperature) if token in kept else 0.0 for token, score in enumerate(scores)]
    expected = [weight / sum(weights) for weight in weights]
    assert (drawn.bincount(minlength=3) / len(drawn)).tolist() == pytest.approx(expected, abs=0.015)


def test_a_sample_that_cannot_be_drawn_is_refused() -> None:
    model, start = FixedScores([0.0]), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one token to begin with"):
        generate(model, start[:, :0], 1, 3)
    with pytest.raises(ValueError, match=r"temperature must be at least 0, got -1\.0"):
        generate(model, start, 1, 3, temperature=-1.0)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        generate(model, start, 1, 3, top_k=0)


@pytest.fixture
def source() -> Path:
    return TALE


@pytest.fixture
def beginning(source: Path, tmp_path: Path) -> GPTDataModule:
    """The first words of a text, about 350, in overlapping windows."""
    path = tmp_path / "beginning.txt"
    path.write_text(source.read_text()[:1472])
    return GPTDataModule(path, tokenizer="words", context_size=64, stride=16, batch_size=2, val_fraction=0.0)


@pytest.mark.parametrize("source", [TALE, pytest.param(PETER_RABBIT, marks=needs_peter_rabbit)], ids=lambda p: p.stem)
def test_a_plain_loop_learns_a_text_by_heart(beginning: GPTDataModule) -> None:
    torch.manual_seed(1)
    gpt = GPT(EmbeddingModule(beginning.vocab_size, 64, 64), Blocks(64, num_layers=2, num_heads=4))
    losses = list(train(gpt, beginning, num_epochs=30))
    assert losses[0] > 4
    assert losses[-1] < 0.5
    assert_tells(gpt, beginning, num_words=60)


def test_a_module_of_ones_own_learns_a_text_by_heart(beginning: GPTDataModule, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = LitGPT(beginning.vocab_size, 64, embed_dim=64, num_layers=2, warmup_steps=10)
    trainer = quiet_trainer(tmp_path, max_epochs=30)
    trainer.fit(model, beginning)
    assert trainer.callback_metrics["train/loss"] < 0.5
    assert_tells(model, beginning, num_words=60)

    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = LitGPT.load_from_checkpoint(tmp_path / "own.ckpt")
    input_ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(loaded.eval()(input_ids), model.eval()(input_ids))


def test_a_module_of_ones_own_warms_up_and_validates(beginning: GPTDataModule, tmp_path: Path) -> None:
    beginning.val_fraction = 0.3
    model = LitGPT(beginning.vocab_size, 64, embed_dim=8, num_layers=1, learning_rate=0.1, warmup_steps=4)
    rates = []
    model.on_train_batch_start = lambda *_: rates.append(model.optimizers().param_groups[0]["lr"])  # type: ignore
    trainer = quiet_trainer(tmp_path, max_steps=6)
    trainer.fit(model, beginning)
    [validated] = trainer.validate(model, beginning, verbose=False)
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    beginning.trainer = None
    losses = [next_token_loss(model(x), y).item() * len(x) for x, y in beginning.val_dataloader()]
    assert validated["val/loss"] == pytest.approx(sum(losses) / len(beginning.val_dataset))


def quiet_trainer(folder: Path, **options: int) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def assert_tells(model: nn.Module, data: GPTDataModule, num_words: int) -> None:
    words = tokenize(Path(*data.source.names).read_text())
    told = continue_text(model, data, " ".join(words[:3]), num_words - 3, temperature=0.0)
    assert told.split() == words[:num_words]


def sample(*args: str) -> str:
    """What ``python -m examples.sample`` prints in the folder of the project."""
    env = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-m", "examples.sample", *args]
    return subprocess.run(command, cwd=PROJECT, env=env, check=True, capture_output=True, text=True).stdout


def test_the_config_alone_puts_the_blocks_into_the_stub_and_the_checkpoint_tells_the_text(
    program: Callable[..., tuple[int, str]],
    beginning: GPTDataModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, printed = program(
        "fit",
        f"--config={PROJECT / 'configs' / 'gpt.yaml'}",
        f"--data.source={beginning.source}",
        "--data.tokenizer=words",
        "--data.context_size=64",
        "--data.stride=16",
        "--data.batch_size=2",
        "--model.embed_dim=64",
        "--model.backbone.embed_dim=64",
        "--model.backbone.num_layers=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.accelerator=cpu",
        PYTHONPATH="",
    )
    assert status == 0, printed
    assert logged(tmp_path / "logs/version_0")["train/loss"][-1][1] < 0.5
    last = tmp_path / "logs/version_0/checkpoints/last.ckpt"
    model = EmbeddingStub.load_from_checkpoint(last)
    assert isinstance(model.backbone, Blocks)
    assert_tells(model, beginning, num_words=60)

    words = tokenize(Path(*beginning.source.names).read_text())
    told = sample("The Rain Book", f"--checkpoint={last}", "--num_tokens=57", "--temperature=0")
    assert told.split() == words[:60]

    monkeypatch.chdir(tmp_path)
    main("Wina", checkpoint="last", num_tokens=20, temperature=1.5, top_k=5)
    main("Wina", checkpoint="last", num_tokens=20, temperature=1.5, top_k=5)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert len(first.split()) == 21


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_gpt2_of_millions_of_numbers_learns_the_tale_by_heart_and_tells_it(tmp_path: Path) -> None:
    options = ["--config=configs/gpt.yaml", f"--trainer.logger.save_dir={tmp_path}"]
    subprocess.run([sys.executable, "train_stub.py", "fit", *options], cwd=PROJECT, check=True, capture_output=True)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    model = EmbeddingStub.load_from_checkpoint(last, map_location="cpu").eval()
    assert sum(parameter.numel() for parameter in model.parameters()) > 5_000_000

    data = GPTDataModule(context_size=128, shuffle=False, drop_last=False, val_fraction=0.0)
    data.setup("fit")
    with torch.no_grad():
        losses = [next_token_loss(model(x), y).item() * len(x) for x, y in data.train_dataloader()]
    assert sum(losses) / len(data.train_dataset) < 0.5

    ids = data.tokenizer.encode(TALE.read_text())[:128]
    told = sample("The Rain Book", f"--checkpoint={last}", "--num_tokens=125", "--temperature=0")
    assert told.removesuffix("\n") == data.tokenizer.decode(ids)
