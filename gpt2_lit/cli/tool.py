"""command line -> tokens, looked at: `gpt2-lit`, which prepares token stores and shows what training will see."""

import argparse
import difflib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np

    from gpt2_lit.data.datamodule import GPTDataModule
    from gpt2_lit.data.windows import TokenWindows
    from gpt2_lit.store.token_store import TokenStore

_COUNTED_TOKENS = 50_000_000  # for the most frequent ones; of a larger store, that many from all over it
_DATA_OPTIONS = (
    "tokenizer",
    "context_size",
    "stride",
    "batch_size",
    "val_fraction",
    "seed",
    "shuffle",
    "text_field",
    "strip_gutenberg",
    "token_dtype",
)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line, that of the process unless ``args`` are given."""
    options = _options(sys.argv[1:] if args is None else args)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        kept = "What was finished is kept: the same command goes on." if options.run is prepare else ""
        print(f"\nstopped. {kept}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # gpt2-lit info | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tells of it at its end
        sys.exit(1)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {_in_words_of_the_tool(str(error))}")


def prepare(options: argparse.Namespace) -> None:
    from gpt2_lit.store.prepare import Recipe
    from gpt2_lit.store.prepare import prepare as make_store
    from gpt2_lit.text.readers import TextOptions

    recipe = Recipe(TextOptions(options.text_field, options.strip_gutenberg))
    done = make_store(options.source, options.store, recipe, options.processes, show_progress=not options.json)
    manifest = done.manifest
    if options.json:
        _print_json(
            {
                "store": os.path.abspath(options.store),
                "tokens": manifest.num_tokens,
                "documents": manifest.num_documents,
                "shards": len(manifest.shards),
                "shards_made": done.num_made,
                "changes": done.changes,
            }
        )
        return
    console = _console()
    for change in done.changes:
        console.print(Text(f"  {change}", style="yellow"))
    news = f"encoded {done.num_made} of {len(manifest.shards)} shards" if done.num_made else "nothing to do"
    console.print(
        Text(
            f"{options.store}: {manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents; {news}.\n"
            f"Train on it: --data.source {options.store}"
        )
    )


def info(options: argparse.Namespace) -> None:
    import numpy as np

    data, store, _ = _data(options)
    rows: dict[str, Any] = {"store": store.path, "tokenizer": data.tokenizer_name, "tokens": len(store)}
    if store.num_sources:
        rows |= {
            "sources": store.num_sources,
            "documents": store.num_documents,
            "shards": store.num_shards,
            "bytes of text": store.num_bytes,
            "bytes a token": round(store.num_bytes / max(len(store), 1), 2),
        }
    counts = np.zeros(data.vocab_size, np.int64)
    for piece in _pieces(store, _COUNTED_TOKENS):
        _check_ids(piece, data)
        counts += np.bincount(piece.astype(np.int64), minlength=data.vocab_size)
    counted = int(counts.sum())
    most = [int(token) for token in np.argsort(-counts, kind="stable")[: options.top] if counts[token]]
    frequent = [{"id": token, "text": data.tokenizer.decode([token]), "count": int(counts[token])} for token in most]
    splits = {name: {"tokens": tokens, "windows": data.num_windows[name]} for name, tokens in data.num_tokens.items()}
    if options.json:
        rows = {name.replace(" ", "_"): value for name, value in rows.items()}
        _print_json({**rows, "splits": splits, "counted_tokens": counted, "most_frequent": frequent})
        return
    table = _table("", "")
    for name, value in rows.items():
        table.add_row(name, Text(f"{value:,}" if isinstance(value, int) else str(value)))
    total = sum(split["tokens"] for split in splits.values())
    for name, split in splits.items():
        share = f"{split['tokens'] / total:.1%}"
        windows = f"{split['windows']:,} windows of {data.context_size}"
        table.add_row(name, f"{split['tokens']:,} tokens ({share}), {windows}")
    console = _console()
    console.print(table)
    if not frequent:
        return
    of = "" if counted == len(store) else f", of {counted:,} tokens from all over the store"
    console.print(Text(f"\nthe {len(frequent)} most frequent tokens{of}", style="bold"))
    table = _table("id", "token", "count", "share")
    for token in frequent:
        share = f"{token['count'] / counted:.2%}"
        table.add_row(f"{token['id']}", Text(repr(token["text"])), f"{token['count']:,}", share)
    console.print(table)


def preview(options: argparse.Namespace) -> None:
    data, _, dataset = _data(options)
    decode = data.tokenizer.decode
    found: list[dict[str, Any]] = []
    step = options.step
    while len(found) < options.windows:
        epoch, windows, _ = _share(data, dataset, step, rank=0, world_size=1)
        for window in windows[: options.windows - len(found)].tolist():
            batch = dataset[window]
            _check_ids(batch.input_ids.numpy(), data)
            _check_ids(batch.target_ids.numpy(), data)
            input_ids, target_ids = batch.input_ids.tolist(), batch.target_ids.tolist()
            found.append(
                {"step": step, "epoch": epoch, "window": window, "input_ids": input_ids, "target_ids": target_ids}
            )
        step += 1
    if options.json:
        _print_json([w | {"input": decode(w["input_ids"]), "target": decode(w["target_ids"])} for w in found])
        return
    console = _console()
    console.print(
        f"{len(dataset):,} windows of {data.context_size} tokens for training, in the order of seed {data.seed}; below "
        f"are {len(found)} from step {options.step} on.\nThe target is the input one token on: equal tokens stand in "
        "one column."
    )
    for window in found:
        inputs, targets = (
            [_visible(decode([token])) for token in window[name]] for name in ("input_ids", "target_ids")
        )
        # The targets begin one token to the right, where the input that they repeat stands.
        indent = " " * (cell_len(inputs[0]) + 1)
        head = f"step {window['step']}, epoch {window['epoch']}, window {window['window']}"
        console.print(Text(f"\n{head}", style="bold"))
        for label, line in (("input ", "|".join(inputs)), ("target", indent + "|".join(targets))):
            text = Text.assemble((f"  {label}  ", "dim"), line)
            console.print(text, no_wrap=True, overflow="ellipsis")


def verify(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from gpt2_lit.store.manifest import Manifest
    from gpt2_lit.store.verify import verify as damages_of

    manifest = Manifest.load(options.store)
    total = sum(sum(shard.file_sizes(manifest.dtype).values()) for shard in manifest.shards)
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", delay=1, disable=options.json) as bar:
        damages = damages_of(options.store, lambda num_bytes: bar.update(min(num_bytes, total - bar.n)))
    if options.json:
        _print_json({"store": os.path.abspath(options.store), "damaged": [damage._asdict() for damage in damages]})
    for damage in damages if not options.json else []:
        _console().print(Text(f"error: {damage}", style="red"))
    if damages:
        sys.exit(1)
    if not options.json:
        num_tokens, num_shards = f"{manifest.num_tokens:,}", f"{len(manifest.shards):,}"
        print(f"{options.store}: all {num_tokens} tokens in {num_shards} shards are as they were written.")


def plan(options: argparse.Namespace) -> None:
    data, _, dataset = _data(options)
    shares = []
    for rank in range(options.world_size):
        epoch, windows, batch = _share(data, dataset, options.step, rank, options.world_size)
        worker = batch % options.num_workers if options.num_workers else None
        shares.append({"process": rank, "worker": worker, "epoch": epoch, "windows": windows.tolist()})
    if options.json:
        _print_json(shares)
        return
    console = _console()
    console.print(Text(f"step {options.step}, in epoch {shares[0]['epoch']}", style="bold"))
    table = _table("process", "worker", "windows")
    for share in shares:
        worker = "-" if share["worker"] is None else str(share["worker"])
        table.add_row(str(share["process"]), worker, " ".join(map(str, share["windows"])))
    console.print(table)


def neighbours(options: argparse.Namespace) -> None:
    import torch.nn.functional as F

    from gpt2_lit.embedding.pretrained import read_tables

    path = _checkpoint(options.checkpoint)
    tokenizer = _tokenizer_of(path)
    table = F.normalize(read_tables(path).token[: tokenizer.n_vocab], dim=-1)
    found = []
    for word in options.word:
        for token_id in _ids_of_word(tokenizer, word):
            if token_id >= len(table):
                raise ValueError(
                    f"{path} has {len(table):,} tokens, and {word!r} is number {token_id} of the tokenizer."
                )
            similarity = table @ table[token_id]
            similarity[token_id] = -2.0  # below any other: a token is no neighbour of itself
            best = similarity.topk(min(options.num, len(table) - 1))
            nearest = [
                {"id": i, "text": tokenizer.decode([i]), "cosine": round(cosine, 4)}
                for i, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            found.append({"word": word, "id": token_id, "text": tokenizer.decode([token_id]), "neighbours": nearest})
    if options.json:
        _print_json(found)
        return
    console = _console()
    for token in found:
        console.print(Text(f"{token['text']!r} (id {token['id']})", style="bold"))
        table_of_word = _table("id", "token", "cosine")
        for near in token["neighbours"]:
            table_of_word.add_row(f"{near['id']}", Text(repr(near["text"])), f"{near['cosine']:.3f}")
        console.print(table_of_word)


def export(options: argparse.Namespace) -> None:
    from gpt2_lit.embedding.pretrained import read_weights, write_weights

    if not options.file.endswith(".safetensors"):
        raise ValueError(f"FILE must end in .safetensors, got {options.file}.")
    path = _checkpoint(options.checkpoint)
    weights = read_weights(path)
    write_weights(weights, options.file)
    if options.json:
        _print_json({name: list(tensor.shape) for name, tensor in weights.items()})
        return
    table = _table("tensor", "shape")
    for name, tensor in weights.items():
        table.add_row(name, str(tuple(tensor.shape)))
    console = _console()
    console.print(table)
    console.print(Text(f"\n{options.file}: EmbeddingModule.from_pretrained({options.file!r}) reads its tables."))


def _checkpoint(name: str) -> str:
    """The file that a name stands for: last and best are those of the newest run, as in a training."""
    if name not in ("last", "best"):
        return name
    from gpt2_lit.cli.run import find_checkpoint

    return str(find_checkpoint(name))


def _tokenizer_of(checkpoint: str) -> Any:
    """The tokenizer of the run that a checkpoint lies in; GPT-2's for any other file."""
    from gpt2_lit.text.bpe import gpt2_tokenizer

    options = _options_of_run(str(Path(checkpoint).absolute().parent.parent))
    if options is None or options.get("tokenizer") != "words":
        return gpt2_tokenizer()
    from gpt2_lit.data.datamodule import GPTDataModule

    return GPTDataModule(**options).tokenizer


