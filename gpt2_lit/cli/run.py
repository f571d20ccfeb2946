"""a run -> a directory of its own: curves, config.yaml, and the checkpoints from which it resumes."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from gpt2_lit.cli.signals import StopSignals
from gpt2_lit.embedding.pretrained import read_checkpoint
from gpt2_lit.errors import DISK_ERRORS, FileError, InvalidValue, MissingFile, without_secrets
from gpt2_lit.lightning_private import (
    before_validation,
    is_last_batch,
    validates_only_to_stop,
    validation_begins_again,
    validation_follows,
)
from gpt2_lit.store.storage import put_in_place, sync_directory
from gpt2_lit.text.files import is_url
from gpt2_lit.trust import mark_as_made_here

LOG_DIRECTORY = "logs"
_LOG = getLogger(__name__)


class RunLogger(TensorBoardLogger):
    """Writes the curves of a run for TensorBoard, into ``save_dir/version_N``.

    Args:
        save_dir: Directory of all runs.
        version: Number of the run, or a name for its directory. None is the next free number, or, with
            ``--ckpt_path``, that of the run that is resumed.
        run_name: Name for the directory of a new run in place of its number; NAME-2 and so on where it is taken.
    """

    # Without **kwargs: what is not an option here is neither in --help nor in config.yaml.
    def __init__(
        self, save_dir: str = LOG_DIRECTORY, version: int | str | None = None, run_name: str | None = None
    ) -> None:
        super().__init__(save_dir, name="", version=version, default_hp_metric=False)
        self._run_name = run_name
        self._number = version
        self._made = False

    @property
    def version(self) -> int | str:
        """Number or name of the run. Asking for it claims a free number: runs that start together get one each."""
        if self._number is None:
            if not _is_rank_zero():  # trainer.log_dir, which is what counts, is that of rank 0
                return super().version
            root = Path(self.root_dir)
            self._number = _claim_name(root, self._run_name) if self._run_name else _claim_number(root)
            self._made = True
        return self._number

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer, whose errors name the directory; a dummy but on rank 0."""
        writer = super().experiment
        events = getattr(writer, "file_writer", None)
        for name in ("add_event", "flush", "close"):
            if events is not None and name not in vars(events):
                vars(events)[name] = self._explained(getattr(events, name))
        return writer

    def _explained(self, write: Callable[..., None]) -> Callable[..., None]:
        def explained(*args: Any, **options: Any) -> None:
            try:
                write(*args, **options)
            except OSError as error:
                if error.errno not in DISK_ERRORS or isinstance(error, FileError):
                    raise
                raise FileError(
                    f"the curves in {self.log_dir} cannot be written ({error.strerror}). Make room and resume from the "
                    "last checkpoint, or set trainer.logger.save_dir to another disk."
                ) from error

        return explained

    def discard(self) -> None:
        """Delete the directory of a run that came to nothing, if this logger has made it."""
        if self._made:
            self.finalize("failed")  # closes its files
            shutil.rmtree(self.log_dir, ignore_errors=True)


def run_directory(trainer: Trainer) -> Path | None:
    """The directory of a trainer's run; None without a logger, and in a trial with ``fast_dev_run``."""
    log_dir = trainer.log_dir  # a collective operation: all processes must ask
    is_trial = getattr(trainer, "fast_dev_run", False)
    return Path(log_dir) if log_dir and trainer.loggers and not is_trial else None


def is_run_logger(config: Any) -> bool:
    """Whether a configured logger is a RunLogger."""
    return hasattr(config, "class_path") and config.class_path.endswith(f".{RunLogger.__name__}")


