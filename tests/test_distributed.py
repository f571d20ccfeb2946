"""Two processes on this machine, as DistributedDataParallel starts them from the command line."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROGRAM, SMALL, logged
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

import gpt2_lit.monitor.stub
from gpt2_lit import EmbeddingStub, GPTDataModule, InstructionDataModule
from gpt2_lit.cli.run import RunCheckpoint, RunLogger
from gpt2_lit.monitor.stub import Throughput


class Record(Callback):
    """Writes down what each process works on: a line a batch, the windows by their tokens."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for loader in (trainer.train_dataloader, trainer.val_dataloaders):
            sampler = loader.sampler
            with open(self.folder / f"samplers-{trainer.global_rank}", "a") as file:
                print(f"{type(sampler).__module__}.{type(sampler).__name__}", sampler.rank, file=file)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.write("train", trainer, batch)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self.write("val", trainer, batch)

    def write(self, split: str, trainer: Trainer, batch: Any) -> None:
        with open(self.folder / f"{split}-{trainer.global_rank}", "a") as file:
            print(json.dumps(batch.input_ids.tolist()), file=file)


def batches(folder: Path, split: str, rank: int) -> list[list[list[int]]]:
    return [json.loads(line) for line in (folder / f"{split}-{rank}").read_text().splitlines()]


