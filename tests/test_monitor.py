import io
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import logged
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gpt2_lit.monitor.monitor
from gpt2_lit import EmbeddingModule, EmbeddingMonitor, EmbeddingStub, GPTDataModule, gpt2_tokenizer
from gpt2_lit.monitor.counts import Corpus, labels_of_tokens
from gpt2_lit.monitor.generate import generate
from gpt2_lit.monitor.monitor import principal_components
from gpt2_lit.monitor.page import expected_norms

V, D, T = 23, 8, 4
MEANS = ["embedding_norm/token", "embedding_norm/position", "embedding_norm/input"]
EXPECTED = ["norm_expected/token", "norm_expected/position", "norm_expected/input"]
PICTURES = [
    "embedding_picture/norm_by_position",
    "embedding_picture/position_similarity",
    "embedding_picture/norm_by_count",
]
HISTOGRAMS = ["embedding_picture/norms_of_positions", "embedding_picture/norms_of_tokens"]


class Later(LightningModule):
    """A model as it may look when the stub is gone: an embedding deep inside, a head of its own, other batches."""

    def __init__(self, num_embeddings: int = 1, sparse: bool = False, embed_dim: int = D) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.parts = nn.ModuleList(EmbeddingModule(V, embed_dim, T + 2) for _ in range(num_embeddings))
        self.head = nn.Linear(embed_dim, V)
        for part in self.parts:
            part.token_embedding.sparse = sparse

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        vectors = self.parts[0](input_ids=batch["ids"], start_position=1)
        vectors *= 1.0  # what comes behind may write into it
        return F.cross_entropy(self.head(vectors).flatten(0, 1), batch["next"].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def batches(num: int = 6) -> DataLoader:
    """Batches that each look up other ids."""
    rows = torch.arange(num * 2 * T).view(num * 2, T) % V
    return DataLoader([{"ids": row, "next": (row + 1) % V} for row in rows], batch_size=2)


@pytest.fixture
def data(tmp_path: Path) -> GPTDataModule:
    """200 tokens, 19 words, the blank line and two special ones: 10 batches of 4 windows."""
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{i * i % 37}" for i in range(200)))
    return GPTDataModule(path, tokenizer="words", context_size=T, batch_size=4, val_fraction=0.12)


def stub(data: GPTDataModule, **options: Any) -> EmbeddingStub:
    torch.manual_seed(1)
    return EmbeddingStub(data.vocab_size, embed_dim=D, context_size=T, **options)


def trainer(folder: Path, *, monitor: EmbeddingMonitor | None = None, **options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "callbacks": [monitor or EmbeddingMonitor()],
        "logger": TensorBoardLogger(folder, name="", version="run", default_hp_metric=False),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "max_epochs": 1,
    }
    return Trainer(**(defaults | options))


def events(folder: Path) -> EventAccumulator:
    everything = {"images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(str(folder / "run"), size_guidance=everything).Reload()


def steps(curve: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in curve]


def values(curve: list[tuple[int, float]]) -> list[float]:
    return [value for _, value in curve]


@pytest.mark.parametrize("number", [0, 2])
def test_a_model_without_one_embedding_is_an_error_before_the_first_step(tmp_path, number):
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match=f"EmbeddingMonitor watches the one .* and Later has {number}"):
        run.fit(Later(number), batches())
    assert run.global_step == 0


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": -1},
        {"projected_tokens": -1},
        {"projected_tokens": 2001},
        {"sample_every_n_steps": -1},
        {"sample_tokens": 0},
        {"sample_temperature": -0.5},
        {"sample_top_k": 0},
    ],
    ids=str,
)
def test_an_option_out_of_its_range_is_an_error_that_names_it(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .* Set monitor.{next(iter(options))}"):
        EmbeddingMonitor(**options)


def test_norms_of_a_batch_are_those_of_what_the_embedding_was_given_and_gave(tmp_path):
    model, loader = Later(), batches()
    tokens, positions = (table.detach().clone() for table in model.parts[0].parameters())
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
    trainer(tmp_path, log_every_n_steps=2).fit(model, loader)
    found = logged(tmp_path / "run")

    for step, batch in enumerate(loader):
        if step in (2, 4):
            continue
        vectors = tokens[batch["ids"]] + positions[1 : 1 + T]
        for name, norms in {
            "token": tokens[batch["ids"]].norm(dim=-1),
            "position": positions[1 : 1 + T].norm(dim=-1),
            "input": vectors.norm(dim=-1),
        }.items():
            for tag, value in {
                f"embedding_norm/{name}": norms.mean().item(),
                f"norm_band/{name}_p05": np.percentile(norms, 5),
                f"norm_band/{name}_p95": np.percentile(norms, 95),
            }.items():
                assert (step, pytest.approx(value, rel=1e-5)) in found[tag]
                assert steps(found[tag]) == [0, 1, 3, 5]
    assert values(found["table_norm/token"]) == 4 * [pytest.approx(tokens.norm(dim=-1).mean().item(), rel=1e-5)]
    assert values(found["table_norm/position"]) == 4 * [pytest.approx(positions.norm(dim=-1).mean().item(), rel=1e-5)]


@pytest.mark.parametrize(("sparse", "clip"), [(False, None), (True, None), (False, 1e-3)])
def test_gradient_norms_are_those_of_the_step_before_clipping(tmp_path, sparse, clip):
    model = Later(sparse=sparse)
    before = [parameter.detach().clone() for parameter in model.parameters()]  # the tables are the first two
    trainer(tmp_path, max_steps=1, gradient_clip_val=clip).fit(model, batches())
    found = logged(tmp_path / "run")
    if clip:
        model = Later()
        trainer(tmp_path / "without", max_steps=1).fit(model, batches())
    after = [parameter.detach() for parameter in model.parameters()]
    norms = [((one - other) / 0.5).norm().item() for one, other in zip(before, after, strict=True)]
    expected = {"token_embedding": norms[0], "position_embedding": norms[1], "total": math.hypot(*norms)}
    for name, norm in expected.items():
        assert found[f"gradient_norm/{name}"] == [(0, pytest.approx(norm, rel=1e-4))]


def test_each_tag_has_one_point_a_logged_step_also_where_the_model_logs_means_itself(data, tmp_path):
    trainer(tmp_path, log_every_n_steps=3, max_epochs=2).fit(stub(data), data)
    found = logged(tmp_path / "run")
    for tag in [*MEANS, "norm_band/token_p05", "table_norm/token", "gradient_norm/token_embedding"]:
        assert steps(found[tag]) == [0, 2, 5, 8, 11, 14, 17, 19]
    for name in ("token", "position", "input"):
        for low, mean, high in zip(
            *(
                values(found[tag])
                for tag in (f"norm_band/{name}_p05", f"embedding_norm/{name}", f"norm_band/{name}_p95")
            ),
            strict=True,
        ):
            assert low < mean < high


def test_what_the_model_logs_is_not_logged_again(data, tmp_path):
    model, tags = stub(data), []
    log_dict = model.log_dict

    def recording(values: Any, **options: Any) -> None:
        tags.extend(values)
        log_dict(values, **options)

    model.log_dict = recording
    trainer(tmp_path, max_steps=1).fit(model, data)
    assert "norm_band/token_p05" in tags
    assert set(tags).isdisjoint(MEANS)


def test_accumulated_batches_are_one_step(tmp_path):
    monitor = EmbeddingMonitor(every_n_steps=2)
    options = {"accumulate_grad_batches": 2, "max_epochs": 2, "log_every_n_steps": 3}
    trainer(tmp_path, monitor=monitor, **options).fit(Later(), batches())
    assert [image.step for image in events(tmp_path).Images(PICTURES[0])] == [0, 2, 4, 6]
    found = logged(tmp_path / "run")
    for tag in (
        "embedding_norm/token",
        "table_norm/token",
        "gradient_norm/token_embedding",
        "vocabulary/seen_fraction",
    ):
        assert steps(found[tag]) == [0, 2, 5]


def test_the_share_of_the_vocabulary_counts_each_id_once_that_was_an_input(tmp_path):
    loader, seen, expected = batches(4), set(), []
    for batch in loader:
        seen |= set(batch["ids"].flatten().tolist())
        expected.append((len(expected), pytest.approx(len(seen) / V)))
    trainer(tmp_path).fit(Later(), loader)
    assert expected[0][1] == 8 / V
    assert expected[-1][1] == 1.0
    assert logged(tmp_path / "run")["vocabulary/seen_fraction"] == expected


def test_validation_is_not_counted_as_seen(data, tmp_path):
    Path(*data.source.names).write_text(" ".join(f"w{i}" for i in range(200)))  # no word twice
    trainer(tmp_path, max_epochs=2).fit(stub(data), data)
    train_ids, val_ids = (
        {i for window in split for i in window.input_ids.tolist()} for split in (data.train_dataset, data.val_dataset)
    )
    assert len(val_ids - train_ids) == len(val_ids) > 10
    seen = logged(tmp_path / "run")["vocabulary/seen_fraction"][-1][1] * data.vocab_size
    assert len(train_ids) - 4 * T < seen <= len(train_ids)  # windows of a batch that is not full sit out
    assert seen == pytest.approx(round(seen))


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")  # it need not be, for this
def test_a_run_that_goes_on_has_seen_what_it_had_seen(tmp_path):
    first = trainer(tmp_path / "first", max_steps=2)
    first.fit(Later(), batches(4))
    first.save_checkpoint(tmp_path / "run.ckpt")
    torch.load(tmp_path / "run.ckpt", weights_only=True)
    trainer(tmp_path / "whole", max_steps=4, max_epochs=2).fit(Later(), batches(4))
    whole = logged(tmp_path / "whole/run")["vocabulary/seen_fraction"]
    # Only ids that the first steps looked up, too: without its memory the share would fall.
    again = DataLoader([{"ids": torch.arange(T), "next": torch.arange(T)}] * 8, batch_size=2)
    on = trainer(tmp_path / "on", max_steps=4, max_epochs=2)
    on.fit(Later(), again, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert logged(tmp_path / "on/run")["vocabulary/seen_fraction"] == [(2, whole[1][1]), (3, whole[1][1])]

    without = trainer(tmp_path / "without", max_steps=4, max_epochs=2, callbacks=[])
    without.fit(Later(), again, ckpt_path=tmp_path / "run.ckpt", weights_only=True)  # no warning that one is missing
    assert without.global_step == 4


def test_the_next_training_of_a_monitor_starts_from_nothing(tmp_path):
    monitor = EmbeddingMonitor()
    trainer(tmp_path / "a", monitor=monitor).fit(Later(), batches(4))
    trainer(tmp_path / "b", monitor=monitor, max_steps=1).fit(Later(), batches(4))
    assert logged(tmp_path / "b/run")["vocabulary/seen_fraction"] == [(0, pytest.approx(8 / V))]


def test_pictures_are_drawn_at_the_start_every_n_steps_and_at_the_end(data, tmp_path):
    model = stub(data)
    trainer(tmp_path, monitor=EmbeddingMonitor(every_n_steps=4)).fit(model, data)
    found = events(tmp_path)
    assert set(found.Tags()["images"]) == set(PICTURES)
    assert set(found.Tags()["histograms"]) == set(HISTOGRAMS)
    for tag in PICTURES:
        assert [image.step for image in found.Images(tag)] == [0, 4, 8, 10]
        image = Image.open(io.BytesIO(found.Images(tag)[-1].encoded_image_string))
        assert image.height == 430
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 20
    for tag, table in zip(
        HISTOGRAMS, (model.embedding.position_embedding, model.embedding.token_embedding), strict=True
    ):
        histogram = found.Histograms(tag)[-1].histogram_value
        assert histogram.num == len(table.weight)
        assert histogram.sum == pytest.approx(table.weight.detach().norm(dim=-1).sum().item(), rel=1e-5)
        assert np.count_nonzero(histogram.bucket) >= 3


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"max_epochs": 3}, [0, 4, 8, 12, 16, 20, 24, 28, 30]),
        ({"max_epochs": 1, "max_steps": 9}, [*range(10)]),
        ({"max_steps": 4}, [0, 1, 2, 3, 4]),
    ],
    ids=str,
)
def test_a_training_has_at_most_ten_pictures(data, tmp_path, options, found):
    trainer(tmp_path, **options).fit(stub(data), data)
    assert [image.step for image in events(tmp_path).Images(PICTURES[0])] == found