class SaveRunConfig(SaveConfigCallback):
    """Saves the whole configuration of a run as config.yaml in its directory; a former one becomes config-N.yaml.

    A run that fails before its first step leaves no directory.
    """

    _first_step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Not yet: this configuration may not fit its checkpoint, and must then not replace the one that does."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step
        directory = run_directory(trainer)
        if directory is None or not trainer.is_global_zero:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "config.yaml"
        config = self.config.clone()
        config.ckpt_path = None  # without these, the same options start another run
        config.trust_run = config.ignore_run_config = False
        if "continue_with_other_data" in config.data:
            config.data.continue_with_other_data = False
        for name in ("source", "val_source", "test_source"):
            config.data[name] = _kept(config.data[name])
        if is_run_logger(config.trainer.logger):
            config.trainer.logger.init_args.version = None
        with _whole(path) as aside:
            self.parser.save(config, aside, skip_none=False, overwrite=True, multifile=False)
            if path.exists() and path.read_bytes() != aside.read_bytes():
                number = 1
                while (former := directory / f"config-{number}.yaml").exists():
                    number += 1
                shutil.copyfile(path, former)
        mark_as_made_here(path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._first_step in (None, trainer.global_step):  # before the end of the first step
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger):
                    logger.discard()


def _kept(source: Any) -> Any:
    """A source, or several, as config.yaml keeps them: without passwords and tokens of URLs."""
    if isinstance(source, list | tuple):
        return [_kept(one) for one in source]
    return without_secrets(source) if isinstance(source, str) and is_url(source) else source


class RunCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` in the directory of a run, and stops it politely.

    Without a logger a run has no directory, and nothing is saved. docs/resume.md says what a checkpoint holds, and what
    Ctrl-C and SIGTERM do.

    Args:
        every_n_steps: Optimizer steps from one last.ckpt to the next. It is also saved at the end of each epoch, and
            when the training ends or is stopped.
        monitor: Name of the logged value that is lowest for best.ckpt. While it is not logged there is no such file.
        keep_last: How many of the last checkpoints stay: above 1 each last.ckpt is also step-N.ckpt, after step N, and
            the oldest ones beyond this number are deleted.

    Raises:
        ValueError: If ``every_n_steps`` or ``keep_last`` is below 1.
    """

    def __init__(self, every_n_steps: int = 500, monitor: str = "val/loss", keep_last: int = 1) -> None:
        if every_n_steps < 1:
            raise InvalidValue(f"every_n_steps must be at least 1, got {every_n_steps}. Set checkpoint.every_n_steps.")
        if keep_last < 1:
            raise InvalidValue(f"keep_last must be at least 1, got {keep_last}. Set checkpoint.keep_last.")
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.keep_last = keep_last
        self.directory: Path | None = None
        self.best_score = float("inf")
        self.best_model_path = self.last_model_path = ""  # a Trainer reads the first for ckpt_path="best"
        self._seen_step = 0
        self._step_is_done = True
        self._saving_is_due = False
        self._stopping = False
        self._validates_only_to_stop = False
        self._signals = StopSignals()
        self._random_states: dict[str, torch.Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        directory = run_directory(trainer)
        self.directory = directory / "checkpoints" if directory else None
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _DirectIO()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.directory:
            self._signals.take(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step
        self._step_is_done = True
        self._stopping = False
        self._restore_random_states()
        if trainer.global_step:  # resumed
            self._name_files(["best.ckpt", "last.ckpt"])
        elif trainer.is_global_zero:
            self._tell_of_former_run()
        if self.directory:
            self._signals.take(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the end of the batch before, after which Lightning writes its losses.
        self._stop_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between two steps there is half of an accumulated gradient, which no checkpoint holds.
        self._step_is_done = trainer.global_step > self._seen_step
        if not self._step_is_done:
            return
        self._saving_is_due = (
            trainer.should_stop
            or trainer.global_step == trainer.max_steps
            or trainer.global_step // self.every_n_steps > self._seen_step // self.every_n_steps
        )
        self._seen_step = trainer.global_step
        self._validates_only_to_stop = validates_only_to_stop(trainer)
        # Resuming from here would skip the validation that is due, and the end of the epoch.
        if not validation_follows(trainer) and not is_last_batch(trainer):
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_and_stop_in_validation(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._save_and_stop_in_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or score is None:
            return
        if score < self.best_score or not math.isfinite(self.best_score):  # also NaN, until there is a better one
            self.best_score = float(score)
            self._save(trainer, "best.ckpt")
            if self._validates_only_to_stop:
                self._save(trainer, "last.ckpt")  # with this score: no validation comes when it is resumed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch that max_steps cut off is not over: it is resumed from what was saved at its last step.
        if is_last_batch(trainer):
            self._saving_is_due = True
            self._save_if_due(trainer)
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._signals.give_back()

    def state_dict(self) -> dict[str, Any]:
        random_states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            random_states["cuda"] = torch.cuda.get_rng_state()
        return {"best_score": self.best_score, "random_states": random_states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self._random_states = state_dict.get("random_states", {})

    def _restore_random_states(self) -> None:
        """Let dropout continue where it was.

        The states are those of rank 0. All ranks have the same: they begin with one seed, and loading data draws no
        numbers.
        """
        states, self._random_states = self._random_states, {}
        if "cpu" in states:
            torch.set_rng_state(states["cpu"].cpu())
        if "cuda" in states and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(states["cuda"].cpu())

    def _save_and_stop_in_validation(self, trainer: Trainer) -> None:
        # Within an accumulated step the end of the step is waited for.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._step_is_done:
            self._save_if_due(trainer)
            self._stop_if_asked(trainer)

    def _tell_of_former_run(self) -> None:
        """Python's ``ckpt_path="last"`` finds what ModelCheckpoint wrote, and nothing here."""
        if self.directory and (last := self.directory / "last.ckpt").exists():
            _LOG.warning(
                f"{last} is of a former training and will be replaced: this one begins anew. To resume that one, give "
                f'its path: ckpt_path="{last}".'
            )

    def _save_if_due(self, trainer: Trainer) -> None:
        self._stopping = self._signals.stop_is_wanted(trainer)
        if self._stopping or self._saving_is_due:
            self._saving_is_due = False
            begins_again = trainer.validating and not self._validates_only_to_stop
            with validation_begins_again(trainer) if begins_again else nullcontext():
                self._save(trainer, "last.ckpt")
            if self.keep_last > 1 and self.directory and trainer.is_global_zero:
                _keep(self.directory, trainer.global_step, self.keep_last)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._stopping:
            self._signals.end_program(trainer)

    def _save(self, trainer: Trainer, name: str) -> None:
        if self.directory is None:
            return
        is_before = trainer.validating and self._validates_only_to_stop
        with (
            _whole(self.directory / name, trainer.is_global_zero) as aside,
            before_validation(trainer) if is_before else nullcontext(),
        ):
            trainer.save_checkpoint(aside, weights_only=False)  # with the optimizer's state
        trainer.strategy.barrier()
        self._name_files([name])

    def _name_files(self, names: list[str]) -> None:
        """Name those files that are there: of this run, not of another that had the directory before."""
        found = {
            name: str(self.directory / name) for name in names if self.directory and (self.directory / name).exists()
        }
        self.best_model_path = found.get("best.ckpt", self.best_model_path)
        self.last_model_path = found.get("last.ckpt", self.last_model_path)


def _keep(directory: Path, step: int, num_kept: int) -> None:
    """Give last.ckpt a second name, that of its step, and delete the oldest of those beyond ``num_kept``."""
    last = directory / "last.ckpt"
    with _whole(directory / f"step-{step}.ckpt") as aside:
        try:
            os.link(last, aside)  # takes no room
        except OSError:  # a directory, sharded by a strategy; or a file system without links
            shutil.copytree(last, aside) if last.is_dir() else shutil.copy2(last, aside)
    # By age and not by number: a run that was resumed from before them may have left files of later steps.
    for old in sorted(directory.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)[:-num_kept]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def find_checkpoint(name: str, log_directory: str | Path = LOG_DIRECTORY) -> Path:
    """The checkpoint file that ``--ckpt_path`` names: a path, or ``last`` or ``best`` of the newest run, which is told.

    Raises:
        FileNotFoundError: If there is none. It names the newest run, and the newest one that has such a file.
    """
    if name not in ("last", "best"):
        path = Path(name)
        if not path.exists():
            raise MissingFile(
                f"--ckpt_path: there is no file {path}. Give the path of a .ckpt file, or last or best for that of the "
                "newest run."
            )
        return path
    runs = _newest_first(Path(log_directory))
    found = [path for run in runs if (path := run / "checkpoints" / f"{name}.ckpt").exists()]
    if not found:
        newest = f" The newest is {runs[0]} ({_age(_last_written(runs[0]))})." if runs else ""
        raise MissingFile(
            f"--ckpt_path {name}: no run in {Path(log_directory).resolve()} has a {name}.ckpt.{newest} Leave "
            "--ckpt_path out to start a run, or give the path of a .ckpt file."
        )
    if not found[0].is_relative_to(runs[0]):
        raise MissingFile(
            f"--ckpt_path {name}: the newest run, {runs[0]} ({_age(_last_written(runs[0]))}), has no {name}.ckpt. The "
            f"newest that has one is {_described(found[0])}: give this path if you mean it."
        )
    _LOG.info(f"--ckpt_path {name}: {_described(found[0])}")
    return found[0]


def _newest_first(root: Path) -> list[Path]:
    """The runs in a directory of logs, the newest first; other loggers put a directory between."""
    times = {run: _last_written(run) for run in (root, *root.glob("*/"), *root.glob("*/*/"))}
    return sorted((run for run in times if times[run]), key=lambda run: times[run], reverse=True)


def _last_written(run: Path) -> float:
    """When a run has begun or has saved something, whichever is later; 0 for what is not a run."""
    files = [run / "config.yaml", *run.glob("checkpoints/*.ckpt")]
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def _described(checkpoint: Path) -> str:
    """A checkpoint with its step and age."""
    age = _age(checkpoint.stat().st_mtime)
    try:
        return f"{checkpoint} (step {read_checkpoint(checkpoint)['global_step']:,}, {age})"
    except Exception:  # who reads all of it tells what is wrong with it
        return f"{checkpoint} ({age})"


def _age(time_then: float) -> str:
    """How long ago something was, in its largest unit.

    Example:
        >>> _age(time.time() - 7300)
        '2 hours ago'
    """
    seconds = int(time.time() - time_then)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if number := seconds // length:
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "less than a minute ago"


def directory_of_checkpoint(checkpoint: Path) -> Path | None:
    """The directory of the run that a checkpoint belongs to; None if it lies elsewhere."""
    directory = checkpoint.parent.parent
    return directory if checkpoint.parent.name == "checkpoints" and (directory / "config.yaml").exists() else None


class _DirectIO(TorchCheckpointIO):
    """Writes to the path itself. Lightning's own writes to TMPDIR first, which may be small, or on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch tells of a full disk as of a damaged zip file
                raise error.__context__ from None
            raise


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _claim_number(root: Path) -> int:
    """The number after the highest of the runs, as a directory made here and by nobody else."""
    root.mkdir(parents=True, exist_ok=True)
    names = [path.name.removeprefix("version_") for path in root.glob("version_*")]
    number = max((int(name) + 1 for name in names if name.isdecimal()), default=0)
    while True:
        try:
            (root / f"version_{number}").mkdir()
            return number
        except FileExistsError:
            number += 1


def _claim_name(root: Path, name: str) -> str:
    """A name, or the first of name-2, name-3 and so on that is free, as a directory made here and by nobody else."""
    root.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        free = name if number == 1 else f"{name}-{number}"
        with suppress(FileExistsError):
            (root / free).mkdir()
            return free
    raise AssertionError("numbers do not end")


@contextmanager
def _whole(path: Path, is_writer: bool = True) -> Iterator[Path]:
    """A path to write to, renamed once its bytes are on the disk; on an error it goes, and the former file stays."""
    aside = path.with_name(f"{path.name}.tmp")
    try:
        with put_in_place(aside, path) if is_writer else nullcontext():
            yield aside
        if is_writer:
            sync_directory(path.parent)
    except OSError as error:
        if not error.errno:
            raise
        raise FileError(
            f"{path} cannot be written ({error.strerror or error}); a former one stays as it is. Make room, or set "
            "trainer.logger.save_dir to another disk."
        ) from error
