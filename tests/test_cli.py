import errno
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import DIFFERENT_WORDS, PROJECT, SMALL, logged
from lightning.pytorch import Trainer
from test_web import send, serve
from torch import Tensor, nn

from gpt2_lit import EmbeddingStub, GPTDataModule
from gpt2_lit.cli.main import main

PETER_RABBIT = PROJECT.parent / "shared" / "data" / "Peter_Rabbit.txt"
TAGS = {
    "epoch",
    "train/loss",
    "val/loss",
    "val/perplexity",
    "val/bits_per_byte",
    "train/learning_rate",
    "train/tokens_seen",
    "gradient_norm/total",
    "embedding_norm/token",
    "embedding_norm/position",
    "embedding_norm/input",
    "throughput/tokens_per_second",
    "throughput/data_wait_fraction",
    *(f"norm_band/{kind}_{percentile}" for kind in ("token", "position", "input") for percentile in ("p05", "p95")),
    *(f"norm_expected/{kind}" for kind in ("token", "position", "input")),
    "table_norm/token",
    "table_norm/position",
    "gradient_norm/token_embedding",
    "gradient_norm/position_embedding",
    "vocabulary/seen_fraction",
}


class Blocks(nn.Module):
    """A backbone of a reader's own, with a parameter of its own."""

    def __init__(self, num_layers: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.LayerNorm(8) for _ in range(num_layers)])

    def forward(self, vectors: Tensor) -> Tensor:
        return self.layers(vectors)


