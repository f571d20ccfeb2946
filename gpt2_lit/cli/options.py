"""command line -> options: LightningCLI's parser, with a readable help and errors of a few lines."""

import argparse
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from gpt2_lit.cli.explain import explain
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

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The general options, then ours of data, model, checkpoint and monitor; Lightning's are the last."""
        groups: Any = self._action_groups  # declared as a Sequence, and a list
        groups.sort(key=_place)
        return super().format_help(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        if not self.exit_on_error:  # a parser within the parser: the outer one tells
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        text, meant = explain(parser, message, ex)
        hint = f"\n  did you mean {' or '.join(meant)}?" if meant else ""
        self.exit(2, f"error: {printable(text)}{hint}\n  for all options: {prog} --help\n")


def _place(group: Any) -> int:
    """Where a group of options stands in the help."""
    prefixes = [action.dest.partition(".")[0] for action in group._group_actions if "." in action.dest]
    places = ["", "data", "model", "checkpoint", "monitor", "trainer"]
    prefix = prefixes[0] if prefixes else ""
    return places.index(prefix) if prefix in places else len(places) - 1
