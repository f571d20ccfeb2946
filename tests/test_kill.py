"""The program, stopped by each signal at each place, and going on: as it was, and with other workers and processes."""

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROGRAM, logged
from lightning.pytorch import Callback, Trainer

RUN = Path("my logs/version_0")  # a space: a command that is printed must be right in a shell
LAST = RUN / "checkpoints/last.ckpt"
EPOCH = 10  # global batches of 8 windows: 80 of the 84 training windows
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
WITHIN, END, VALIDATION = "within an epoch", "at the end of an epoch", "in a validation"


class Record(Callback):
    """Writes down each batch that a process trains on, and waits at the place where it shall be stopped.

    It is told what to do by the environment, so that the command which the program prints goes on without waiting.
    """

    def __init__(self) -> None:
        self.folder = Path(os.environ["RECORD"])
        self.place = os.environ.get("STOP")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.wait_if(WITHIN, trainer, trainer.current_epoch == 1 and batch_idx == 7)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with open(self.folder / f"rank-{trainer.global_rank}", "a") as file:
            print(json.dumps([trainer.global_step, batch.input_ids[:, 0].tolist()]), file=file, flush=True)
            os.fsync(file.fileno())

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.wait_if(VALIDATION, trainer, trainer.current_epoch == 1 and batch_idx == 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.wait_if(END, trainer, trainer.current_epoch == 1)

    def wait_if(self, place: str, trainer: Trainer, here: bool) -> None:
        if place == self.place and here and trainer.is_global_zero:
            (self.folder / "waits").touch()
            deadline = time.monotonic() + 100
            while not (self.folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.01)


class Runs:
    """Runs of the program over the same text, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Each word once, so that the first word of a window tells which one it is.
        (folder / "words.txt").write_text(" ".join(f"w{i}" for i in range(425)))
        self.undisturbed: dict[int, Path] = {}

    def options(self, workers: int, processes: int) -> list[str]:
        return [
            f"--data.num_workers={workers}",
            f"--data.batch_size={8 // processes}",
            f"--trainer.devices={processes}",
            f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}",
        ]

    def new_options(self, workers: int, processes: int) -> list[str]:
        return [
            f"--data.source={self.folder / 'words.txt'}",
            "--data.tokenizer=words",
            "--data.context_size=4",
            "--data.val_fraction=0.2",
            "--model.embed_dim=8",
            "--model.dropout=0.2",
            "--trainer.max_epochs=3",
            "--trainer.accelerator=cpu",
            "--trainer.log_every_n_steps=1",
            "--trainer.callbacks=test_kill.Record",
            "--checkpoint.every_n_steps=5",
            f"--trainer.logger.save_dir={RUN.parent}",
            *self.options(workers, processes),
        ]

    def start(self, folder: Path, command: list[str], stop: str = "") -> subprocess.Popen:
        for name in ("waits", "go", "rank-0", "rank-1"):
            (folder / name).unlink(missing_ok=True)
        return subprocess.Popen(
            command,
            cwd=folder,
            env={
                **os.environ,
                "RECORD": str(folder),
                "STOP": stop,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, folder: Path, command: list[str]) -> str:
        process = self.start(folder, command)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        return output

    def fit(self, folder: Path, *options: str) -> str:
        return self.run(folder, [*PROGRAM, "fit", *options])

    def whole(self, processes: int) -> Path:
        """The folder of a run that nobody stopped."""
        if processes not in self.undisturbed:
            folder = self.folder / f"whole-{processes}"
            folder.mkdir()
            self.fit(folder, *self.new_options(0, processes))
            self.undisturbed[processes] = folder
        return self.undisturbed[processes]

    def stop(
        self,
        folder: Path,
        number: signal.Signals,
        place: str,
        workers: int,
        processes: int,
        to_all: bool,
        twice: bool = False,
    ) -> tuple[int, str]:
        """Start a run, and send it a signal at that place: its exit status, and what it printed."""
        folder.mkdir()
        process = self.start(folder, [*PROGRAM, "fit", *self.new_options(workers, processes)], stop=place)
        deadline = time.monotonic() + 120
        while not (folder / "waits").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(process.communicate()[0])
            time.sleep(0.02)
        send = os.killpg if to_all else os.kill
        send(process.pid, number)
        time.sleep(0.3)  # for the other processes to get it too
        if twice:
            send(process.pid, number)
        else:
            (folder / "go").touch()
        output, _ = process.communicate(timeout=120)  # all have ended when the last has closed the pipe
        return process.returncode, output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("kill"))


def trained(folder: Path) -> list[list[int]]:
    """The windows of each global batch that the latest run in this folder trained on."""
    ranks = [[json.loads(line)[1] for line in path.read_text().splitlines()] for path in sorted(folder.glob("rank-*"))]
    return [list(itertools.chain(*shares)) for shares in zip(*ranks, strict=False)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / LAST, weights_only=True)["state_dict"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_that_it_goes_on(
    runs: Runs,
    folder: Path,
    number: signal.Signals,
    place: str,
    workers: int,
    processes: int,
    to_all: bool,
    thens: list[tuple[int, int]],
) -> None:
    """Stop a run, and let it go on with some workers and processes, each time from the same checkpoint."""
    status, output = runs.stop(folder / "stopped", number, place, workers, processes, to_all)
    assert status == STATUS[number], output
    before = trained(folder / "stopped")
    checkpoint = torch.load(folder / "stopped" / LAST, weights_only=True)
    saved = checkpoint["global_step"]
    reached = EPOCH + 8 if place == WITHIN else 2 * EPOCH
    command = [*PROGRAM, "fit", f"--ckpt_path={LAST}"]
    if number == signal.SIGKILL:
        assert saved == (EPOCH + 5 if place == WITHIN else 2 * EPOCH)
        assert len(before) == (EPOCH + 7 if place == WITHIN else 2 * EPOCH)
    else:
        assert saved == len(before) == reached, "the step is finished, and nothing is lost"
        assert f"stopped at step {saved}\n" in output
        assert "Traceback" not in output
        command = shlex.split(output.partition("resume:\n")[2].replace(" \\\n", " "))

    whole = trained(runs.whole(1))
    assert len(whole) == 3 * EPOCH
    for then in thens:
        again = folder / f"again-{then[0]}-{then[1]}"
        shutil.copytree(folder / "stopped", again)
        runs.run(again, [*command, *(runs.options(*then) if then != (workers, processes) else [])])
        assert before[:saved] + trained(again) == whole
        if then[1] == processes:
            undisturbed = runs.whole(processes)
            assert trained(undisturbed) == whole
            assert same(weights(again), weights(undisturbed))
            validations = logged(again / RUN)["val/loss"]
            if number == signal.SIGKILL:  # what came after the checkpoint comes again, with the same values
                validations = sorted(set(validations))
            assert validations == logged(undisturbed / RUN)["val/loss"], "each validation, once"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", [WITHIN, END, VALIDATION])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_goes_on_after_every_signal_at_every_place(
    runs: Runs, tmp_path: Path, number: signal.Signals, place: str, workers: int, processes: int
) -> None:
    ctrl_c = number == signal.SIGINT  # which a terminal sends to all processes
    thens = [(workers, processes), (2 - workers, 3 - processes)]
    check_that_it_goes_on(runs, tmp_path, number, place, workers, processes, ctrl_c, thens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "place", "processes", "to_all"),
    [
        (signal.SIGTERM, WITHIN, 2, True),
        (signal.SIGINT, WITHIN, 2, False),
        (signal.SIGTERM, VALIDATION, 1, True),
    ],
)
def test_it_does_not_matter_whether_one_process_gets_the_signal_or_all(
    runs: Runs, tmp_path: Path, number: signal.Signals, place: str, processes: int, to_all: bool
) -> None:
    check_that_it_goes_on(runs, tmp_path, number, place, 2, processes, to_all, [(2, processes)])


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_all_processes_at_once(
    runs: Runs, tmp_path: Path, number: signal.Signals, processes: int, to_all: bool
) -> None:
    status, output = runs.stop(tmp_path / "stopped", number, WITHIN, 2, processes, to_all, twice=True)
    assert status == STATUS[number], output
    # The step in which it came was not finished.
    assert len(trained(tmp_path / "stopped")) == EPOCH + 7
    assert torch.load(tmp_path / "stopped" / LAST, weights_only=True)["global_step"] == EPOCH + 5


# The cheapest of all these: a signal within the process is in test_run.py, one to the workers in test_loaders.py.
@pytest.mark.parametrize(
    ("number", "place", "workers", "processes", "then"),
    [
        pytest.param(signal.SIGTERM, WITHIN, 0, 2, (0, 1), id="SIGTERM to one of two processes"),
        pytest.param(signal.SIGKILL, VALIDATION, 0, 1, (2, 1), id="SIGKILL, in a validation"),
    ],
)
def test_a_run_that_is_stopped_by_a_signal_goes_on(
    runs: Runs, tmp_path: Path, number: signal.Signals, place: str, workers: int, processes: int, then: tuple[int, int]
) -> None:
    check_that_it_goes_on(runs, tmp_path, number, place, workers, processes, False, [then])
