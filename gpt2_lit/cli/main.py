"""command line -> all of the above: trainings by LightningCLI, with their short help at once, and gpt2-lit's tools."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gpt2_lit.cli.messages import program_name

HELP = """\
Train the embedding of a GPT-2 on a text, and watch its norms in TensorBoard.

  {prog} fit                              on the tale that ships with gpt2_lit
  {prog} fit --data.source my_text.txt    on your text
  {prog} fit --config configs/chapter.yaml
  {prog} fit --config configs/finetune.yaml    on instructions with answers
  {prog} fit --ckpt_path last             resume the newest run
  {prog} validate --ckpt_path best        loss and perplexity of its best weights

commands:
{commands}

Every option, with its unit and default:  {prog} fit --help
The whole configuration, as YAML:         {prog} fit --print_config
"""
TRAINING_COMMANDS = {
    "fit": "train, and validate after each epoch",
    "validate": "loss and perplexity on the validation part of the text",
    "test": "the same on data.test_source, or on the validation part",
    "predict": "show which token the model expects next",
}


def main(args: list[str] | None = None) -> None:
    """gpt2-lit: run a command line, that of the process unless ``args`` are given."""
    args = sys.argv[1:] if args is None else args
    if args and args[0] in TRAINING_COMMANDS:
        train(args)
    else:
        with _installed():
            from gpt2_lit.cli.tool import main as use_tool
        use_tool(args, TRAINING_COMMANDS)


def train(args: list[str] | None = None) -> None:
    """train_stub.py: run the command line of a training, that of the process unless ``args`` are given."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<9}  {text}" for name, text in TRAINING_COMMANDS.items())
        print(HELP.format(prog=program_name(), commands=commands), end="")
        return
    with _installed():
        from gpt2_lit.cli.trainer_cli import run  # takes seconds: torch and lightning
    run(args, program_name())


@contextmanager
def _installed() -> Iterator[None]:
    """No traceback where this Python has not the packages: probably the environment is not active."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "gpt2_lit":
            raise
        sys.exit(
            f"error: {sys.executable} has no package {error.name}.\n"
            "  activate the environment in which gpt2_lit is installed, or install it first:\n"
            "  pip install -c constraints.txt -e ."
        )


if __name__ == "__main__":
    main()
