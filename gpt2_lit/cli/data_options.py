"""GPTDataModule's signature -> options of gpt2-lit, from its source: to import it takes seconds, for torch."""

import argparse
import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from docstring_parser import parse

SOURCE = Path(__file__).parents[1] / "data" / "datamodule.py"
# Without influence on the tokens, and on the windows of training and their order.
LEFT_OUT = {"source", "test_source", "num_workers", "pin_memory", "document_ids", "continue_with_other_data"}


@cache
def data_options() -> dict[str, dict[str, Any]]:
    """What ``add_argument`` needs for each option of the data, by its name."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    [cls] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GPTDataModule"]
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


def add_data_options(parser: argparse._ActionsContainer, names: Collection[str]) -> None:
    """Give a parser these options. One that is not given is None."""
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", **data_options()[name])


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the data that were given."""
    values = {name: getattr(options, name, None) for name in data_options()}
    return {name: False if value == "false" else value for name, value in values.items() if value is not None}


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