def figures_drawn(data: GPTDataModule, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """The arguments that the last figure of each kind was drawn from."""
    drawn = {}
    for kind in ("heat_map", "line_chart", "scatter"):
        draw = getattr(gpt2_lit.monitor.monitor, kind)

        def recording(*args: Any, kind: str = kind, draw: Any = draw) -> np.ndarray:
            drawn[kind] = args
            return draw(*args)

        monkeypatch.setattr(gpt2_lit.monitor.monitor, kind, recording)
    trainer(folder, max_steps=2).fit(stub(data, **options), data)
    return drawn


def test_the_norm_of_each_token_stands_over_its_count(data, tmp_path, monkeypatch):
    drawn = figures_drawn(data, tmp_path, monkeypatch, optimizer=still)
    counts, norms, expected, *words = drawn["scatter"]
    by_hand = Counter(i for window in data.train_dataset for i in window.input_ids.tolist())
    table = stub(data).embedding.token_embedding.weight.detach().norm(dim=-1)
    assert counts.tolist() == sorted(by_hand.values(), reverse=True)
    ids = [i for _, i in sorted((-count, i) for i, count in by_hand.items())]
    assert norms.tolist() == pytest.approx(table[ids].tolist())
    assert expected == pytest.approx(0.02 * math.sqrt(D))
    assert words == ["Norm of each token", "dashed: expected at the start, 0.057", "times in the text"]


@pytest.mark.parametrize(
    ("stride", "alike", "told"),
    [
        (T, False, "cosine of each two vectors"),
        (2, False, "diagonal lines: the stride, 2"),
        (2, True, "all alike, as without attention"),
    ],
)
def test_a_heat_map_says_what_there_is_to_see(tmp_path, monkeypatch, stride, alike, told):
    data = GPTDataModule.from_text("a b c d " * 20, tokenizer="words", context_size=T, batch_size=4, stride=stride)
    if alike:
        monkeypatch.setattr(gpt2_lit.monitor.monitor, "ALIKE", -1.0)
    assert figures_drawn(data, tmp_path, monkeypatch)["heat_map"][3] == told


def test_rows_that_fill_up_the_vocabulary_are_neither_pictured_nor_averaged(data, tmp_path):
    model = stub(data, pad_vocab_to_multiple_of=16)
    with torch.no_grad():
        model.embedding.token_embedding.weight[data.vocab_size :] = 100.0
    trainer(tmp_path).fit(model, data)
    assert model.embedding.token_embedding.weight.shape == (32, D)
    histogram = events(tmp_path).Histograms("embedding_picture/norms_of_tokens")[0].histogram_value
    assert (histogram.num, histogram.max < 1) == (data.vocab_size, True)
    assert max(values(logged(tmp_path / "run")["table_norm/token"])) < 1
    assert len(projected(tmp_path)[0]) <= data.vocab_size


def test_a_picture_that_falls_on_the_end_is_drawn_once(data, tmp_path):
    trainer(tmp_path, monitor=EmbeddingMonitor(every_n_steps=5)).fit(stub(data), data)
    assert [image.step for image in events(tmp_path).Images(PICTURES[0])] == [0, 5, 10]


def test_what_is_switched_off_is_not_there(data, tmp_path):
    trainer(tmp_path, monitor=EmbeddingMonitor(every_n_steps=0, projected_tokens=0)).fit(stub(data), data)
    tags = events(tmp_path).Tags()
    assert tags["images"] == tags["histograms"] == []
    assert not list(tmp_path.rglob("*.tsv"))
    assert "norm_band/token_p05" in tags["scalars"]


def projected(folder: Path) -> tuple[list[list[float]], list[str], list[list[str]]]:
    """The vectors, the header and the labels that the Projector reads."""
    [vectors], [labels] = folder.rglob("tensors.tsv"), folder.rglob("metadata.tsv")
    table = [[float(x) for x in line.split("\t")] for line in vectors.read_text().splitlines()]
    header, *rows = [line.split("\t") for line in labels.read_text().split("\n")[:-1]]
    return table, header, rows


def test_the_projector_has_the_most_frequent_tokens_with_labels_on_one_line_and_their_counts(tmp_path):
    (tmp_path / "text.txt").write_text("one\ntwo\tthree  four\r\n\u2028five \u00e9\u4e2d\n" * 40)
    data = GPTDataModule(tmp_path / "text.txt", context_size=T, stride=T, batch_size=4)
    model = stub(data)
    trainer(tmp_path, monitor=EmbeddingMonitor(projected_tokens=10)).fit(model, data)
    vectors, header, labels = projected(tmp_path)

    counts = Counter(i for window in data.train_dataset for i in window.input_ids.tolist())
    assert header == ["token", f"count in {sum(counts.values()):,} tokens of the corpus"]
    assert [int(count) for _, count in labels] == sorted(counts.values(), reverse=True)[:10]
    assert len(vectors) == len(labels) == 10
    ids = [token_id for _, token_id in sorted((-count, token_id) for token_id, count in counts.items())][:10]
    names = labels_of_tokens(Corpus(gpt2_tokenizer().decode, data.train_dataset), ids)
    assert {"\\n", "\\t", "part of \\u2028"} <= set(names)
    for vector, (label, count), token_id, name in zip(vectors, labels, ids, names, strict=True):
        assert (label, int(count)) == (name, counts[token_id])
        assert vector == pytest.approx(model.embedding.token_embedding.weight[token_id].tolist(), abs=1e-5)


def test_a_run_that_ends_at_the_same_step_again_replaces_the_projectors_vectors_without_a_word(data, tmp_path, capfd):
    trainer(tmp_path).fit(stub(data), data)
    before = projected(tmp_path)
    model = stub(data, init="normal")
    trainer(tmp_path).fit(model, data)
    after = projected(tmp_path)
    assert after[1:] == before[1:]
    assert after[0] != before[0]
    captured = capfd.readouterr()
    assert "warning" not in captured.out + captured.err


def test_long_vectors_are_reduced_to_128_numbers_that_keep_their_distances():
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(300, 40, generator=generator) @ torch.randn(40, 200, generator=generator)
    state = torch.get_rng_state()
    reduced = principal_components(flat, 128)
    assert torch.equal(torch.get_rng_state(), state)
    assert reduced.shape == (300, 128)
    for other in (1, 77, 299):
        assert (reduced[0] - reduced[other]).norm().item() == pytest.approx(
            (flat[0] - flat[other]).norm().item(), rel=1e-4
        )
    assert principal_components(flat[:, :128], 128).equal(flat[:, :128])
    assert principal_components(flat[:5], 128).shape == (5, 5)


def test_the_training_windows_are_shown_before_the_first_step_with_each_target_below_its_input(data, tmp_path):
    trainer(tmp_path, max_steps=1).fit(stub(data), data)
    [event] = events(tmp_path).Tensors("training_windows/text_summary")
    assert event.step == 0
    text = event.tensor_proto.string_val[0].decode()
    assert "5 of 43 training windows, the first 4 of 4 tokens of each" in text
    pairs = [line.split()[1:] for line in text.splitlines() if line.startswith("    ") and line.split()]
    shown = [
        [[data.tokenizer.decode([i]) for i in ids.tolist()] for ids in data.train_dataset[number]]
        for number in (0, 10, 21, 32, 42)
    ]
    assert pairs == [row for window in shown for row in window]
    assert pairs[0][1:] == pairs[1][:-1]


def test_hyperparameters_are_judged_by_the_curve_of_the_validation_loss(data, tmp_path):
    trainer(tmp_path, max_epochs=2).fit(stub(data, dropout=0.25), data)
    content = {
        tag: event.metadata.plugin_data.content
        for event in _summaries(tmp_path / "run")
        for tag in [event.tag]
        if event.metadata.plugin_data.plugin_name == "hparams"
    }
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    parsed = {tag: HParamsPluginData.FromString(value) for tag, value in content.items()}
    session = parsed[metadata.SESSION_START_INFO_TAG].session_start_info
    assert session.hparams["dropout"].number_value == 0.25
    assert session.hparams["init"].string_value == "gpt2"
    names = sorted(session.hparams)
    assert names[:5] == ["context_size", "data.batch_size", "data.seed", "data.source", "data.stride"]
    assert session.hparams["data.source"].string_value == str(tmp_path / "text.txt")
    assert [session.hparams[f"data.{name}"].number_value for name in ("batch_size", "seed", "stride")] == [4, 42, T]
    assert session.hparams["learning_rate"].number_value == pytest.approx(0.003)
    experiment = parsed[metadata.EXPERIMENT_TAG].experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["val/loss"]
    assert metadata.SESSION_END_INFO_TAG in parsed
    assert steps(logged(tmp_path / "run")["val/loss"]) == [9, 19]


def test_hyperparameters_hide_passwords_and_how_torch_computes() -> None:
    from gpt2_lit.monitor.page import hyperparameters

    class OfUrl(LightningDataModule):
        source, batch_size, stride, seed = "https://me:secret@host/a.txt?token=abc", 4, 2, 1

    class Model(LightningModule):
        hparams = {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"fused": True, "lr": 0.1}}}  # noqa: RUF012

    run = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    run.datamodule = OfUrl()
    _, start, _ = hyperparameters(run, Model())
    content = start.value[0].metadata.plugin_data.content
    assert b"secret" not in content
    assert b"abc" not in content
    assert b"host/a.txt" in content
    assert b"optimizer.lr" in content
    assert b"fused" not in content


