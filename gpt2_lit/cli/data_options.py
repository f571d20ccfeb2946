"""signatures of the data modules -> options of gpt2-lit, from their source: to import it takes seconds, for torch."""

import argparse
import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from docstring_parser import parse

from gpt2_lit.errors import InvalidValue

DATA = Path(__file__).parents[1] / "data"
SOURCES = {"text": ("datamodule.py", "GPTDataModule"), "instructions": ("instructions.py", "InstructionDataModule")}
# Without influence on the tokens, and on the windows of training and their order.
LEFT_OUT = {"source", "test_source", "num_workers", "pin_memory", "document_ids", "continue_with_other_data"}


@cache
def data_options(data_module: str = "text") -> dict[str, dict[str, Any]]:
    """What ``add_argument`` needs for each option of a data module, by its name."""
    file, name = SOURCES[data_module]
    tree = ast.parse((DATA / file).read_text(encoding="utf-8"))
    [cls] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    [init] = [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    descriptions = {param.arg_name: param.description for param in parse(ast.get_docstring(cls) or "").params}
    options = {}
    for arg, default in zip(init.args.args[1:], init.args.defaults, strict=True):
        if arg.arg not in LEFT_OUT and arg.annotation:
            value = ast.literal_eval(default)
            text = " ".join((descriptions[arg.arg] or "").split()).replace("%", "%%")
            shown = "" if value is None else f" (default: {value})"
            options[arg.arg] = {"help": text + shown} | _parsing(arg.annotation)
    return options


@cache
def all_options() -> dict[str, dict[str, Any]]:
    """Those of all data modules, as the first has them; one with choices takes those of each."""
    options: dict[str, dict[str, Any]] = {}
    for data_module in SOURCES:
        for name, option in data_options(data_module).items():
            known = options.setdefault(name, dict(option))
            if "choices" in known:
                known["choices"] = list(dict.fromkeys([*known["choices"], *option["choices"]]))
    return options


def add_data_options(parser: argparse._ActionsContainer, names: Collection[str]) -> None:
    """Give a parser these options. One that is not given is None."""
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", **all_options()[name])


def given(options: argparse.Namespace, data_module: str = "text") -> dict[str, Any]:
    """The options of the data that were given.

    Raises:
        InvalidValue: If one is not an option of this data module.
    """
    values = {name: getattr(options, name, None) for name in all_options()}
    values = {name: False if value == "false" else value for name, value in values.items() if value is not None}
    if unknown := values.keys() - data_options(data_module).keys():
        other = next(other for other in SOURCES if min(unknown) in data_options(other))
        raise InvalidValue(f"--{min(unknown).replace('_', '-')} is an option of --data-module {other}. Leave it out.")
    return values


def _parsing(annotation: ast.expr) -> dict[str, Any]:
    """How argparse reads an option of this type."""
    nodes = list(ast.walk(annotation))
    types = {node.id for node in nodes if isinstance(node, ast.Name)}
    literals = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if literals:
        return {"choices": [*literals, "false"] if "bool" in types else literals}
    if "bool" in types:
        return {"action": argparse.BooleanOptionalAction}
    number = float if "float" in types else int if "int" in types else None
    return {"type": number, "metavar": "N"} if number else {"metavar": "VALUE"}