def _ids_of_word(tokenizer: Any, word: str) -> list[int]:
    """The one token that is a word, in GPT-2's way with the blank before it, or its pieces."""
    ids = min((tokenizer.encode(text) for text in (f" {word}", word)), key=len)
    if not ids or getattr(tokenizer, "vocab", {}).get("<unk>") in ids:
        raise ValueError(f"{word!r} is not in the vocabulary of the checkpoint's tokenizer.")
    return ids


def _share(
    data: "GPTDataModule", dataset: "TokenWindows", step: int, rank: int, world_size: int
) -> tuple[int, "np.ndarray", int]:
    """What one of the processes trains on at a step: the epoch, its windows, and the number of the batch in it."""
    from gpt2_lit.data.order import Position, WindowSampler

    sampler = WindowSampler(
        len(dataset),
        data.batch_size,
        data.seed,
        data.shuffle,
        drop_last=data.drop_last or world_size > 1,
        rank=rank,
        world_size=world_size,
        position=lambda: place,
    )
    if not len(sampler):
        raise ValueError(
            f"no training batch is full: {world_size} x --batch-size {data.batch_size} windows, and the train split "
            f"has {len(dataset)}. Lower --batch-size or --stride."
        )
    place = sampler.after(Position(0, 0), step)
    if not sampler.batches_from(place.window):
        place = Position(place.epoch + 1, 0)
    return place.epoch, next(iter(sampler)), len(sampler) - sampler.batches_from(place.window)


