"""options -> a run: LightningCLI with the two sides linked, and what a run tells before and after."""

import logging
import math
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelSummary, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from gpt2_lit.cli.options import OptionParser
from gpt2_lit.cli.run import (
    LOG_FOLDER,
    RunCheckpoint,
    RunLogger,
    SaveRunConfig,
    find_checkpoint,
    folder_of,
    is_run_logger,
    run_folder,
)
from gpt2_lit.data.datamodule import GPTDataModule
from gpt2_lit.data.windows import Batch
from gpt2_lit.lightning_private import batches_trained
from gpt2_lit.monitor.counts import sample, token_counts, unigram_perplexity
from gpt2_lit.monitor.monitor import NORM_TAGS, EmbeddingMonitor
from gpt2_lit.monitor.stub import EmbeddingStub

TRAINER_DEFAULTS = {
    "max_epochs": 6,
    "log_every_n_steps": 5,
    "logger": {"class_path": f"{RunLogger.__module__}.{RunLogger.__name__}", "init_args": {"save_dir": LOG_FOLDER}},
}


class EmbeddingCLI(LightningCLI):
    """LightningCLI for EmbeddingStub and GPTDataModule.

    ``vocab_size`` and ``context_size`` are options of the data alone; the model gets them from there.
    """

    def __init__(self, prog: str) -> None:
        self.prog = prog
        super().__init__(
            EmbeddingStub,
            GPTDataModule,
            save_config_callback=SaveRunConfig,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=42,
            parser_class=OptionParser,
            parser_kwargs={"prog": prog},
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EmbeddingMonitor, "monitor")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.context_size", "model.context_size")

    def before_instantiate_classes(self) -> None:
        assert self.subcommand, "main() shows the help when there is none"
        config = self.config[self.subcommand]
        logger = config.trainer.logger
        if not is_run_logger(logger):
            return
        if config.trainer.default_root_dir and logger.init_args.save_dir == LOG_FOLDER:
            logger.init_args.save_dir = str(config.trainer.default_root_dir)
        _check_writable(logger.init_args.save_dir)
        # A run that goes on does so in its folder: TensorBoard then shows one curve, not two.
        if config.get("ckpt_path") is None:
            return
        checkpoint = find_checkpoint(str(config.ckpt_path), logger.init_args.save_dir)
        config.ckpt_path = str(checkpoint)
        folder = run_folder(checkpoint)
        if folder and logger.init_args.version is None:
            number = folder.name.removeprefix("version_")
            logger.init_args.save_dir = str(folder.parent)
            logger.init_args.version = int(number) if number.isdecimal() else folder.name

    def _parse_ckpt_path(self) -> None:
        """Leave the options as they are: LightningCLI would lay those of the checkpoint over the command line's."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config["enable_checkpointing"] is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, RunCheckpoint)]
        # Named here, because Lightning takes others by itself where rich happens to be installed.
        if config["enable_progress_bar"] is not False:
            callbacks.append(RunProgressBar(refresh_rate=1 if sys.stdout.isatty() else 100))
        if config["enable_model_summary"] is not False:
            callbacks.append(ModelSummary())
        try:
            return super()._instantiate_trainer(config, [RunReport(self.prog), *callbacks])
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(f"trainer: {error}") from None


class RunProgressBar(TQDMProgressBar):
    """Lightning's progress bar with short names, and the time that the whole run still takes."""

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        trainer: Trainer = args[0]
        self.begun = time.perf_counter()
        self.batches_before = batches_trained(trainer)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown = {
            "train/loss": ("loss", "{:.3f}"),
            "val/loss": ("val loss", "{:.3f}"),
            "throughput/tokens_per_second": ("tokens/s", "{:,.0f}"),
            "throughput/data_wait_fraction": ("data wait", "{:.0%}"),
        }
        # Under its own name: what another model logs for the bar. The perplexity is in the table at the end.
        metrics = {tag: value for tag, value in super().get_metrics(trainer, pl_module).items() if tag != "v_num"}
        metrics.pop("val/perplexity", None)
        named = {name: text.format(metrics.pop(tag)) for tag, (name, text) in shown.items() if tag in metrics}
        left = self._seconds_left(trainer)
        return named | metrics | ({} if left is None else {"left": _minutes(left)})

    def _seconds_left(self, trainer: Trainer) -> float | None:
        """From the time that the batches of this run took, their validations among it; None if there is no end."""
        trained = batches_trained(trainer)
        left = (
            math.inf
            if trainer.max_epochs in (None, -1)
            else trainer.max_epochs * trainer.num_training_batches - trained
        )
        if trainer.max_steps >= 0:
            left = min(left, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
        if trainer.sanity_checking or trained == self.batches_before or math.isinf(left):
            return None
        return max(left, 0) * (time.perf_counter() - self.begun) / (trained - self.batches_before)


class RunReport(Callback):
    """Tells what a run works on, what came of it, where its results are, and how to go on."""

    REPORTED = ("train/loss", *NORM_TAGS.values())

    def __init__(self, prog: str) -> None:
        self.prog = prog
        self.num_tokens = 0
        self.seconds = 0.0
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.best_val_loss = math.inf

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and isinstance(trainer.datamodule, GPTDataModule):
            print(f"\n{trainer.datamodule.summary()}\n", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.num_tokens += batch[0].numel() * trainer.world_size
        if len(self.first) < len(self.REPORTED):
            self.first = self._values(trainer) | self.first

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            self.best_val_loss = min(self.best_val_loss, trainer.callback_metrics["val/loss"].item())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.perf_counter() - self.begun
        self.last = self._values(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("num_tokens", "seconds", "first", "best_val_loss")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def _values(self, trainer: Trainer) -> dict[str, float]:
        return {tag: trainer.callback_metrics[tag].item() for tag in self.REPORTED if tag in trainer.callback_metrics}

    def _results(self, trainer: Trainer) -> str:
        """What came of a run, on a few lines: the first and last values logged, and the best ones."""
        change = {tag: f"{self.first[tag]:.2f} -> {self.last[tag]:.2f}" for tag in self.last if tag in self.first}
        epochs = batches_trained(trainer) / trainer.num_training_batches
        lines = {
            "trained": f"{trainer.global_step:,} steps, {epochs:.3g} epochs, {self.num_tokens:,} tokens in "
            f"{_minutes(self.seconds)} min",
            "loss": change.pop("train/loss", ""),
            "best val loss": self._best(trainer),
            "mean norms": ", ".join(f"{tag.rpartition('/')[2]} {values}" for tag, values in change.items()),
        }
        return "\n".join(f"  {name:<20}  {text}" for name, text in lines.items() if text)

    def _best(self, trainer: Trainer) -> str:
        data = trainer.datamodule
        if math.isinf(self.best_val_loss) or not isinstance(data, GPTDataModule) or data.val_dataset is None:
            return ""
        unigram = unigram_perplexity(
            token_counts(data.train_dataset, data.vocab_size), sample(data.val_dataset).target_ids.numpy()
        )
        perplexity = f"{math.exp(self.best_val_loss):,.0f} ({unigram:,.0f} from the tokens' frequencies alone)"
        return f"{self.best_val_loss:.2f}, perplexity {perplexity}"

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or not trainer.is_global_zero or not isinstance(trainer.datamodule, GPTDataModule):
            return
        decode = trainer.datamodule.tokenizer.decode
        print("\n\nwhat stands there, what the model expects next, and what comes:")
        for input_ids, target_ids, expected in list(zip(*batch[:2], outputs, strict=True))[:5]:
            text, next_text, guess = (decode(ids.tolist()) for ids in (input_ids[-8:], target_ids[-1:], expected[-1:]))
            print(f"  {text!r} -> {guess!r} ({next_text!r})")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            limit = "max_steps" if trainer.global_step == trainer.max_steps else "max_epochs"
            longer = f" --trainer.{limit} {2 * (getattr(trainer, limit) or 1)}"
            results = f"\n{self._results(trainer)}\n" if self.last and trainer.is_global_zero else ""
            self._tell_where(trainer, "train for longer", longer, results)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit):
            self._tell_where(trainer, "go on", "", f"\nstopped at step {trainer.global_step}\n")
        elif isinstance(exception, KeyboardInterrupt):  # outside of the training, where RunCheckpoint sees to it
            raise SystemExit(128 + signal.SIGINT) from None

    def _tell_where(self, trainer: Trainer, purpose: str, options: str, news: str = "") -> None:
        folder = folder_of(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        checkpoint = shlex.quote(str(folder / "checkpoints" / "last.ckpt"))
        print(
            f"{news}\n  logs and checkpoints  {folder}\n"
            f"  look at the norms     tensorboard --logdir {shlex.quote(str(folder.parent))}, then open\n"
            "                        http://localhost:6006/?tagFilter=embedding_&smoothing=0#timeseries\n"
            f"  {purpose:<20}  {self.prog} fit --ckpt_path {checkpoint}{options}",
            flush=True,
        )


def _minutes(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours before them where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def run(args: list[str], prog: str) -> None:
    """Run a command line of LightningCLI; a mistake of the user's ends it with a message, not with a traceback."""
    _keep_quiet()
    _let_limits_be_whole_numbers()
    try:
        # Not handed over as a list: strategies that start more processes call the program again as it stands here.
        sys.argv[1:] = _with_options_of_the_run(args)
        EmbeddingCLI(prog)
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"\nerror: {message}")  # a progress bar may stand on the line


def _with_options_of_the_run(args: list[str]) -> list[str]:
    """Put the configuration of the run that ``--ckpt_path`` names in front, where the other options win over it."""
    name = _option(args, "--ckpt_path")
    if name is None:
        return args
    root = _option(args, "--trainer.logger.save_dir") or _option(args, "--trainer.default_root_dir") or LOG_FOLDER
    checkpoint = find_checkpoint(name, root)
    folder = run_folder(checkpoint)
    options = ["--config", str(folder / "config.yaml")] if folder else []
    return [args[0], *options, *args[1:], f"--ckpt_path={checkpoint}"]


def _option(args: list[str], name: str) -> str | None:
    values = [arg.partition("=")[2] for arg in args if arg.startswith(f"{name}=")]
    values += [value for option, value in pairwise(args) if option == name]
    return values[-1] if values else None


def _check_writable(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"the log folder {folder} cannot be written ({error.strerror}). Set trainer.logger.save_dir to another."
        ) from None


def _is_for_the_user(error: Exception) -> bool:
    """Whether an error is about what the user gave: raised by a check of ours, by the Trainer's, or by the disk."""
    if isinstance(error, (MisconfigurationException, OSError)):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return (
        isinstance(error, (ValueError, TypeError, KeyError, IndexError))
        and Path(__file__).parents[1] in Path(raised_in).parents
    )


def _let_limits_be_whole_numbers() -> None:
    """Make ``--trainer.limit_train_batches 1`` one batch: Trainer's types let a parser read it as 1.0, all of them."""
    annotations = Trainer.__init__.__annotations__
    for name in [name for name in annotations if name.startswith("limit_")]:
        annotations[name] = int | float | None


def _keep_quiet() -> None:
    """Leave out what says nothing about the user's run: advertisements, absent TPUs, deprecations inside Lightning."""

    def matters(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(
            noise in message for noise in ("Tip: For seamless", "TPU available: False", "already configured")
        )

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(matters)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message=r".*does not have many workers")  # batches take microseconds here
