"""options -> a run: LightningCLI with data and model options linked."""

import logging
import os
import re
import sys
import tempfile
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from gpt2_lit.cli.explain import raised_in, raised_where
from gpt2_lit.cli.messages import errors_as_messages, prepare_console
from gpt2_lit.cli.options import OptionParser
from gpt2_lit.cli.progress_bar import RunProgressBar
from gpt2_lit.cli.report import RunReport
from gpt2_lit.cli.run import (
    LOG_DIRECTORY,
    RunCheckpoint,
    RunLogger,
    SaveRunConfig,
    directory_of_checkpoint,
    find_checkpoint,
    is_run_logger,
)
from gpt2_lit.cli.validation import RunValidation
from gpt2_lit.data.datamodule import GPTDataModule
from gpt2_lit.data.instructions import InstructionDataModule
from gpt2_lit.errors import FileError, InvalidValue, NotPermitted, printable
from gpt2_lit.lightning_private import attributes_to_find
from gpt2_lit.monitor.monitor import EmbeddingMonitor
from gpt2_lit.monitor.stub import ADAMW, EmbeddingStub
from gpt2_lit.trust import foreign_code_of_run

TRAINER_DEFAULTS = {
    "max_epochs": 6,
    "log_every_n_steps": 5,
    "logger": {"class_path": f"{RunLogger.__module__}.{RunLogger.__name__}", "init_args": {"save_dir": LOG_DIRECTORY}},
}


TRUST_RUN = {"--trust_run", "--trust-run"}
IGNORE_RUN = {"--ignore_run_config", "--ignore-run-config"}
NAME_HELP = (
    "Name of a new run: its directory is logs/NAME, or NAME-2 and so on where that is taken. Null is the next free "
    "number, logs/version_N. A resumed run keeps its own."
)
TRUST_HELP = "With ``--ckpt_path``: run the code that the config.yaml of a run from elsewhere names."
IGNORE_HELP = "With ``--ckpt_path``: leave the config.yaml of its run out; only the options given here count."


BACKBONE_LINKS = {"model.embed_dim": "embed_dim", "data.context_size": "context_size"}
DATA_MODULES = {"text": GPTDataModule, "instructions": InstructionDataModule}
DATA_MODULE_HELP = (
    "What data.source holds: a text, or instructions with answers for fine-tuning. Each has its options, which "
    "``--data_module instructions --help`` shows."
)


class RunTrainer(Trainer):
    """Lightning's Trainer.

    Args:
        limit_train_batches: Training batches in an epoch: a whole number, or a share with a decimal point, 1.0 for all.
            Value is per process.
        limit_val_batches: The same for a validation; they are spread evenly. None is all, and at most 50 within fit.
        limit_test_batches: The same for a test.
        limit_predict_batches: The same for a prediction.
        val_check_interval: Training batches from one validation to the next, or with a decimal point a share of the
            epoch, or a time like 00:01:00:00. None is an epoch, and in longer ones 2,000 steps. The end of the training
            is always validated.
        num_sanity_val_steps: Batches to validate on before the first step. None is as many as later, and then the
            values are on the curves.
    """

    # The Trainer's own type, Union[int, float], is the same object as Union[float, int] where that was made before, and
    # then a parser reads 1 as 1.0, which is all batches.
    def __init__(
        self,
        *,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        num_sanity_val_steps: int | None = None,
        **options: Any,
    ) -> None:
        if options.get("enable_checkpointing") is False:
            options["callbacks"] = [one for one in options["callbacks"] if not isinstance(one, RunCheckpoint)]
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            val_check_interval=val_check_interval,
            num_sanity_val_steps=num_sanity_val_steps,
            **options,
        )