def _data(options: argparse.Namespace) -> tuple["GPTDataModule", "TokenStore", "TokenWindows"]:
    """The data of a source as a training has it; of a run's folder, with the options of the run."""
    from gpt2_lit.data.datamodule import GPTDataModule

    given: dict[str, Any] = {name: getattr(options, name) for name in _DATA_OPTIONS}
    given = {name: False if value == "false" else value for name, value in given.items() if value is not None}
    data = GPTDataModule(**(_options_of_run(options.source) or {"source": options.source}) | given)
    data.setup("fit")
    assert data.store is not None, "setup opens it"
    assert data.train_dataset is not None, "setup cuts it"
    return data, data.store, data.train_dataset


def _options_of_run(folder: str | None) -> dict[str, Any] | None:
    """The data options in a run's config.yaml; None if it is no run's folder."""
    config = Path(folder or "") / "config.yaml"
    if folder is None or not config.exists():
        return None
    import yaml

    try:
        return dict(yaml.safe_load(config.read_text())["data"])
    except (yaml.YAMLError, TypeError, KeyError, ValueError):  # a text folder with a config.yaml of somebody else
        return None


def _pieces(store: "TokenStore", num_tokens: int) -> Iterator["np.ndarray"]:
    """All tokens of a store, a million at a time; of a larger one ``num_tokens``, from evenly spaced places."""
    size = 1 << 20
    if len(store) <= num_tokens:
        yield from (store.read(start, min(start + size, len(store))) for start in range(0, len(store), size))
        return
    num_pieces = num_tokens // size
    for piece in range(num_pieces):
        start = (len(store) - size) * piece // (num_pieces - 1)
        yield store.read(start, start + size)