def _summaries(folder: Path) -> list[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [
        value
        for path in folder.glob("events*")
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def layout(folder: Path) -> Any:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    [event] = events(folder).Tensors(metadata.CONFIG_SUMMARY_TAG)
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def test_charts_have_means_bands_and_the_norms_expected_at_initialisation(data, tmp_path):
    trainer(tmp_path, max_steps=1).fit(stub(data), data)
    [category] = layout(tmp_path).category
    norms, *bands = category.chart
    assert list(norms.multiline.tag) == [f"^{tag}$" for tag in [*MEANS, *EXPECTED]]
    tags = set(logged(tmp_path / "run"))
    for chart, name in zip(bands, ("token", "position", "input"), strict=True):
        mean, expected = chart.margin.series
        # TensorBoard cuts an area off where its `upper` leaves the view: it is the edge that stays within.
        assert (mean.value, mean.upper, mean.lower) == (
            f"embedding_norm/{name}",
            f"norm_band/{name}_p05",
            f"norm_band/{name}_p95",
        )
        assert {expected.value, expected.lower, expected.upper} == {f"norm_expected/{name}"}
        assert {mean.value, mean.lower, mean.upper, expected.value} <= tags


def test_runs_of_other_widths_share_their_charts(tmp_path):
    for width in (8, 16):
        trainer(tmp_path / str(width), max_steps=1).fit(Later(embed_dim=width), batches())
    assert layout(tmp_path / "8") == layout(tmp_path / "16")


@pytest.mark.parametrize(
    ("limits", "last"),
    [({"max_epochs": 2}, 7), ({"max_steps": 6, "max_epochs": 2}, 5), ({"max_epochs": 2, "limit_train_batches": 3}, 5)],
    ids=str,
)
def test_curves_have_the_first_and_the_last_step(tmp_path, limits, last):
    run = trainer(tmp_path, log_every_n_steps=3, **limits)
    run.fit(Later(), batches(4))
    found = logged(tmp_path / "run")
    assert steps(found["embedding_norm/token"]) == sorted({0, 2, 5, last})
    for kind, norm in expected_norms(Later().parts[0]).items():
        assert found[f"norm_expected/{kind}"] == [(0, pytest.approx(norm)), (last, pytest.approx(norm))]
    assert run.log_every_n_steps == 3, "as it was"


def test_a_training_without_a_known_end_draws_what_is_expected_up_to_its_last_step(tmp_path):
    class Enough(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 5

    trainer(tmp_path, max_epochs=-1, callbacks=[Enough(), EmbeddingMonitor()]).fit(Later(), batches(4))
    assert steps(logged(tmp_path / "run")["norm_expected/token"]) == [0, 4]


def test_who_logs_nothing_gets_nothing(tmp_path):
    trainer(tmp_path, log_every_n_steps=0).fit(Later(), batches(4))
    assert set(logged(tmp_path / "run")) == set(EXPECTED)


@pytest.mark.parametrize("init", ["gpt2", "normal"])
def test_expected_norms_are_those_of_a_new_embedding(init):
    torch.manual_seed(1)
    embedding = EmbeddingModule(2000, 64, 2000, init=init)
    tokens, positions = (table.detach() for table in embedding.parameters())
    for name, vectors in {"token": tokens, "position": positions, "input": tokens + positions}.items():
        assert expected_norms(embedding)[name] == pytest.approx(vectors.norm(dim=-1).mean().item(), rel=0.02)


@pytest.mark.parametrize("logger", [False, "csv"])
def test_without_tensorboard_there_are_curves_alone(data, tmp_path, logger):
    csv = CSVLogger(tmp_path, name="", version="run") if logger else False
    trainer(tmp_path, logger=csv).fit(stub(data), data)
    if logger:
        header = (tmp_path / "run/metrics.csv").read_text().partition("\n")[0].split(",")
        assert {*MEANS, "norm_band/token_p05", "vocabulary/seen_fraction"} <= set(header)
    assert sorted(path.name for path in tmp_path.rglob("*.*") if path.is_file()) == (
        ["hparams.yaml", "metrics.csv", "text.txt"] if logger else ["text.txt"]
    )


def test_a_trial_writes_nothing(data, tmp_path):
    trainer(tmp_path, fast_dev_run=True).fit(stub(data), data)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_without_a_tokenizer_there_are_no_labels(tmp_path):
    trainer(tmp_path).fit(Later(), batches())
    found = events(tmp_path)
    assert found.Tags()["images"]
    assert "training_windows/text_summary" not in found.Tags()["tensors"]
    assert PICTURES[2] not in found.Tags()["images"], "nothing to count in"
    assert not list(tmp_path.rglob("*.tsv"))


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")  # the metrics of the loss say so
def test_a_model_that_diverges_is_not_stopped_by_its_pictures(data, tmp_path):
    model = stub(data)
    with torch.no_grad():
        model.embedding.token_embedding.weight[0] = math.nan
    run = trainer(tmp_path)
    run.fit(model, data)
    assert run.global_step == 10


def test_norms_of_a_model_in_bfloat16_are_not_rounded_to_it(data, tmp_path):
    model = stub(data)
    trainer(tmp_path, precision="bf16-true", max_steps=1).fit(model, data)
    [(_, norm)] = logged(tmp_path / "run")["norm_band/token_p95"]
    assert norm > 0
    assert norm != torch.tensor(norm).bfloat16().item()


def test_a_compiled_model_is_watched_too(tmp_path):
    # In a process of its own, because what checks shapes in the tests cannot be compiled.
    script = (
        "from pathlib import Path; import torch; from test_monitor import Later, batches, trainer\n"
        f"trainer(Path({str(tmp_path)!r})).fit(torch.compile(Later(), backend='eager'), batches(4))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=True, capture_output=True)
    found = logged(tmp_path / "run")
    assert values(found["vocabulary/seen_fraction"])[-1] == 1.0
    assert steps(found["norm_band/input_p95"]) == [0, 1, 2, 3]


class Stop(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_after_the_training_nothing_hangs_on_the_embedding(tmp_path, fails):
    model = Later()

    def training_step(batch: Any, batch_idx: int) -> None:
        raise Stop

    if fails:
        model.training_step = training_step
        with pytest.raises(Stop):
            trainer(tmp_path).fit(model, batches())
    else:
        trainer(tmp_path).fit(model, batches())
    assert not model.parts[0]._forward_hooks


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    found = events(folder).Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


SAMPLED = {"sample_every_n_steps": 4, "sample_prompt": "w0 w1", "sample_tokens": 3}


def test_the_model_writes_text_at_the_start_and_each_n_steps(data, tmp_path):
    model = stub(data)
    run = trainer(tmp_path, monitor=EmbeddingMonitor(**SAMPLED, sample_temperature=0))
    run.fit(model, data)
    found = texts(tmp_path, "sampled_text")
    assert [step for step, _ in found] == [0, 4, 8]
    prompt = data.tokenizer.encode("w0 w1")
    model = stub(data)
    written = generate(model, torch.tensor([prompt]), 3, T, temperature=0)[0, 2:].tolist()
    assert found[0][1] == f"after\n\n    w0 w1\n\nthe model writes\n\n    {data.tokenizer.decode(written)}"


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode")
def test_what_the_model_writes_does_not_change_what_it_learns(data, tmp_path):
    def weights(folder: Path, monitor: EmbeddingMonitor) -> Tensor:
        torch.manual_seed(0)
        model = stub(data, dropout=0.5, backbone=nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5).eval()))
        trainer(folder, monitor=monitor).fit(model, data)
        assert not model.backbone[1].training
        return model.embedding.token_embedding.weight

    sampling = weights(tmp_path / "sampling", EmbeddingMonitor(**SAMPLED, sample_top_k=5))
    assert torch.equal(sampling, weights(tmp_path / "without", EmbeddingMonitor()))


def test_a_prompt_that_is_not_given_is_the_beginning_of_the_training_text(data, tmp_path):
    trainer(tmp_path, max_steps=1, monitor=EmbeddingMonitor(sample_every_n_steps=9)).fit(stub(data), data)
    start = data.tokenizer.decode(data.train_dataset[0].input_ids[:8].tolist())
    assert texts(tmp_path, "sampled_text")[0][1].startswith(f"after\n\n    {start}\n\nthe model writes")


def test_text_of_a_model_that_has_no_logits_is_an_error_before_the_first_step(tmp_path):
    run = trainer(tmp_path, monitor=EmbeddingMonitor(sample_every_n_steps=1))
    with pytest.raises(ValueError, match="for models whose forward gives logits, and Later has no forward"):
        run.fit(Later(), batches())
    assert run.global_step == 0


def highest_by_hand(model: EmbeddingStub, data: GPTDataModule, number: int) -> list[tuple[int, float]]:
    """The windows of highest loss of an untrained model, each loss from all logits at once."""
    windows = data.train_dataset
    losses = [
        (F.cross_entropy(model(windows[[window]].input_ids)[0], windows[window].target_ids).item(), window)
        for window in range(len(windows))
    ]
    return [(window, loss) for loss, window in sorted(losses, reverse=True)[:number]]


def still(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.0)


def shown_windows(text: str) -> list[tuple[int, float]]:
    found = re.findall(r"loss ([\d.]+) in step \d+, window (\d+)", text)
    return [(int(window), float(loss)) for loss, window in found]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_windows_of_highest_loss_are_shown_with_their_sources(data, tmp_path, accumulate):
    model = stub(data, init="normal", optimizer=still)
    monitor = EmbeddingMonitor(every_n_steps=1000, highest_losses=3)
    trainer(tmp_path, monitor=monitor, accumulate_grad_batches=accumulate).fit(model, data)
    [(step, text)] = texts(tmp_path, "highest_losses")
    assert step == 10 // accumulate
    by_hand = highest_by_hand(model, data, 3)
    assert shown_windows(text) == [(window, pytest.approx(loss, abs=1e-3)) for window, loss in by_hand]
    for window, _ in by_hand:
        assert f"    {data.origins(window)[0]}\n" in text
        assert f"    {data.tokenizer.decode(data.train_dataset[window].input_ids.tolist())}" in text
    [number] = {int(found) for found in re.findall(rf"in step (\d+), window {by_hand[0][0]}$", text, re.MULTILINE)}
    batches_of_step = list(GPTDataModule.train_dataloader(made_again(data)))[number * accumulate :][:accumulate]
    assert data.train_dataset[by_hand[0][0]].input_ids.tolist() in [
        row for batch in batches_of_step for row in batch.input_ids.tolist()
    ]


def made_again(data: GPTDataModule) -> GPTDataModule:
    again = GPTDataModule(data.source.names, tokenizer="words", context_size=T, batch_size=4, val_fraction=0.12)
    again.setup("fit")
    return again


def test_the_highest_losses_since_the_last_look_outlive_a_stop(data, tmp_path):
    model = stub(data, init="normal", optimizer=still)
    # As a run that was stopped before its end leaves them.
    options = {"monitor": EmbeddingMonitor(every_n_steps=1000, highest_losses=3), "max_epochs": None}
    options["monitor"]._show_highest = lambda trainer: None
    run = trainer(tmp_path / "stopped", **options, max_steps=5)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    options["monitor"] = EmbeddingMonitor(every_n_steps=1000, highest_losses=3)
    resumed = trainer(tmp_path / "resumed", **options, max_steps=10)
    resumed.fit(model, data, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    [(_, text)] = texts(tmp_path / "resumed", "highest_losses")
    assert [window for window, _ in shown_windows(text)] == [window for window, _ in highest_by_hand(model, data, 3)]


def test_windows_that_cannot_be_named_or_have_no_loss_are_an_error(data, tmp_path):
    with pytest.raises(ValueError, match=r"monitor.highest_losses names windows of a GPTDataModule"):
        trainer(tmp_path, monitor=EmbeddingMonitor(highest_losses=3)).fit(Later(), batches())
    model = stub(data)
    model.training_step = lambda batch, batch_idx: EmbeddingStub.training_step(model, batch, batch_idx)["loss"]
    with pytest.raises(ValueError, match=r"takes a training_step that returns .*'window_losses'"):
        trainer(tmp_path, monitor=EmbeddingMonitor(highest_losses=3)).fit(model, data)