class EmbeddingCLI(LightningCLI):
    """LightningCLI for EmbeddingStub and one of :data:`DATA_MODULES`.

    ``vocab_size`` and ``context_size`` are options of the data alone; the model gets them from there.
    """

    def __init__(self, prog: str, data_module: str = "text") -> None:
        self.prog = prog
        self.data_module = data_module
        super().__init__(
            EmbeddingStub,
            DATA_MODULES.get(data_module, GPTDataModule),
            save_config_callback=SaveRunConfig,
            trainer_class=RunTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=42,
            parser_class=OptionParser,
            parser_kwargs={"prog": prog},
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help=NAME_HELP)
        parser.link_arguments("name", "trainer.logger.init_args.run_name")
        parser.add_argument("--trust_run", "--trust-run", action="store_true", help=TRUST_HELP)
        parser.add_argument("--ignore_run_config", "--ignore-run-config", action="store_true", help=IGNORE_HELP)
        parser.add_argument(
            "--data_module", type=Literal["text", "instructions"], default="text", help=DATA_MODULE_HELP
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EmbeddingMonitor, "monitor")
        optimizer = {"class_path": f"torch.optim.{ADAMW.func.__name__}", "init_args": dict(ADAMW.keywords)}
        parser.set_defaults({"model.optimizer": optimizer})
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.context_size", "model.context_size")
        for source, name in BACKBONE_LINKS.items():  # of a backbone that takes them
            parser.link_arguments(source, f"model.backbone.init_args.{name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        # Out of LightningCLI's sight, which would lay the options of the checkpoint over those of the command line.
        config = self.config[self.config.subcommand]
        self._ckpt_path, config.ckpt_path = config.ckpt_path, None

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        _check_links(sys.argv[1:], config)
        if config.name is not None and (not config.name.strip(". ") or {"/", "\\"}.intersection(config.name)):
            raise InvalidValue(f"--name is that of a directory among the logs, without / and \\, got {config.name!r}.")
        config.ckpt_path = self._ckpt_path
        logger = config.trainer.logger
        root = getattr(getattr(logger, "init_args", None), "save_dir", None) or LOG_DIRECTORY
        if config.trainer.default_root_dir and root == LOG_DIRECTORY:
            root = str(config.trainer.default_root_dir)
        if is_run_logger(logger):
            logger.init_args.save_dir = root
            _check_writable(root)
        if config.ckpt_path is None:
            return
        checkpoint = find_checkpoint(str(config.ckpt_path), root)
        config.ckpt_path = str(checkpoint)
        directory = directory_of_checkpoint(checkpoint)
        # A run is resumed in its directory: TensorBoard then shows one curve, not two.
        if directory and is_run_logger(logger) and logger.init_args.version is None:
            number = directory.name.removeprefix("version_")
            logger.init_args.save_dir = str(directory.parent)
            logger.init_args.version = int(number) if number.isdecimal() else directory.name

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:
            backbone = self.config[self.config.subcommand].model.backbone
            if backbone is None or (raised := raised_in(error, backbone.class_path)) is None:
                raise
            raise InvalidValue(f"--model.backbone: {backbone.class_path} raised {raised_where(raised)}.") from error

    def before_fit(self) -> None:
        for name in attributes_to_find(self.trainer):
            if not hasattr(self.model, name):
                raise InvalidValue(
                    f"the learning rate finder's attr_name must be an attribute of the model, got {name}. Leave it "
                    "out: then it is lr."
                )

    def instantiate_trainer(self, **options: Any) -> Trainer:
        config = self.config_init[self.config.subcommand].trainer
        given = config.callbacks or []
        validation = RunValidation(
            interval_is_given=config.val_check_interval is not None or config.check_val_every_n_epoch != 1,
            limit_is_given=config.limit_val_batches is not None,
            start_is_given=config.num_sanity_val_steps is not None,
        )
        callbacks = [*(given if isinstance(given, list) else [given]), validation, RunReport(self.prog)]
        # Named here, because Lightning takes others by itself where rich happens to be installed.
        if config.enable_progress_bar is not False:
            callbacks.append(RunProgressBar(refresh_rate=1 if sys.stdout.isatty() else 100))
        if config.enable_model_summary is not False:
            callbacks.append(ModelSummary())
        try:
            return super().instantiate_trainer(callbacks=callbacks, **options)
        except (ValueError, TypeError) as error:
            raise InvalidValue(f"trainer: {error}") from None
        except (MisconfigurationException, ModuleNotFoundError) as error:  # of torch_xla, for a tpu
            if config.accelerator in ("auto", "cpu"):
                raise
            here = ", ".join(_accelerators_here())
            raise InvalidValue(
                f"--trainer.accelerator {config.accelerator}: {error} This machine has: {here}. Leave the option "
                "out to use the best of them; torch.cuda.is_available() must be true for gpu."
            ) from None


def _accelerators_here() -> list[str]:
    """The accelerators that can be used, with the number of devices."""
    kinds = {name: AcceleratorRegistry[name]["accelerator"] for name in sorted(AcceleratorRegistry)}
    return [f"{name} ({kind.auto_device_count()})" for name, kind in kinds.items() if kind.is_available()]


def run(args: list[str], prog: str) -> None:
    """Run a command line of LightningCLI."""
    _keep_quiet()
    prepare_console(logging.INFO, "lightning.pytorch", "lightning.fabric")
    # A progress bar may stand on the line.
    with errors_as_messages(MisconfigurationException, start="\nerror: "):
        # Not handed over as a list: strategies that start more processes call the program again as it stands here.
        sys.argv[1:] = _with_options_of_the_run(args)
        _find_named_modules(sys.argv[1:])
        try:
            EmbeddingCLI(prog, _given(sys.argv[1:], "data_module") or "text")
        except UnpicklingError as error:  # torch's advice is to run the code
            raise InvalidValue(
                "--ckpt_path: the file is not a checkpoint of tensors and plain values, and reading it would run code. "
                f"If it is yours: {str(error).partition('WeightsUnpickler error: ')[2].partition('. ')[0]}."
            ) from None


def _with_options_of_the_run(args: list[str]) -> list[str]:
    """The command line with the configuration of the run that ``--ckpt_path`` names before it, which it overrides."""
    name = _given(args, "ckpt_path")
    if name is None:
        return args
    directories = ("trainer.logger.save_dir", "trainer.logger.init_args.save_dir", "trainer.default_root_dir")
    root = next(filter(None, (_given(args, key) for key in directories)), LOG_DIRECTORY)
    checkpoint = find_checkpoint(name, root)
    directory = directory_of_checkpoint(checkpoint)
    options = []
    if directory and not IGNORE_RUN.intersection(args):
        config = directory / "config.yaml"
        # The answer is passed to other processes of this run, which cannot ask.
        options = [*_confirm_trust(config, bool(TRUST_RUN.intersection(args))), "--config", str(config)]
    return [args[0], *options, *args[1:], f"--ckpt_path={checkpoint}"]


def _confirm_trust(config: Path, is_given: bool) -> list[str]:
    """Let only what this user has made, or trusts, name code that is then imported; the option that says so."""
    names = foreign_code_of_run(config)
    if not names:
        return []
    listed = printable("\n  ".join(map(repr, names)))
    told = f"{printable(str(config))} was not written here, or was changed, and names what would be run:\n  {listed}"
    if is_given:
        print(told, file=sys.stderr)
        return []
    if sys.stdin is not None and sys.stdin.isatty():
        print(told, file=sys.stderr)
        if input("Do you trust whoever made it? [y/N] ").strip().lower() in ("y", "yes"):
            return ["--trust-run"]
    raise NotPermitted(f"{told}\nGive --trust-run if you trust whoever made it, or --ignore-run-config and options.")


def _check_links(args: list[str], config: Any) -> None:
    """Refuse another value of what a backbone gets from elsewhere, which the parser would not take."""
    for source, name in BACKBONE_LINKS.items():
        keys = f"model.backbone.init_args.{name}", f"model.backbone.{name}"
        given = next(filter(None, (_given(args, key) for key in keys)), None)
        if given is not None and given != str(config[source]):
            raise InvalidValue(
                f"--model.backbone.{name} is {given}, and --{source} is {config[source]}: the backbone gets that one. "
                f"Leave --model.backbone.{name} out, or set --{source}."
            )


def _given(args: list[str], key: str) -> str | None:
    """The last that the command line and its configs say of an option, before there is a parser to ask."""
    found = None
    for option, value in zip(args, [*args[1:], ""], strict=True):
        name, equals, same = option.partition("=")
        value = same if equals else value
        if name.replace("-", "_") == f"__{key}":
            found = value
        elif name == "--config":
            with suppress(
                OSError, ValueError, AttributeError, yaml.YAMLError
            ):  # the parser tells what is wrong with it
                node = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
                for part in key.split("."):
                    node = (node or {}).get(part)
                found = found if node is None else str(node)
    return found


def _find_named_modules(args: list[str]) -> None:
    """Let a class path in the command line or in a config name a module of this directory.

    Last on the path, and only if one is named: no other file that lies here is ever imported.
    """
    configs = [Path(arg.removeprefix("--config=")) for arg in args if arg.endswith((".yaml", ".yml"))]
    text = " ".join([*args, *(path.read_text("utf-8", "replace") for path in configs if path.is_file())])
    roots = set(re.findall(r"(?<![\w./\\-])([A-Za-z_]\w*)\.[A-Za-z_]", text))
    here = os.getcwd()
    if here not in sys.path and any(Path(f"{root}.py").is_file() or Path(root).is_dir() for root in roots):
        sys.path.append(here)


def _check_writable(directory: str) -> None:
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise FileError(
            f"the log directory {directory} cannot be written ({error.strerror}). Set trainer.logger.save_dir to "
            "another."
        ) from None


def _keep_quiet() -> None:
    """Filter out what is not about the run: advertisements, absent TPUs, deprecations inside Lightning."""

    def matters(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(
            noise in message
            for noise in (
                "Tip: For seamless",
                "TPU available: False",
                "already configured",
                "`Trainer.fit` stopped: `max_",
            )
        )

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(matters)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message=r".*does not have many workers")  # batches take microseconds here
