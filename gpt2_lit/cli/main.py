"""command line -> all of the above: the short help at once, without torch; then LightningCLI."""

import shlex
import sys

HELP = """\
Train the embedding of a GPT-2 on a text, and watch its norms in TensorBoard.

  {prog} fit                              on the tale that ships with gpt2_lit
  {prog} fit --data.source my_text.txt    on your text
  {prog} fit --config configs/chapter.yaml
  {prog} fit --ckpt_path last             resume the newest run
  {prog} validate --ckpt_path best        loss and perplexity of its best weights

commands:
  fit        train, and validate after each epoch
  validate   loss and perplexity on the validation part of the text
  test       the same on data.test_source, or on the validation part
  predict    show which token the model expects next

Every option, with its unit and default:  {prog} fit --help
The whole configuration, as YAML:         {prog} fit --print_config
"""


def main(args: list[str] | None = None) -> None:
    """Run a command line, that of the process unless ``args`` are given."""
    args = sys.argv[1:] if args is None else args
    script = sys.argv[0]
    prog = f"python {shlex.quote(script)}" if script.endswith(".py") else script.rpartition("/")[2]
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(prog=prog), end="")
        return
    # Takes seconds: torch and lightning.
    from gpt2_lit.cli.trainer_cli import run

    run(args, prog)
