"""command line -> options: LightningCLI's parser, with a readable help and errors of a few lines."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from gpt2_lit.errors import printable

# Lightning's names ways that have no effect here.
CKPT_PATH_HELP = (
    "A .ckpt file, or last or best for that of the newest run. The options of its run count, but for those given here; "
    "fit resumes the run, in its directory. (default: null)"
)


class HelpFormatter(DefaultHelpFormatter):
    """Leaves out the hundreds of known subclasses of every class-typed option, and the usage that names all options."""

    def __init__(self, prog: str, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("max_help_position", 8)
        super().__init__(prog.replace(" [options]", ""), *args, **kwargs)

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **kwargs: Any) -> None:
        actions = list(actions)
        if usage is None and len(actions) > 10:
            usage = "%(prog)s [--config FILE] [--OPTION VALUE ...]"
        super().add_usage(usage, actions, *args, **kwargs)

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and textwrap.fill(_plain(heading), self._width - 1))  # a colon follows

    def add_argument(self, action: argparse.Action) -> None:
        if not any(option.endswith(".help") for option in action.option_strings):  # the option's own text names it
            super().add_argument(action)

    def _expand_help(self, action: argparse.Action) -> str:
        if action.dest == "ckpt_path":
            return CKPT_PATH_HELP
        text = super()._expand_help(action)
        text = re.sub(r", known subclasses: [\w., ]*\)$", f"; --{action.dest}.help CLASS for its options)", text)
        return _plain(text)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        takes_class = bool(getattr(action, "extra_help", str)())
        return "CONFIG" if takes_class else super()._get_default_metavar_for_optional(action)


def _plain(text: str) -> str:
    """A text without the marks of reStructuredText."""
    return re.sub(r":\w+:`[~!]?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")


class OptionParser(LightningArgumentParser):
    """Says in a few lines what is wrong with an option, and what may have been meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # or --trainer.max_epoch would pass as --trainer.max_epochs
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        if not self.exit_on_error:  # a parser within the parser: the outer one tells
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        text, meant = explain(parser, message)
        hint = f"\n  did you mean {' or '.join(meant)}?" if meant else ""
        self.exit(2, f"error: {printable(text)}{hint}\n  for all options: {prog} --help\n")


def explain(parser: ArgumentParser, message: str) -> tuple[str, list[str]]:
    """What is wrong, and what may have been meant, read from the messages of jsonargparse 4."""
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        name = match[1].partition("=")[0]
        return f"there is no option {name}", [f"--{key}" for key in _closest(name.lstrip("-"), _keys(parser))]
    if match := re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message, re.S):
        commands = re.findall(r"\w+", match[2])
        return f"there is no command {match[1]}, only {', '.join(commands)}", _closest(match[1], commands)
    if match := re.search(r"does not accept option '([^']+)'|^Option '([^']+)' is not accepted", message):
        key = match[1] or match[2]
        group = re.match(r"Group '([^']+)'", message)
        key = f"{group[1]}.{key}" if group else key
        return f"there is no key {key!r} to configure", _closest(key, _keys(parser))
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted", message):
        option = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
        class_path = re.search(r"class_path=?:? ?'([\w.]+)'", message)
        if class_path is None:
            return f"there is no option --{option}.{match[1]}", _closest(f"{option}.{match[1]}", _keys(parser))
        meant = _closest(match[1], _class_arguments(class_path[1]))
        owner = class_path[1].rpartition(".")[2]
        return f"--{option}: {owner} has no argument {match[1]!r}", [f"--{option}.{name}" for name in meant]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "\n  ".join(line if len(line) < 200 else f"{line[:200]} ..." for line in lines[:4]), []


def _keys(parser: ArgumentParser) -> list[str]:
    """Every key that the parser takes, and the arguments of the classes that options hold by default."""
    keys = parser.get_defaults(skip_validation=True).keys()
    return [key.removesuffix(".class_path").replace(".init_args", "") for key in keys]


def _class_arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        owner = getattr(import_module(module), name)
        return ArgumentParser(exit_on_error=False).add_class_arguments(owner, fail_untyped=False)
    except Exception:  # only a suggestion depends on it
        return []


def _closest(word: str, known: Iterable[str]) -> list[str]:
    """The known words most like one; the last part counts twice, so that --lr finds --model.optimizer.lr."""

    def likeness(key: str) -> float:
        whole, last = [
            difflib.SequenceMatcher(None, a, b).ratio()
            for a, b in ((word, key), (word.rpartition(".")[2], key.rpartition(".")[2]))
        ]
        return (whole + last) / 2

    found = {key: likeness(key) for key in known}
    best = max(found.values(), default=0.0)
    return [key for key, like in found.items() if like >= max(0.6, best - 0.02)][:3]