class Sized(nn.Module):
    """A backbone that has to know its width, and a number of its own."""

    def __init__(self, embed_dim: int, context_size: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1:
            raise ArithmeticError("no heads")
        self.sizes = (embed_dim, context_size, num_heads)
        self.layer = nn.Linear(embed_dim, embed_dim)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.layer(vectors)


class Raises(nn.Module):
    """A backbone with a bug."""

    def forward(self, vectors: Tensor) -> Tensor:
        raise ArithmeticError("no vectors")


class CutsOff(nn.Module):
    """A backbone that changes the shape."""

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[..., :-1]


def test_the_main_job_trains_on_the_shipped_tale_and_says_where_to_look(program: Any, tmp_path: Path) -> None:
    status, printed = program("fit")
    assert status == 0
    assert "Warning" not in printed
    assert "warn" not in printed.lower()
    assert re.search(r"tokens +3,956 \(gpt2, vocabulary of 50,257\)", printed)
    assert "tensorboard --logdir logs" in printed
    assert "?runFilter=version_0%24&tagFilter=loss%7Cding_&smoothing=0\n" in printed
    assert re.search(r"loss=\d+\.\d{3}, val loss=\d+\.\d{3}, tokens/s=[\d,]+, data wait=\d+%, left=0:00", printed)
    [results] = re.findall(r"\n\n  trained .*?\n\n", printed, re.DOTALL)
    assert re.search(r"trained +78 steps, 6 epochs, 19,968 tokens in 0:\d\d min\n", results)
    assert re.search(r"loss +10\.8\d -> 5\.\d\d\n", results)
    assert re.search(
        r"best val loss +7\.\d\d, perplexity 1,\d{3} \(3,\d{3} from the tokens' frequencies\s+alone\)", results
    )
    assert re.search(
        r"mean norms +token 0\.16 -> 1\.\d\d, position 0\.08 -> 1\.\d\d, input 0\.18 -> 3\.\d\d\n", results
    )
    command = "fit --ckpt_path logs/version_0/checkpoints/last.ckpt --trainer.max_epochs 12"
    assert command in re.sub(r" \\\n +", " ", printed)
    assert max(map(len, printed[printed.index("  trained ") :].splitlines())) <= 80

    scalars = logged(tmp_path / "logs" / "version_0")
    assert set(scalars) == TAGS
    losses = [loss for _, loss in scalars["train/loss"]]
    assert losses[0] == pytest.approx(10.825, abs=0.1)  # ln(50,257)
    assert losses[-1] < 7
    for tag in ("token", "position", "input"):
        norms = [norm for _, norm in scalars[f"embedding_norm/{tag}"]]
        assert norms[-1] > 2 * norms[0]
    config = yaml.safe_load((tmp_path / "logs/version_0/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 6
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.003


def test_two_runs_log_the_same_losses_and_neither_touches_the_files_of_the_other(
    here: Callable[..., str], tmp_path: Path
) -> None:
    here("fit", *SMALL, "--trainer.max_epochs=2")
    before = {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()}
    here("fit", *SMALL, "--trainer.max_epochs=2")
    assert {path: path.read_bytes() for path in before} == before
    first, second = (logged(tmp_path / "logs" / f"version_{n}") for n in range(2))
    for tag in TAGS - {"throughput/tokens_per_second", "throughput/data_wait_fraction"}:
        assert first[tag] == second[tag]
    here("fit", *SMALL, "--trainer.max_epochs=2", "--seed_everything=7")
    assert logged(tmp_path / "logs" / "version_2")["train/loss"] != first["train/loss"]


@pytest.mark.skipif(not PETER_RABBIT.exists(), reason="needs The Tale of Peter Rabbit beside the project")
def test_it_trains_on_the_text_of_the_series(here: Callable[..., str]) -> None:
    printed = here("fit", f"--data.source={PETER_RABBIT}", "--model.embed_dim=8", "--trainer.max_steps=2")
    assert "tokens  1,547" in printed
    assert "--trainer.max_steps 4" in printed


@pytest.mark.parametrize("config", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_runs(here: Callable[..., str], tmp_path: Path, config: Path) -> None:
    printed = here("fit", f"--config={config}", "--trainer.max_steps=1", "--trainer.limit_val_batches=1")
    assert "saved in" in printed, printed
    assert (tmp_path / "logs/version_0/checkpoints/last.ckpt").exists()


def test_validate_test_and_predict_work_on_a_checkpoint_with_the_options_of_its_run(
    here: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("Wina carried a loaf up the hill. The goat ate the book. " * 30)
    here("fit", *SMALL, "--data.context_size=16", "--data.test_source=other.txt", "--trainer.max_epochs=2")
    losses = logged(tmp_path / "logs/version_0")["val/loss"]
    validated = here("validate", "--ckpt_path=last")
    assert f"{losses[-1][1]:.3f}"[:4] in validated
    assert "test/perplexity" in here("test", "--ckpt_path=best")
    predicted = here("predict", "--ckpt_path=last")
    assert "what the model expects next" in predicted
    assert "' -> '" in predicted
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["version_0"]


def test_instructions_have_their_own_options_which_a_run_keeps(here: Callable[..., str], tmp_path: Path) -> None:
    assert "--data.template" in here("fit", "--data_module=instructions", "--help")
    assert "--data.template" not in here("fit", "--help")
    small = ["--data.tokenizer=words", "--model.embed_dim=8", "--trainer.max_steps=2", "--data.packing=true"]
    (tmp_path / "own.yaml").write_text("data_module: instructions\ndata:\n  mask_prompt: true\n")
    printed = here("fit", "--config", "own.yaml", *small, "--data.batch_size=2")
    assert "targets the answers" in printed
    assert "2 rows of 256 tokens, packed" in printed
    assert yaml.safe_load((tmp_path / "logs/version_0/config.yaml").read_text())["data_module"] == "instructions"
    assert "steps, 2 epochs" in here("fit", "--ckpt_path=last", "--trainer.max_steps=-1", "--trainer.max_epochs=2")
    assert "what the model expects next" in here("predict", "--ckpt_path=last")
    assert "there is no option --data.stride" in here("fit", "--config=own.yaml", "--data.stride=3")


def test_the_command_line_wins_over_the_checkpoint(here: Callable[..., str], tmp_path: Path) -> None:
    here("fit", *SMALL, "--trainer.max_epochs=1", "--model.dropout=0.2")
    changed = ["--model.dropout=0.4", "--model.optimizer.lr=0.5"]
    here("fit", "--ckpt_path=last", "--trainer.max_epochs=2", *changed)
    last = torch.load(tmp_path / "logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    config = yaml.safe_load((tmp_path / "logs/version_0/config.yaml").read_text())
    assert config["model"]["dropout"] == 0.4
    assert config["model"]["embed_dim"] == 8
    assert yaml.safe_load((tmp_path / "logs/version_0/config-1.yaml").read_text())["model"]["dropout"] == 0.2


def test_the_saved_config_of_a_run_that_went_on_starts_another_run(here: Callable[..., str], tmp_path: Path) -> None:
    here("fit", *SMALL, "--trainer.max_steps=3")
    here("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    here("fit", "--config=logs/version_0/config.yaml")
    losses = [logged(tmp_path / "logs" / f"version_{n}")["train/loss"] for n in range(2)]
    assert [step for step, _ in losses[1]] == list(range(6))
    assert losses[0] == losses[1]


def test_last_in_a_config_is_the_newest_run_too(here: Callable[..., str], tmp_path: Path) -> None:
    here("fit", *SMALL, "--trainer.max_steps=3")
    (tmp_path / "on.yaml").write_text("ckpt_path: last")
    here("fit", *SMALL, "--config=on.yaml", "--trainer.max_steps=6")
    assert [step for step, _ in logged(tmp_path / "logs/version_0")["train/loss"]] == list(range(6))


def test_last_is_looked_for_where_a_config_lets_runs_be_and_under_other_loggers(
    here: Callable[..., str], tmp_path: Path
) -> None:
    csv = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: elsewhere}}"
    (tmp_path / "csv.yaml").write_text(f"trainer: {{logger: {csv}, max_steps: 3}}")
    here("fit", *SMALL, "--config=csv.yaml")
    last = "elsewhere/lightning_logs/version_0/checkpoints/last.ckpt"
    assert f"--ckpt_path last: {last} (step 3, less than a minute ago)" in here(
        "fit", "--config=csv.yaml", "--ckpt_path=last", "--trainer.max_steps=6"
    )
    resumed = torch.load(tmp_path / last.replace("version_0", "version_1"), weights_only=True)
    assert resumed["global_step"] == 6


def test_the_printed_config_is_one_that_can_be_given_back(here: Callable[..., str], tmp_path: Path) -> None:
    printed = here("fit", *SMALL, "--print_config")
    (tmp_path / "whole.yaml").write_text(printed)
    assert here("fit", "--config=whole.yaml", "--print_config") == printed
    assert yaml.safe_load(printed)["data"]["context_size"] == 32


def test_another_optimizer_keeps_the_learning_rate(here: Callable[..., str]) -> None:
    config = yaml.safe_load(here("fit", "--model.optimizer.lr=0.5", "--model.optimizer=SGD", "--print_config"))
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.5
    config = yaml.safe_load(here("fit", "--model.optimizer=SGD", "--print_config"))
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.003


def test_the_saved_config_repeats_the_run(here: Callable[..., str], tmp_path: Path) -> None:
    here("fit", *SMALL, "--trainer.max_epochs=1", "--model.optimizer=SGD", "--model.optimizer.lr=0.5")
    here("fit", "--config=logs/version_0/config.yaml")
    first, second = (logged(tmp_path / "logs" / f"version_{n}") for n in range(2))
    assert first["train/loss"] == second["train/loss"]


def test_one_batch_is_one_batch_and_a_share_is_a_share(here: Callable[..., str], tmp_path: Path) -> None:
    for limit, steps in (("1", 1), ("1.0", 12), ("0.5", 6)):
        here("fit", *SMALL, f"--trainer.limit_train_batches={limit}", "--trainer.max_epochs=1")
        last = max((tmp_path / "logs").glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        assert torch.load(last, weights_only=True)["global_step"] == steps


def test_a_backbone_and_an_optimizer_of_ones_own_plug_in_and_load_again_without_arguments(
    here: Callable[..., str], tmp_path: Path
) -> None:
    here(
        "fit",
        *SMALL,
        "--model.backbone=test_cli.Blocks",
        "--model.backbone.num_layers=2",
        "--model.optimizer=SGD",
        "--model.optimizer.lr=0.1",
        "--trainer.max_epochs=1",
    )
    last = tmp_path / "logs/version_0/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1
    assert state["hyper_parameters"]["optimizer"]["class_path"] == "torch.optim.SGD"
    model = EmbeddingStub.load_from_checkpoint(last)
    assert type(model.backbone).__name__ == "Blocks"
    assert len(model.backbone.layers) == 2
    assert torch.equal(model.embedding.token_embedding.weight, state["state_dict"]["embedding.token_embedding.weight"])


def test_without_a_logger_nothing_is_written(here: Callable[..., str], tmp_path: Path) -> None:
    for _ in range(2):
        here("fit", *SMALL, "--trainer.logger=false", "--trainer.max_epochs=1")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_before_its_first_step_leaves_no_directory(here: Callable[..., str], tmp_path: Path) -> None:
    assert "must map (B, T, D)" in here("fit", *SMALL, "--model.backbone=test_cli.CutsOff")
    assert list((tmp_path / "logs").iterdir()) == []


def test_no_checkpoint_is_named_that_was_not_written(here: Callable[..., str]) -> None:
    assert "last.ckpt" not in here("fit", *SMALL, "--trainer.limit_train_batches=0")


def test_fast_dev_run_and_overfit_batches_work(here: Callable[..., str]) -> None:
    assert "Epoch 0: 100%" in here("fit", *SMALL, "--trainer.fast_dev_run=true")
    assert "Epoch 0: 100%" in here("fit", *SMALL, "--trainer.overfit_batches=2", "--trainer.max_epochs=1")


def test_help_without_a_command_needs_no_torch(program: Any) -> None:
    for args in ([], ["--help"]):
        status, printed = program(*args, PYTHONPROFILEIMPORTTIME="1")
        assert status == 0
        assert "fit --ckpt_path last" in printed
        assert " torch" not in printed


def test_help_loads_only_what_it_uses_explains_every_option_and_lists_no_unrelated_classes(program: Any) -> None:
    status, printed = program("fit", "--help", PYTHONPROFILEIMPORTTIME="1", COLUMNS="80")
    assert status == 0
    imported = {line.rpartition("|")[2].strip() for line in printed.splitlines() if line.startswith("import time:")}
    assert "torch" in imported
    assert not imported & {"tensorboard", "torch.utils.tensorboard", "tiktoken", "matplotlib"}
    text = [line for line in printed.splitlines() if not line.startswith("import time:")]
    assert len(text) < 450
    assert not [line for line in text if len(line) > 80 and not line.startswith("usage: ")]
    assert "last or best for that of the newest run" in " ".join(" ".join(text).split())
    for group in ("data", "model", "checkpoint", "monitor"):
        options = [i for i, line in enumerate(text) if line.startswith(f"  --{group}.")]
        assert options
        for i in options:
            assert text[i + 1].startswith("        "), text[i]
            assert not text[i + 1].strip().startswith("(type:"), f"not explained: {text[i]}"


def test_a_run_may_have_a_name_and_resumes_under_it(here: Callable[..., str], tmp_path: Path) -> None:
    for _ in range(2):
        here("fit", *SMALL, "--name=rain", "--trainer.max_steps=1")
    here("fit", *SMALL, "--trainer.max_steps=1")
    here("fit", "--ckpt_path=logs/rain/checkpoints/last.ckpt", "--trainer.max_steps=2")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rain", "rain-2", "version_0"]
    steps = [
        torch.load(tmp_path / f"logs/{name}/checkpoints/last.ckpt", weights_only=True)["global_step"]
        for name in ("rain", "rain-2")
    ]
    assert steps == [2, 1]


def test_the_help_begins_with_our_options_and_ends_with_lightnings(here: Callable[..., str]) -> None:
    printed = here("fit", "--help")
    options = ["--name", "--data.source", "--model.embed_dim", "--checkpoint.monitor", "--monitor.every", "--trainer.a"]
    places = [printed.index(f"  {option}") for option in options]
    assert places == sorted(places)


TYPOS = [
    (["fit", "--data.contxt_size=5"], "no option --data.contxt_size", "did you mean --data.context_size?"),
    (["fit", "--lr=1"], "no option --lr", "did you mean --model.optimizer.lr?"),
    (["fit", "--optimizer.lr", "1"], "no option --optimizer.lr", "did you mean --model.optimizer.lr?"),
    (["fit", "--trainer.max_epoch", "3"], "no option --trainer.max_epoch", "--trainer.max_epochs"),
    (["fit", "--model.optimizer.lrr=1"], "AdamW has no argument 'lrr'", "did you mean --model.optimizer.lr?"),
    (["fti"], "no command fti", "did you mean fit?"),
    (["fit", "--config=typo.yaml"], "no key 'data.contxt_size'", "did you mean data.context_size?"),
    (["fit", "--config=group.yaml"], "no key 'dta.context_size'", "did you mean data.context_size?"),
    (["fit", "--data.batch_size=many"], "data.batch_size", "many"),
    (["fit", "--model.vocab_size=9"], "model.vocab_size", "must be given via"),
    (["fit", "--config=none.yaml"], "none.yaml", ""),
]


BACKBONE = "--model.backbone"
VALUES = [
    (["--trainer.max_epochs=two"], "--trainer.max_epochs: two is not a whole number or null. For example: --trainer.m"),
    (["--seed_everything=abc"], "--seed_everything: abc is not true or false or a whole number. For example: --seed_"),
    (
        ["--model.optimizer=AdamW2"],
        "no Optimizer called AdamW2. Give its import path, like my_module.AdamW2\n  did you",
    ),
    (["--model.optimizer.lr=abc"], "--model.optimizer.lr: abc is not a number. For example: --model.optimizer.lr 0.0"),
    (["--data.batch_size=1.5"], "--data.batch_size: 1.5 is not a whole number. For example: --data.batch_size 8"),
    (["--data.shuffle=foo"], "--data.shuffle: foo is not one of global, block or true or false. For example: --data.s"),
    (["--model.init=foo"], "--model.init: foo is not one of gpt2, normal. For example: --model.init gpt2"),
    (["--config=value.yaml"], "--data.batch_size: x is not a whole number. For example: --data.batch_size 8"),
    (["--trainer.logger=WandbLoger"], "did you mean --trainer.logger WandbLogger?"),
    (["--model.optimizer=SGD", "--model.optimizer.lrr=1"], "SGD has no argument 'lrr'\n  did you mean --model.opt"),
    (["--model.optimizer.lr=-1", "--trainer.max_steps=1"], "model.optimizer: Invalid learning rate: -1.0. Set its arg"),
    ([BACKBONE, "my_module.Blocks"], "no module my_module, neither in "),
    ([BACKBONE, "test_cli.Blokcs"], "has no Blokcs\n  did you mean --model.backbone test_cli.Blocks?"),
    (
        [BACKBONE, "conftest.Disk"],
        "conftest.Disk is not a Module: it must be a subclass of torch.nn.modules.module.Mod",
    ),
    ([BACKBONE, "broken.Blocks"], "importing broken fails: ZeroDivisionError: division by zero (broken.py, line 1)"),
    ([BACKBONE, "test_cli.Sized"], "test_cli.Sized needs num_heads. Give --model.backbone.num_heads ..."),
    ([BACKBONE, "test_cli.Sized", f"{BACKBONE}.num_heads=x"], "--model.backbone.num_heads: x is not a whole number."),
    ([BACKBONE, "test_cli.Sized", f"{BACKBONE}.num_headz=3"], "did you mean --model.backbone.num_heads?"),
    ([BACKBONE, "test_cli.Sized", f"{BACKBONE}.num_heads=0"], "test_cli.Sized raised ArithmeticError: no heads (test_"),
    (
        [BACKBONE, "test_cli.Sized", f"{BACKBONE}.num_heads=1", f"{BACKBONE}.embed_dim=9"],
        "--model.backbone.embed_dim is 9, and --model.embed_dim is 64",
    ),
]


@pytest.mark.parametrize(("args", "message"), VALUES, ids=lambda value: " ".join(value)[:60])
def test_a_wrong_value_is_a_line_with_the_option_what_is_wrong_and_what_is_right(
    here: Callable[..., str], tmp_path: Path, args: list[str], message: str
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "value.yaml").write_text("data: {batch_size: x}")
    printed = here("fit", *args)
    told = printed[printed.index("error: ") :]
    assert message in told
    assert "Traceback" not in printed
    assert not re.search("Parser key|Union|<class|Expected|Subtypes", told)
    assert len(told.splitlines()) <= 3


def test_a_backbone_gets_the_width_and_the_context_size_and_loads_again(
    here: Callable[..., str], tmp_path: Path
) -> None:
    options = [BACKBONE, "test_cli.Sized", f"{BACKBONE}.num_heads=2", f"{BACKBONE}.embed_dim=8"]
    here("fit", *SMALL, *options, "--data.context_size=16", "--trainer.max_steps=1")
    here("fit", "--ckpt_path=last", "--trainer.max_steps=2")
    model = EmbeddingStub.load_from_checkpoint(tmp_path / "logs/version_0/checkpoints/last.ckpt")
    assert model.backbone.sizes == (8, 16, 2)
    assert torch.load(tmp_path / "logs/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_an_error_in_a_backbone_names_it_beside_its_traceback(here: Callable[..., str]) -> None:
    with pytest.raises(ArithmeticError, match="no vectors") as raised:
        here("fit", *SMALL, BACKBONE, "test_cli.Raises")
    assert raised.value.__notes__ == [
        "model.backbone: test_cli.Raises raised this, given vectors (B, T, D) = (8, 32, 8)."
    ]


@pytest.mark.parametrize(("args", "wrong", "meant"), TYPOS, ids=lambda value: " ".join(value)[:40])
def test_a_typo_gets_a_few_lines(
    here: Callable[..., str], tmp_path: Path, args: list[str], wrong: str, meant: str
) -> None:
    (tmp_path / "typo.yaml").write_text("data: {contxt_size: 5}")
    (tmp_path / "group.yaml").write_text("dta: {context_size: 5}")
    printed = here(*args)
    assert wrong in printed
    assert meant in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) <= 6, printed


BAD = [
    (["--data.source=none.txt"], "there is no file or directory none.txt"),
    (["--data.source=folder"], "the directory folder has no text file"),
    (["--data.source=empty.txt"], "empty.txt is empty"),
    (["--data.source=latin1.txt"], "latin1.txt is not UTF-8: byte 0xe9 at offset 3"),
    (["--data.source=short.txt"], "one window needs context_size + 1 = 33 tokens"),
    (["--data.source=short.txt", "--data.val_fraction=0"], "one window needs context_size + 1 = 33 tokens"),
    (
        ["--data.source=medium.txt"],
        "for val, and the text has 50. Lower data.context_size to at most 24",
    ),
    (["--data.source="], "data.source is empty"),
    ([f"--data.seed={2**63}"], "seed must be from -9223372036854775808 to 9223372036854775807"),
    (["--data.stride=0"], "stride must be at least 1, got 0"),
    (["--data.batch_size=0"], "batch_size must be at least 1, got 0"),
    (
        ["--data.batch_size=1000"],
        "and the train split has 99. Lower data.batch_size to at most 99",
    ),
    (["--data.context_size=0"], "context_size must be at least 1, got 0"),
    (["--data.num_workers=-1"], "num_workers must be at least 0, got -1"),
    (["--data.val_fraction=1"], "val_fraction must be at least 0 and below 1, got 1.0"),
    (["--data.val_fraction=-0.1"], "val_fraction must be at least 0 and below 1, got -0.1"),
    (["--data.tokenizer=gtp2"], "tokenizer must be one of gpt2, words, "),
    (["--model.dropout=1"], "dropout must be at least 0 and below 1, got 1.0"),
    (["--model.embed_dim=0"], "embed_dim must be at least 1, got 0"),
    (["--model.backbone=test_cli.CutsOff"], "the backbone CutsOff must map (B, T, D) = (8, 32, 8) to the same shape"),
    (["--name=a/b"], "--name is that of a directory among the logs, without / and \\, got 'a/b'"),
    (["--checkpoint.every_n_steps=0"], "every_n_steps must be at least 1, got 0"),
    (["--monitor.every_n_steps=-1"], "every_n_steps must be at least 0, got -1. Set monitor.every_n_steps"),
    (["--trainer.logger.save_dir=empty.txt"], "the log directory empty.txt cannot be written"),
    (["--trainer.accelerator=cpuu"], "invalid accelerator name"),
    (
        ["--trainer.accelerator=mps"] if torch.cuda.is_available() else ["--trainer.accelerator=gpu"],
        "This machine has: ",
    ),
    (
        ["--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.attr_name=rate"],
        "the learning rate finder's attr_name must be an attribute of the model, got rate",
    ),
    (["--data.source=\x1b[2J.txt"], "no file matches \\x1b[2J.txt"),
    (["--ckpt_path=none.ckpt"], "there is no file none.ckpt"),
    (["--ckpt_path=last", "--trainer.logger.save_dir=elsewhere"], "has a last.ckpt"),
    (["--ckpt_path=last", "--data.context_size=16"], "context_size 32 there and 16 here"),
    (["--ckpt_path=last", "--data.tokenizer=gpt2"], "vocab_size"),
    (["--ckpt_path=last", "--model.embed_dim=4"], "embed_dim 8 there and 4 here"),
    (["--ckpt_path=last", "--data.seed=7"], "seed was 42 and is 7"),
    (["--ckpt_path=last", "--data.source=medium.txt", "--data.val_fraction=0", "--data.batch_size=1"], "there and"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train_stub.py", "fit", *SMALL, "--trainer.max_epochs=1"])
        main()
    return folder


@pytest.mark.parametrize(("args", "message"), BAD, ids=lambda value: " ".join(value)[:50])
def test_bad_input_gets_one_clear_error_before_any_step(
    here: Callable[..., str], trained: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    (tmp_path / "logs").symlink_to(trained / "logs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "short.txt").write_text("a b c d e f g h")
    (tmp_path / "medium.txt").write_text(" ".join(f"w{i}" for i in range(50)))
    before = {path: path.read_bytes() for path in (trained / "logs").rglob("*.ckpt")}
    printed = here("fit", *SMALL, *args)
    assert message in printed, printed
    assert printed.count("error:") == 1
    assert "Traceback" not in printed
    assert "Epoch 0" not in printed, "it must be found before any step"
    assert {path: path.read_bytes() for path in before} == before


def test_a_bug_keeps_its_traceback(here: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: GPTDataModule) -> str:
        raise ValueError("in no words for a user")

    monkeypatch.setattr(GPTDataModule, "summary", broken)
    with pytest.raises(ValueError, match="in no words"):
        here("fit", *SMALL)


def test_a_full_disk_is_one_message_with_the_file(here: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Trainer, path: Path, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    printed = here("fit", *SMALL, "--trainer.max_steps=1")
    assert "\nerror: logs/version_0/checkpoints/last.ckpt cannot be written (No space left on device)" in printed
    assert "Traceback" not in printed


def test_the_tested_versions_are_those_that_are_installed() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert pinned["torch"] == version("torch").partition("+")[0]
    for name in ("lightning", "jsonargparse", "tiktoken", "torchmetrics", "tensorboard"):
        assert pinned[name] == version(name)


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_checkpoints_and_the_summary_of_the_model_can_be_left_out(
    here: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture, wanted: str
) -> None:
    options = (f"--trainer.enable_{name}={wanted}" for name in ("checkpointing", "model_summary"))
    assert "  trained  " in here("fit", *SMALL, "--trainer.max_steps=1", *options)
    found = [(tmp_path / "logs/version_0/checkpoints").exists(), "Total params" in caplog.text]
    assert found == [wanted == "true"] * 2


def test_a_run_continues_with_another_text_where_that_is_asked_for_and_only_then(here, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"w{i}" for i in range(200)))
    (tmp_path / "b.txt").write_text(" ".join(f"w{i}" for i in reversed(range(200))))
    options = [*SMALL, "--data.context_size=4", "--data.val_fraction=0"]
    here("fit", *options, "--data.source=a.txt", "--trainer.max_steps=2")
    resume = ["fit", "--ckpt_path=last", "--data.source=b.txt", "--trainer.max_steps=4"]
    assert "--data.continue_with_other_data true" in here(*resume)
    told = here(*resume, "--data.continue_with_other_data=true")
    assert "Training continues at the beginning of an epoch of this data." in told
    config = tmp_path / "logs" / "version_0" / "config.yaml"
    assert yaml.safe_load(config.read_text())["data"]["continue_with_other_data"] is False
    assert "a.txt" in (config.parent / "config-1.yaml").read_text()


def test_nothing_that_a_run_writes_or_prints_has_a_secret_of_its_sources(here, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_LIT_CACHE", str(tmp_path / "cache"))
    secrets = ["pa55-word", "pa55%2Dword", "s1gnature", "t0ken", "cr3dential", "d2luYTpwYTU1LXdvcmQ="]  # base64 of both
    texts = {"/train.txt": DIFFERENT_WORDS.encode(), "/val.txt": DIFFERENT_WORDS[::-1].encode()}
    asked = []

    def answer(request: Any, number: int) -> None:
        asked.append((request.path, request.headers["Authorization"]))
        path = request.path.partition("?")[0]
        if not request.headers["Authorization"]:
            request.send_error(401)
        elif path in texts:
            send(request, texts[path])
        else:
            request.send_error(404)

    with serve(answer) as (server, _):
        names = (
            f"{server.replace('//', '//wina:pa55%2Dword@')}/{{}}.txt?page=2&X-Amz-Credential=cr3dential%2Faws4_request"
        )
        train, val, missing = (
            f"{names.format(name)}&X-Amz-Signature=s1gnature&token=t0ken" for name in ("train", "val", "missing")
        )
        options = [*SMALL, "--data.context_size=8", "--trainer.max_epochs=1", f"--data.val_source={val}"]
        printed = here("fit", f"--data.source={train}", *options)
        printed += here("validate", f"--data.source={train}", f"--data.val_source={val}", "--ckpt_path=best")
        printed += here("fit", f"--data.source={missing}", *options)
        assert {authorization for _, authorization in asked} == {f"Basic {secrets[-1]}"}
        assert all("token=t0ken" in path for path, _ in asked)
        printed += here("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert "missing.txt?page=2" in printed
    assert "HTTP status 401 Unauthorized. If it takes a password or a token, give it in data.source" in printed
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {"config.yaml", "hparams.yaml", "last.ckpt", "best.ckpt", "manifest.json", ".last_use"}
    assert kinds <= {path.name for path in written}
    assert any(path.name.startswith("events.") for path in written)
    for path in [*written, *tmp_path.rglob("*")]:
        content = path.read_bytes() if path.is_file() else b""
        for secret in secrets:
            assert secret not in str(path)
            assert secret.encode() not in content, (path, secret)
    for secret in secrets:
        assert secret not in printed
