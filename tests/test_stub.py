import copy
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import logged
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.text import Perplexity

import gpt2_lit.monitor.stub
from gpt2_lit import EmbeddingStub, GPTDataModule
from gpt2_lit.data.windows import TokenWindows

# Lightning itself calls what torch deprecates, and asks for workers where a machine has three cores or more.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

V, D, T = 21, 8, 4
IDS = torch.tensor([[1, 2, 3, 4], [19, 0, 7, 7]])


def stub(**options: Any) -> EmbeddingStub:
    torch.manual_seed(1)
    return EmbeddingStub(**({"vocab_size": V, "embed_dim": D, "context_size": T} | options))


def still(params) -> torch.optim.Optimizer:
    """An optimizer that learns nothing."""
    return torch.optim.SGD(params, lr=0.0)


@pytest.fixture
def data(tmp_path: Path) -> GPTDataModule:
    """200 tokens, 19 words and two special ones: 10 batches of 4 windows to train on, 4 windows and 1 to validate."""
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{i * i % 37}" for i in range(200)))
    return GPTDataModule(path, tokenizer="words", context_size=T, batch_size=4, val_fraction=0.12)


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version="run", default_hp_metric=False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"log_every_n_steps": 1} | options),
    )


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return logged(folder / "run")


def steps(curve: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in curve]


@pytest.mark.parametrize("backbone", [None, nn.Linear(D, D), nn.Sequential(nn.Linear(D, D), nn.GELU())])
def test_scores_compare_what_leaves_the_backbone_with_every_token_vector(backbone):
    model = stub(backbone=backbone)
    vectors = model.embedding(IDS)
    hidden = vectors if backbone is None else backbone(vectors)
    scores = model(IDS)
    assert scores.shape == (2, T, V)
    for b in range(2):
        for t in range(T):
            for v in (0, 7, 19):
                expected = hidden[b, t] @ model.embedding.token_embedding.weight[v]
                assert scores[b, t, v].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_first_loss_is_that_of_guessing(data, tmp_path):
    trainer(tmp_path, max_steps=1).fit(stub(), data)
    assert data.vocab_size == V
    assert curves(tmp_path)["train/loss"] == [(0, pytest.approx(math.log(V), rel=0.01))]


def test_a_linear_backbone_learns_which_word_follows_which(data, tmp_path):
    Path(*data.source.names).write_text("a b c d e f g " * 40)
    model = stub(vocab_size=9, backbone=nn.Linear(D, D), optimizer=lambda params: torch.optim.Adam(params, lr=0.1))
    trainer(tmp_path, max_epochs=2).fit(model, data)
    assert curves(tmp_path)["val/loss"][-1][1] < 0.05
    batch = data.val_dataset[[0]]
    assert model(batch.input_ids).argmax(-1).equal(batch.target_ids)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_loss_and_perplexity_are_those_of_all_tokens_however_they_are_batched(tmp_path, stage):
    token_ids = np.random.default_rng(0).integers(0, V, 29)
    dataset = TokenWindows(token_ids, context_size=T, stride=T)
    loader = DataLoader(dataset, batch_size=3)
    assert [len(batch.input_ids) for batch in loader] == [3, 3, 1]
    model = stub(init="normal")

    run = trainer(tmp_path)
    [result] = (run.validate if stage == "val" else run.test)(model, loader, verbose=False)

    everything = dataset[list(range(7))]
    with torch.no_grad():
        scores = model(everything.input_ids)
        losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item() for x, y in loader]
    weighted = (12 * losses[0] + 12 * losses[1] + 4 * losses[2]) / 28
    assert weighted != pytest.approx(sum(losses) / 3, rel=0.005)
    assert result[f"{stage}/loss"] == pytest.approx(weighted, rel=1e-5)
    assert result[f"{stage}/perplexity"] == pytest.approx(Perplexity()(scores, everything.target_ids).item(), rel=1e-4)


def test_the_curves_are_these_at_these_steps(data, tmp_path):
    trainer(tmp_path, max_epochs=2, log_every_n_steps=4).fit(stub(), data)
    found = curves(tmp_path)
    each_4th_step, each_epoch = [3, 7, 11, 15, 19], [9, 19]
    assert {tag: steps(curve) for tag, curve in found.items() if tag != "epoch"} == {
        "embedding_norm/token": each_4th_step,
        "embedding_norm/position": each_4th_step,
        "embedding_norm/input": each_4th_step,
        "train/loss": each_4th_step,
        "throughput/tokens_per_second": each_4th_step,
        "throughput/data_wait_fraction": each_4th_step,
        "val/loss": each_epoch,
        "val/perplexity": each_epoch,
    }
    values = {tag: [value for _, value in curve] for tag, curve in found.items()}
    assert all(math.isfinite(value) for tag in values for value in values[tag])
    assert all(value > 0 for value in values["throughput/tokens_per_second"])
    assert all(0 <= value <= 1 for value in values["throughput/data_wait_fraction"])
    assert values["val/perplexity"] == [pytest.approx(math.exp(loss), rel=1e-4) for loss in values["val/loss"]]


