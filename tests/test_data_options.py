import argparse
import inspect
from typing import Any

import pytest

from gpt2_lit import GPTDataModule, InstructionDataModule
from gpt2_lit.cli.data_options import LEFT_OUT, add_data_options, all_options, data_options, given
from gpt2_lit.cli.tool import RECIPE_OPTIONS
from gpt2_lit.text.readers import TextOptions


def parse(*args: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_data_options(parser, data_options())
    return given(parser.parse_args(args))


@pytest.mark.parametrize(("name", "made"), [("text", GPTDataModule), ("instructions", InstructionDataModule)])
def test_every_option_of_a_data_module_is_one_of_the_tool_or_left_out_and_is_explained_with_its_default(
    name: str, made: type
) -> None:
    parameters, options = inspect.signature(made).parameters, data_options(name)
    assert list(options) == [name for name in parameters if name not in LEFT_OUT]
    assert set(parameters) >= LEFT_OUT - {"document_ids"}
    for name, option in options.items():
        default = parameters[name].default
        assert option["help"].partition(" (default")[0].endswith(".")
        assert option["help"].endswith(f"(default: {default})") == (default is not None)


def test_an_option_of_another_data_module_is_refused() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_data_options(parser, all_options())
    options = parser.parse_args(["--shuffle=length", "--no-packing", "--template={prompt} {completion}"])
    assert given(options, "instructions") == {
        "shuffle": "length", "packing": False, "template": "{prompt} {completion}"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"--packing is an option of --data-module instructions. Leave it out"):
        given(options)


def test_what_is_given_is_what_the_data_module_takes() -> None:
    args = ["--context-size=8", "--val-fraction=0", "--no-drop-last", "--strip-gutenberg", "--shuffle=false"]
    options = parse(*args, "--tokenizer=words", "--token-dtype=uint32")
    assert options == {
        "context_size": 8,
        "val_fraction": 0.0,
        "drop_last": False,
        "strip_gutenberg": True,
        "shuffle": False,
        "tokenizer": "words",
        "token_dtype": "uint32",
    }
    GPTDataModule(**(options | {"tokenizer": "gpt2"}))


def test_what_is_not_given_is_not_set() -> None:
    assert parse() == {}


@pytest.mark.parametrize("args", ["--context-size=many", "--shuffle=rows", "--token-dtype=float32"])
def test_a_value_of_another_type_is_an_error(args: str) -> None:
    with pytest.raises(argparse.ArgumentError):
        parse(args)


def test_a_store_is_prepared_with_the_options_of_the_readers_and_a_tokenizer() -> None:
    assert ("tokenizer", *(name for name in TextOptions._fields if name != "records")) == RECIPE_OPTIONS