def fit(folder: Path, *args: str) -> str:
    """Train for two epochs, with a record of the batches in the folder: what the program printed."""
    folder.mkdir()
    record = ["--trainer.callbacks=test_distributed.Record", f"--trainer.callbacks.folder={folder}"]
    options = ["--trainer.max_epochs=2", f"--trainer.logger.save_dir={folder}", "--trainer.num_sanity_val_steps=0"]
    done = subprocess.run(
        [*PROGRAM, "fit", *SMALL, *options, *record, *args],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


TWO = ["--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The folders of a run of one process, and of one of two with half as large batches; what the second printed."""
    folder = tmp_path_factory.mktemp("runs")
    printed = fit(folder / "one", "--data.batch_size=8")
    assert "6,144 tokens" in printed
    return folder / "one", folder / "two", fit(folder / "two", *TWO)


def test_two_processes_see_together_what_one_sees_with_batches_twice_as_large(runs: tuple[Path, Path, str]) -> None:
    one, two, _ = runs
    pairs = zip(batches(two, "train", 0), batches(two, "train", 1), strict=True)
    assert [first + second for first, second in pairs] == batches(one, "train", 0)
    for rank in (0, 1):
        samplers = (two / f"samplers-{rank}").read_text().splitlines()
        assert samplers == 2 * [f"gpt2_lit.data.order.WindowSampler {rank}"], "as they are, not wrapped"
    validated = [window for rank in (0, 1) for batch in batches(two, "val", rank) for window in batch]
    assert sorted(validated) == sorted(window for batch in batches(one, "val", 0) for window in batch)


def test_two_processes_log_together_what_one_logs_with_batches_twice_as_large(runs: tuple[Path, Path, str]) -> None:
    one, two, printed = runs
    assert "6,144 tokens" in printed
    assert "Warning" not in printed
    for name in ("source", "saved in", "best val loss"):
        assert printed.count(f"  {name}") == 1
    assert len(list((two / "version_0").glob("events*"))) == 1
    alone, together = logged(one / "version_0"), logged(two / "version_0")
    assert together["vocabulary/seen_fraction"] == alone["vocabulary/seen_fraction"]
    norms = [f"embedding_norm/{kind}" for kind in ("token", "position", "input")]
    gradients = ["gradient_norm/token_embedding", "gradient_norm/position_embedding"]
    for tag in ("val/loss", "val/perplexity", *norms, "table_norm/token", *gradients):
        (steps, values), (same_steps, same_values) = (zip(*curves[tag], strict=True) for curves in (alone, together))
        assert same_steps == steps
        assert same_values == pytest.approx(values, rel=2e-3), tag


def test_a_run_of_one_process_goes_on_in_two(runs: tuple[Path, Path, str], tmp_path: Path) -> None:
    fit(tmp_path / "one", "--data.batch_size=8", "--trainer.max_steps=5")
    checkpoint = f"--ckpt_path={tmp_path}/one/version_0/checkpoints/last.ckpt"
    fit(tmp_path / "two", checkpoint, "--trainer.max_steps=-1", *TWO)
    pairs = zip(batches(tmp_path / "two", "train", 0), batches(tmp_path / "two", "train", 1), strict=True)
    together = [first + second for first, second in pairs]
    assert batches(tmp_path / "one", "train", 0) + together == batches(runs[0], "train", 0)


class Mask(nn.Module):
    """Leaves the vectors as they are. In validation too, DDP sends a buffer to all processes, in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(1))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors * self.mask


def metrics(folder: Path, num_windows: int, batch_size: int, processes: int) -> list[float]:
    """What a fit logs for validation windows of 4 tokens: the words w0, w1, ..., so that the windows differ.

    By its clock a step takes a second.
    """
    text = folder / f"{num_windows}.txt"
    text.write_text(" ".join(f"w{i}" for i in range(4 * num_windows + 1)))
    source = folder / "train.txt"
    source.write_text(" ".join(f"w{i}" for i in range(100)))
    seed_everything(1, verbose=False)
    data = GPTDataModule(source, "words", context_size=4, batch_size=batch_size, val_source=text)
    model = EmbeddingStub(
        data.vocab_size, 8, 4, init="normal", backbone=Mask(), optimizer=lambda p: torch.optim.SGD(p, lr=0)
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        max_steps=1,
        limit_train_batches=1,
        log_every_n_steps=1,
        logger=RunLogger(str(folder)),
        callbacks=[RunCheckpoint(every_n_steps=1)],  # whose processes ask each other in each batch
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt2_lit.monitor.stub, "time", SimpleNamespace(perf_counter=lambda: trainer.global_step))
        trainer.fit(model, data)
    tags = ("val/loss", "val/perplexity", "throughput/tokens_per_second")
    return [float(trainer.callback_metrics[tag]) for tag in tags]


# One that another process has not, and one behind the last full global batch; and an even number.
FEW_WINDOWS = [(1, 4), (9, 4), (16, 4), (3, 1)]


def test_two_processes_log_the_loss_of_one_and_twice_its_tokens_a_second(tmp_path: Path) -> None:
    code = f"""
import json, pathlib, test_distributed
folder = pathlib.Path({str(tmp_path)!r})
found = [[test_distributed.metrics(folder, *few, n) for n in (1, 2)] for few in test_distributed.FEW_WINDOWS]
print(json.dumps(found))
"""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert ended.returncode == 0, ended.stderr
    one, two = (np.array(runs).T for runs in zip(*json.loads(ended.stdout.splitlines()[-1]), strict=True))
    assert len(set(one[0].round(3))) == len(FEW_WINDOWS)
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert one[1] == pytest.approx(np.exp(one[0]), rel=1e-6)
    assert two[1] == pytest.approx(one[1], rel=1e-6)
    assert one[2].tolist() == [4 * batch_size for _, batch_size in FEW_WINDOWS]
    assert two[2].tolist() == [2 * tokens for tokens in one[2]]


def fine_tuned(folder: Path, batch_size: int, processes: int) -> list[list[float]]:
    """Weights, losses and number of targets after three steps on records of 1 to 23 words, with prompts masked."""
    path = folder / "records.jsonl"
    lines = [json.dumps({"prompt": f"q{i}", "completion": f"a{i} " * (1 + i * i % 23)}) for i in range(24)]
    path.write_text("\n".join(lines))
    seed_everything(1, verbose=False)
    data = InstructionDataModule(
        path,
        "words",
        64,
        batch_size=batch_size,
        template="{prompt}: {completion}",
        mask_prompt=True,
        val_fraction=0.0,
        cache_dir=folder / "cache",
    )
    model = EmbeddingStub(data.vocab_size, 8, 64, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        max_steps=3,
        log_every_n_steps=1,
        logger=RunLogger(str(folder)),
        enable_checkpointing=False,
        callbacks=[Throughputs(folder / f"tokens-{processes}"), Weights(folder / f"weights-{processes}")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    weights = torch.load(folder / f"weights-{processes}")
    found = [[float(trainer.callback_metrics["train/loss"])], json.loads((folder / f"tokens-{processes}").read_text())]
    return [*found, *(weight.flatten().tolist() for weight in weights)]


class Throughputs(Callback):
    """Writes down the targets that were counted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        [throughput] = [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]
        if trainer.is_global_zero:
            self.path.write_text(json.dumps([throughput.num_tokens]))


class Weights(Callback):
    """Saves the tables after the last step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            torch.save([weight.detach().clone() for weight in pl_module.parameters()], self.path)


def test_two_processes_learn_from_masked_targets_what_one_learns(tmp_path: Path) -> None:
    code = f"""
import json, pathlib, test_distributed
folder = pathlib.Path({str(tmp_path)!r})
print(json.dumps([test_distributed.fine_tuned(folder, 4 // n, n) for n in (1, 2)]))
"""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert ended.returncode == 0, ended.stderr
    one, two = json.loads(ended.stdout.splitlines()[-1])
    for of_one, of_two in zip(one, two, strict=True):
        assert of_two == pytest.approx(of_one, rel=1e-6, abs=1e-6)
    assert one[1] == two[1] != [3 * 4 * 64]


# Without a Trainer: each process writes down its windows, by a loader made before the process group and one made after.
PLAIN_LOOP = """
import json, os, pathlib, sys
from torch import distributed
from gpt2_lit import GPTDataModule

folder = pathlib.Path(sys.argv[1])
data = GPTDataModule(folder / "train.txt", "words", context_size=4, batch_size=3, val_source=folder / "val.txt")
data.setup("fit")

def windows(loader):
    try:
        return [window for inputs, _ in loader for window in inputs[:, 0].tolist()]
    except ValueError as error:
        return str(error)

before = data.train_dataloader()
distributed.init_process_group("gloo")
after = data.train_dataloader()
found = [windows(loader) for loader in (before, after, after, data.val_dataloader())]
(folder / f"windows-{distributed.get_rank()}").write_text(json.dumps(found))
"""


@pytest.mark.parametrize("launcher", ["torchrun", "two processes"])
def test_without_a_trainer_processes_share_the_windows(tmp_path: Path, launcher: str) -> None:
    (tmp_path / "train.txt").write_text(" ".join(f"w{i:03}" for i in range(4 * 36 + 1)))
    (tmp_path / "val.txt").write_text(" ".join(f"w{i:03}" for i in range(4 * 9 + 1)))
    (tmp_path / "loop.py").write_text(PLAIN_LOOP)
    command = [str(tmp_path / "loop.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPT2_LIT_CACHE": str(tmp_path / "cache")}
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        subprocess.run([*torchrun, *command], env=environment, timeout=120, check=True)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        ranks = [environment | {"RANK": str(rank)} for rank in (0, 1)]
        processes = [subprocess.Popen([sys.executable, *command], env=rank) for rank in ranks]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]

    of_ranks = [json.loads((tmp_path / f"windows-{rank}").read_text()) for rank in (0, 1)]
    before, first, second, val = zip(*of_ranks, strict=True)
    for epoch in (first, second, before) if launcher == "torchrun" else (first, second):
        assert [len(share) for share in epoch] == [18, 18]
        assert sorted(epoch[0] + epoch[1]) == list(range(0, 4 * 36, 4))
    assert first != second
    if launcher == "two processes":
        assert all("this loader was made before the process group" in told for told in before)
    assert [len(share) for share in val] == [5, 4]
    assert sorted(val[0] + val[1]) == list(range(0, 4 * 9, 4))


# As Fabric starts them: the first windows of each batch, of two epochs and of validation, and the weights.
FABRIC_LOOP = """
import json, pathlib, sys
import torch
from lightning.fabric import Fabric
from gpt2_lit import EmbeddingModule, GPTDataModule

folder = pathlib.Path(sys.argv[1])
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
data = GPTDataModule(folder / "train.txt", "words", context_size=4, batch_size=3, val_source=folder / "val.txt")
data.setup("fit")
train, val = fabric.setup_dataloaders(data.train_dataloader(), data.val_dataloader())
torch.manual_seed(1)
model = EmbeddingModule(data.vocab_size, 8, 4)
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
before = model.token_embedding.weight.sum().item()

def step(inputs):
    fabric.backward(model(inputs).square().mean())
    optimizer.step()
    optimizer.zero_grad()
    return inputs[:, 0].tolist()

epochs = [[step(inputs) for inputs, _ in train] for _ in range(2)]
of_val = [inputs[:, 0].tolist() for inputs, _ in val]
sums = before, model.token_embedding.weight.sum().item()
(folder / f"windows-{fabric.global_rank}").write_text(json.dumps([*epochs, of_val, sums]))
fabric.barrier()
torch.distributed.destroy_process_group()  # else its threads may abort the process at its end
"""


def test_two_processes_of_fabric_train_on_the_batches_of_one_with_batches_twice_as_large(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(" ".join(f"w{i:03}" for i in range(4 * 36 + 1)))
    (tmp_path / "val.txt").write_text(" ".join(f"w{i:03}" for i in range(4 * 9 + 1)))
    (tmp_path / "loop.py").write_text(FABRIC_LOOP)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GPT2_LIT_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, str(tmp_path / "loop.py"), str(tmp_path)], env=environment, timeout=200, check=True)
    first, second = (json.loads((tmp_path / f"windows-{rank}").read_text()) for rank in (0, 1))
    alone = GPTDataModule(tmp_path / "train.txt", "words", context_size=4, batch_size=6, val_fraction=0.0)
    alone.setup("fit")
    loader = alone.train_dataloader()
    for epoch in (0, 1):
        together = [of_first + of_second for of_first, of_second in zip(first[epoch], second[epoch], strict=True)]
        assert together == [inputs[:, 0].tolist() for inputs, _ in loader]
    assert sorted(window for batch in first[2] + second[2] for window in batch) == list(range(0, 4 * 9, 4))
    assert first[3] == second[3], "their gradients were averaged"
    assert first[3][0] != first[3][1]


OTHER_DATA = """
import os, sys
from lightning.pytorch import Trainer
from gpt2_lit import EmbeddingStub, GPTDataModule

rank, options = int(os.environ.get("LOCAL_RANK", 0)), {"source": "text.txt", "tokenizer": "words", "cache_dir": "cache"}
options |= {"context_size": 4, "batch_size": 2}
of_ranks = [GPTDataModule(**(options | differing)) for differing in eval(sys.argv[1])]
for data in of_ranks if "LOCAL_RANK" not in os.environ else ():
    data.prepare_data()  # as each node does
model = EmbeddingStub(60, embed_dim=8, context_size=4)
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False, enable_checkpointing=False)
trainer.fit(model, of_ranks[rank])
"""


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        ({"source": "other.txt"}, "windows is 44 in process 0 and 89 in process 1"),
        pytest.param({"batch_size": 4}, "batch_size is 2 in process 0 and 4 in process 1", marks=pytest.mark.slow),
    ],
    ids=["text", "batch size"],
)
def test_processes_that_would_train_on_other_data_all_end_with_both_values(tmp_path, differing, message):
    (tmp_path / "train.py").write_text(OTHER_DATA)
    for name, number in (("text.txt", 201), ("other.txt", 401)):
        (tmp_path / name).write_text(" ".join(f"w{i % 50:03}" for i in range(number)))
    done = subprocess.run(
        [sys.executable, "train.py", repr([{}, differing])],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode
    assert done.stdout.count(f"the processes do not train on the same data: {message}. Give all nodes") == 2