def _check_ids(ids: "np.ndarray", data: "GPTDataModule") -> None:
    if ids.max() >= data.vocab_size:
        raise ValueError(
            f"the source holds the id {ids.max()}, and the vocabulary of {data.tokenizer_name} ends at "
            f"{data.vocab_size - 1}. Was it written by another tokenizer, or as another data.token_dtype?"
        )


def _visible(text: str) -> str:
    """A token on one line: line ends and other invisible characters are written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _console() -> Console:
    """Rich as it is in a terminal; lines as long as they come into a file or pipe, where nobody needs them folded."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1 << 20)


def _table(*columns: str) -> Table:
    table = Table(box=None, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in ("id", "count", "share", "cosine") else "left", overflow="fold"
        )
    return table


def _print_json(result: Any) -> None:
    print(json.dumps(result, indent=1))


# The options.


def _in_words_of_the_tool(message: str) -> str:
    """The options of a training, data.context_size, by their names here: --context-size."""

    def name(match: re.Match) -> str:
        if match[1] == "source":
            return "SOURCE"
        return f"--{match[1].replace('_', '-')}" if match[1] in _DATA_OPTIONS else match[0]

    return re.sub(r"\bdata\.(\w+)", name, message)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n  for all options: {self.prog} --help\n")


def _options(args: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    if not args:
        parser.print_help()
        sys.exit(0)
    if args[0] not in commands and not args[0].startswith("-"):
        parser.error(f"there is no command {args[0]!r}.{_meant(args[0], commands)}")
    options, unknown = parser.parse_known_args(args)
    if unknown:
        command = commands[args[0]]
        known = [name for action in command._actions for name in action.option_strings]
        kind = "option" if unknown[0].startswith("-") else "place for the argument"
        command.error(f"there is no {kind} {unknown[0]}.{_meant(unknown[0].partition('=')[0], known)}")
    return options


def _meant(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _at_least(lowest: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        number = int(text)
        if number < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {number}")
        return number

    return whole_number


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and those of the commands by their names."""
    parser = _Parser(
        prog="gpt2-lit",
        description="Prepare text for training, and look at what training will see.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
examples:
  gpt2-lit prepare corpus/ tokens         encode a folder of texts, once, with all cores
  gpt2-lit info tokens                    documents, tokens, splits, the most frequent tokens
  gpt2-lit preview tokens                 the first windows of a training on it
  gpt2-lit verify tokens                  compare it with its checksums
  python train_stub.py fit --data.source tokens

The options of a command:  gpt2-lit COMMAND --help
""",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], None], text: str, about: str) -> _Parser:
        added = commands.add_parser(
            run.__name__,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    def text_options(added: argparse._ActionsContainer) -> None:
        added.add_argument(
            "--text-field", metavar="NAME", help="field of .jsonl, column of .csv and .parquet (default: text)"
        )
        added.add_argument(
            "--strip-gutenberg", action="store_true", default=None, help="without Project Gutenberg's header and footer"
        )

    def data_options(added: _Parser) -> None:
        added.add_argument(
            "source",
            metavar="SOURCE",
            nargs="?",
            help="a store, a text or folder of texts (encoded at the first use), a .bin file of ids, or the folder of "
            "a run, of which the options then count; left out: the tale that ships with gpt2_lit",
        )
        group = added.add_argument_group("data, as in a training (--data.context_size ...)")
        group.add_argument("--tokenizer", choices=("gpt2", "words"), help="default: gpt2")
        group.add_argument("--context-size", type=int, metavar="T", help="length of a window, in tokens (default: 32)")
        group.add_argument(
            "--stride", type=int, metavar="N", help="from one window to the next, in tokens (default: the context size)"
        )
        group.add_argument("--batch-size", type=int, metavar="B", help="windows in a batch of a process (default: 8)")
        group.add_argument("--val-fraction", type=float, metavar="P", help="share set aside to validate (default: 0.1)")
        group.add_argument("--seed", type=int, metavar="N", help="decides the split and the order (default: 42)")
        group.add_argument("--shuffle", choices=("global", "block", "false"), help="default: global")
        text_options(group)
        group.add_argument(
            "--token-dtype",
            choices=("uint8", "uint16", "uint32", "uint64"),
            help="of .bin files without a header (default: uint16)",
        )

    def json_option(added: _Parser) -> None:
        added.add_argument("--json", action="store_true", help="print JSON, for programs")

    make = command(
        prepare,
        "make a token store of texts, or bring one up to date",
        """\
May be stopped at any time, in any way: the same command goes on behind what was
finished. Where files have changed since, only they are encoded again.

examples:
  gpt2-lit prepare corpus/ tokens
  gpt2-lit prepare a.txt 'books/**/*.txt' more.jsonl.gz tokens
  gpt2-lit prepare c4/ tokens --text-field content --processes 8
""",
    )
    make.add_argument("source", metavar="SOURCE", nargs="+", help="files, folders, patterns or URLs")
    make.add_argument("store", metavar="STORE", help="folder for the tokens")
    make.add_argument(
        "--processes", type=_at_least(1), metavar="N", help="processes that encode (default: one for each core)"
    )
    text_options(make)
    make.set_defaults(text_field="text", strip_gutenberg=False)
    json_option(make)

    added = command(
        info,
        "tell what a store or a text holds",
        """\
examples:
  gpt2-lit info tokens
  gpt2-lit info my_text.txt --context-size 256 --top 50
  gpt2-lit info train.bin --json
""",
    )
    data_options(added)
    added.add_argument(
        "--top", type=_at_least(0), default=20, metavar="N", help="most frequent tokens to show (default: 20)"
    )
    json_option(added)

    added = command(
        preview,
        "show windows, input and target, in the order of training",
        """\
examples:
  gpt2-lit preview tokens --windows 3
  gpt2-lit preview tokens --context-size 1024 --step 5000 | less -S
  gpt2-lit preview logs/version_0            what that run began with
""",
    )
    data_options(added)
    added.add_argument("--windows", type=_at_least(1), default=5, metavar="N", help="windows to show (default: 5)")
    added.add_argument(
        "--step", type=_at_least(0), default=0, metavar="K", help="step of one process to begin at (default: 0)"
    )
    json_option(added)

    added = command(
        verify,
        "compare a store with its checksums",
        """\
Reads all of it. Exit status 1 if a file is damaged; it is named, with what it was
made from and how to mend it.

example:
  gpt2-lit verify tokens
""",
    )
    added.add_argument("store", metavar="STORE", help="folder of a store that was prepared")
    json_option(added)

    added = command(
        plan,
        "tell which windows each process trains on at a step",
        """\
A window is named by its number in reading order. Steps count from 0, over all
epochs; accumulated batches count one by one. The worker is that of a training which
was not stopped within the epoch.

example:
  gpt2-lit plan tokens --world-size 4 --num-workers 2 --step 1000 --batch-size 16
""",
    )
    data_options(added)
    for name, lowest, default, text in (
        ("--world-size", 1, 1, "processes that train"),
        ("--num-workers", 0, 0, "loader workers of each process"),
        ("--step", 0, 0, "number of the batch since the training began"),
    ):
        added.add_argument(
            name, type=_at_least(lowest), default=default, metavar="N", help=f"{text} (default: {default})"
        )
    json_option(added)
    checkpoint = "a checkpoint or other file of weights, or last or best for that of the newest run in logs/"
    added = command(
        neighbours,
        "show the tokens that an embedding holds for most alike, by cosine",
        """\
examples:
  gpt2-lit neighbours last rain book
  gpt2-lit neighbours openai-community/gpt2 Paris --num 5
""",
    )
    added.add_argument("checkpoint", metavar="CHECKPOINT", help=f"{checkpoint}, or a repository on Hugging Face")
    added.add_argument("word", metavar="WORD", nargs="+", help="a word; one of several tokens is shown piece by piece")
    added.add_argument("--num", type=_at_least(1), default=10, metavar="N", help="neighbours of each (default: 10)")
    json_option(added)

    added = command(
        export,
        "write the weights of a checkpoint as a safetensors file",
        """\
examples:
  gpt2-lit export best embedding.safetensors
""",
    )
    added.add_argument("checkpoint", metavar="CHECKPOINT", help=checkpoint)
    added.add_argument("file", metavar="FILE", help="ends in .safetensors")
    json_option(added)

    return parser, commands.choices