def test_accumulated_batches_are_one_step(data, tmp_path):
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=3).fit(stub(), data)
    found = curves(tmp_path)
    for tag in ("train/loss", "embedding_norm/token", "embedding_norm/input", "throughput/tokens_per_second"):
        assert steps(found[tag]) == [2, 5, 8]


def test_logged_norms_are_those_of_the_batch_of_that_step(data, tmp_path):
    model = stub(optimizer=still)
    trainer(tmp_path, max_epochs=1, log_every_n_steps=3).fit(model, data)
    found = curves(tmp_path)

    data.trainer = None
    batches = list(data.train_dataloader())
    tokens, positions = (table.detach() for table in model.embedding.parameters())
    position_norm = positions.square().sum(-1).sqrt().mean().item()
    assert steps(found["embedding_norm/token"]) == [2, 5, 8]
    for tag, vectors in {
        "embedding_norm/token": [tokens[batch.input_ids] for batch in batches],
        "embedding_norm/input": [tokens[batch.input_ids] + positions for batch in batches],
    }.items():
        for step, value in found[tag]:
            assert value == pytest.approx(vectors[step].square().sum(-1).sqrt().mean().item(), rel=1e-5)
    assert [value for _, value in found["embedding_norm/position"]] == 3 * [pytest.approx(position_norm, rel=1e-5)]


def test_norms_are_computed_at_logged_steps_alone(data, tmp_path, monkeypatch):
    run = trainer(tmp_path, max_epochs=1, log_every_n_steps=4)
    computed_at = []

    def counting(*args):
        computed_at.append(run.global_step)
        return embedding_norms(*args)

    embedding_norms = gpt2_lit.monitor.stub.embedding_norms
    monkeypatch.setattr(gpt2_lit.monitor.stub, "embedding_norms", counting)
    run.fit(stub(), data)
    assert computed_at == [3, 7]


def test_the_progress_bar_gets_loss_and_throughput(data, tmp_path):
    run = trainer(tmp_path, max_epochs=1, log_every_n_steps=4)
    run.fit(stub(), data)
    shown = {tag: round(value, 6) for tag, value in run.progress_bar_metrics.items()}
    assert set(shown) == {
        "train/loss",
        "val/loss",
        "val/perplexity",
        "throughput/tokens_per_second",
        "throughput/data_wait_fraction",
    }
    last = curves(tmp_path)["throughput/tokens_per_second"][-1][1]
    assert shown["throughput/tokens_per_second"] == pytest.approx(last)


def test_another_loader_has_no_waiting_to_log(tmp_path):
    loader = DataLoader(TokenWindows(np.arange(20), context_size=T, stride=1), batch_size=4)
    trainer(tmp_path, max_epochs=1, log_every_n_steps=2).fit(stub(), loader, loader)
    found = curves(tmp_path)
    assert steps(found["throughput/tokens_per_second"]) == [1, 3]
    assert "throughput/data_wait_fraction" not in found


class Timed(EmbeddingStub):
    """By its clock a training step takes a second, and one of validation an hour."""

    seconds = 0.0

    def training_step(self, *args):
        self.seconds += 1
        return super().training_step(*args)

    def validation_step(self, *args):
        self.seconds += 3600
        return super().validation_step(*args)


def test_the_time_of_validation_is_none_of_the_trainings(data, tmp_path, monkeypatch):
    model = Timed(V, D, T)
    monkeypatch.setattr(gpt2_lit.monitor.stub, "time", SimpleNamespace(perf_counter=lambda: model.seconds))
    trainer(tmp_path, max_epochs=2, log_every_n_steps=4).fit(model, data)
    assert [value for _, value in curves(tmp_path)["throughput/tokens_per_second"]] == 5 * [4 * T]


class PairBackbone(nn.Module):
    def forward(self, vectors):
        return vectors, vectors


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (nn.Linear(D, 2 * D), r"backbone Linear must map \(B, T, D\) = \(4, 4, 8\) to the same shape, and gave .*16\)"),
        (nn.Flatten(1), r"backbone Flatten must map .* and gave \(4, 32\)"),
        (PairBackbone(), r"backbone PairBackbone must map .* and gave tuple"),
    ],
)
@pytest.mark.parametrize("num_sanity_val_steps", [0, 2])
def test_a_backbone_that_changes_the_shape_is_an_error_before_the_first_step(
    data, tmp_path, backbone, message, num_sanity_val_steps
):
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=num_sanity_val_steps)
    with pytest.raises(ValueError, match=message):
        run.fit(stub(backbone=backbone), data)
    assert run.global_step == 0


def test_prediction_is_the_token_with_the_highest_score(data, tmp_path):
    model = stub(init="normal")
    predicted = trainer(tmp_path).predict(model, data)
    batches = list(data.predict_dataloader())
    assert len(predicted) == len(batches) == 2
    for expected, (input_ids, _) in zip(predicted, batches, strict=True):
        assert torch.equal(expected, model(input_ids).argmax(-1))


@pytest.mark.parametrize(
    ("theirs", "difference"),
    [
        ({"vocab_size": 30}, "vocab_size 30 there and 21 here"),
        ({"context_size": 9}, "context_size 9 there and 4 here"),
        ({"embed_dim": 16}, "embed_dim 16 there and 8 here"),
        ({"vocab_size": 30, "context_size": 9, "embed_dim": 16}, "vocab_size 30 .* context_size 9 .* embed_dim 16"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused_with_both_sizes(data, tmp_path, theirs, difference):
    run = trainer(tmp_path, max_steps=1)
    run.fit(stub(), data)
    run.save_checkpoint(tmp_path / "small.ckpt")
    checkpoint = torch.load(tmp_path / "small.ckpt", weights_only=True)
    torch.save({**checkpoint, "state_dict": stub(**theirs).state_dict()}, tmp_path / "other.ckpt")

    trainer(tmp_path, max_steps=2).fit(stub(), data, ckpt_path=tmp_path / "small.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=f"of a model of another size: {difference}"):
        trainer(tmp_path, max_steps=2).fit(stub(), data, ckpt_path=tmp_path / "other.ckpt", weights_only=True)


def test_a_checkpoint_of_a_model_made_in_python_is_plain_data(data, tmp_path):
    model = stub(backbone=nn.Linear(D, D), optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    sizes = {"vocab_size": V, "embed_dim": D, "context_size": T, "dropout": 0.0, "init": "gpt2"}
    sizes |= {"pad_vocab_to_multiple_of": 1}
    assert checkpoint["hyper_parameters"] == sizes
    assert dict(model.hparams) == sizes

    loaded = EmbeddingStub.load_from_checkpoint(tmp_path / "run.ckpt", backbone=nn.Linear(D, D))
    assert torch.equal(loaded(IDS), model(IDS))


def test_a_checkpoint_without_a_backbone_loads_by_its_path_alone(data, tmp_path):
    model = stub(dropout=0.1, init="normal", optimizer=still)
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = EmbeddingStub.load_from_checkpoint(tmp_path / "run.ckpt")
    assert dict(loaded.hparams) == dict(model.hparams)
    assert torch.equal(loaded.eval()(IDS), model.eval()(IDS))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_is_copied_and_pickled(clone):
    model = stub()
    assert torch.equal(clone(model)(IDS), model(IDS))
    assert clone(model).configure_optimizers().defaults["lr"] == 0.003


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_clips_in_mixed_precision_like_one_that_is_not(data, tmp_path, precision, algorithm):
    def weights(fused: bool) -> torch.Tensor:
        def adam(params) -> torch.optim.Optimizer:
            return torch.optim.SGD(params, lr=0.5, fused=fused)

        model = stub(init="normal", optimizer=adam)
        options = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm, "max_steps": 3}
        trainer(tmp_path / str(fused), plugins=MixedPrecision(precision, "cpu"), **options).fit(model, data)
        return model.embedding.token_embedding.weight.detach()

    before = stub(init="normal").embedding.token_embedding.weight.detach()
    assert torch.allclose(weights(fused=True), weights(fused=False), atol=1e-7)
    assert not torch.equal(weights(fused=True), before)
    if algorithm == "norm":
        assert torch.linalg.norm(weights(fused=True) - before) <= 3 * 0.5 * 1e-3 * 1.001


def test_a_learning_rate_that_lightning_finds_is_the_one_that_is_trained_with(data, tmp_path):
    model = stub()
    runs = trainer(tmp_path, max_epochs=3, callbacks=[LearningRateFinder(num_training_steps=20)])
    runs.fit(model, data)
    assert model.lr not in (None, 0.003)
    assert runs.optimizers[0].param_groups[0]["lr"] == model.lr


def test_a_model_that_was_validated_can_be_trained_and_validated_again(tmp_path):
    model, data = EmbeddingStub(embed_dim=8, context_size=16), GPTDataModule(context_size=16, batch_size=4)
    trainers = [trainer(tmp_path / str(number), max_steps=2) for number in range(3)]
    [before] = trainers[0].validate(model, data, verbose=False)
    trainers[1].fit(model, data)
    [after] = trainers[2].validate(model, data, verbose=False)
    assert after["val/loss"] < before["val/loss"] < 11
