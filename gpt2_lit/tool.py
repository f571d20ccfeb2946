"""command line -> tokens, looked at: `gpt2-lit`, which prepares token stores and shows what training will see."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import numpy as np

    from gpt2_lit.datamodule import GPTDataModule
    from gpt2_lit.token_store import TokenStore
    from gpt2_lit.windows import GPTDatasetV1

_COUNTED_TOKENS = 50_000_000  # for the most frequent ones; of a larger store, that many from all over it

console = Console(highlight=False)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line, that of the process unless ``args`` are given."""
    options = _parser().parse_args(args)
    try:
        options.run(options)
    except KeyboardInterrupt:
        sys.exit(_stopped(options))
    except BrokenPipeError:  # | head
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def prepare(options: argparse.Namespace) -> None:
    from gpt2_lit.documents import TextOptions
    from gpt2_lit.prepare import Recipe
    from gpt2_lit.prepare import prepare as make_store

    recipe = Recipe(TextOptions(options.text_field, options.strip_gutenberg))
    done = make_store(options.source, options.store, recipe, options.processes, show_progress=not options.json)
    manifest = done.manifest
    result = {
        "store": str(Path(options.store).absolute()),
        "tokens": manifest.num_tokens,
        "documents": manifest.num_documents,
        "shards": len(manifest.shards),
        "shards_made": done.num_made,
        "changes": done.changes,
    }
    if options.json:
        _print_json(result)
        return
    for change in done.changes:
        console.print(f"  {change}", style="yellow", markup=False)
    news = f"encoded {done.num_made} of {len(manifest.shards)} shards" if done.num_made else "nothing to do"
    console.print(
        f"{options.store}: {manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents; {news}.\n"
        f"Train on it: --data.source {options.store}",
        markup=False,
    )


def info(options: argparse.Namespace) -> None:
    import numpy as np

    data, store, _ = _data(options)
    manifest = store.manifest
    rows: dict[str, Any] = {"store": store.path, "tokenizer": data.tokenizer_name, "tokens": len(store)}
    if manifest:
        num_bytes = sum(shard.num_bytes for shard in manifest.shards)
        rows |= {
            "sources": manifest.num_sources,
            "documents": manifest.num_documents,
            "shards": len(manifest.shards),
            "bytes of text": num_bytes,
            "bytes a token": round(num_bytes / max(manifest.num_tokens, 1), 2),
        }
    splits = {name: {"tokens": tokens, "windows": data.num_windows[name]} for name, tokens in data.num_tokens.items()}
    counts = np.zeros(data.vocab_size, np.int64)
    counted = 0
    for piece in _pieces(store, _COUNTED_TOKENS):
        counts += np.bincount(piece, minlength=data.vocab_size)
        counted += len(piece)
    most = [int(token) for token in np.argsort(-counts, kind="stable")[: options.top] if counts[token]]
    frequent = [{"id": token, "text": data.tokenizer.decode([token]), "count": int(counts[token])} for token in most]
    if options.json:
        _print_json({**rows, "splits": splits, "counted_tokens": counted, "most_frequent": frequent})
        return
    table = _table("", "")
    for name, value in rows.items():
        table.add_row(name, _number(value))
    for name, split in splits.items():
        share = split["tokens"] / max(sum(split["tokens"] for split in splits.values()), 1)
        table.add_row(name, f"{split['tokens']:,} tokens ({share:.1%}), {split['windows']:,} windows")
    console.print(table)
    of = "" if counted == len(store) else f", of {counted:,} tokens from all over the store"
    table = _table("id", "token", "count", "share", title=f"the {len(frequent)} most frequent tokens{of}")
    for token in frequent:
        share = f"{token['count'] / counted:.2%}"
        table.add_row(f"{token['id']}", Text(repr(token["text"])), f"{token['count']:,}", share)
    console.print(table)


def preview(options: argparse.Namespace) -> None:
    data, _, dataset = _data(options)
    decode = data.tokenizer.decode
    found = []
    step = options.step
    while len(found) < options.windows:
        epoch, windows, _ = _share(data, dataset, step, rank=0, world_size=1)
        for window in windows[: options.windows - len(found)].tolist():
            input_ids, target_ids = (ids.tolist() for ids in dataset[window][:2])
            found.append(
                {"step": step, "epoch": epoch, "window": window, "input_ids": input_ids, "target_ids": target_ids}
            )
        step += 1
    if options.json:
        for window in found:
            window |= {"input": decode(window["input_ids"]), "target": decode(window["target_ids"])}
        _print_json(found)
        return
    console.print(
        f"{len(dataset):,} windows of {data.context_size} tokens for training, in the order of seed {data.seed}; below "
        f"are the first from step {options.step} on. The target is the input one token on: equal tokens stand in one "
        "column.\n"
    )
    for window in found:
        inputs = [_visible(decode([token])) for token in window["input_ids"]]
        targets = [_visible(decode([token])) for token in window["target_ids"]]
        # The targets begin one token to the right, where the input that they repeat stands.
        indent = " " * (len(inputs[0]) + 1)
        head = f"step {window['step']}, epoch {window['epoch']}, window {window['window']}"
        console.print(Text(head, style="bold"))
        for label, line in (("input ", "|".join(inputs)), ("target", indent + "|".join(targets))):
            text = Text(f"  {label}  ", style="dim")
            text.append(line, style="default")
            console.print(text, no_wrap=True, overflow="ellipsis", soft_wrap=False)


def verify(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from gpt2_lit.token_store import Manifest
    from gpt2_lit.token_store import verify as damages_of

    manifest = Manifest.load(options.store)
    total = sum(sum(shard.file_sizes(manifest.dtype).values()) for shard in manifest.shards)
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", delay=1, disable=options.json) as bar:
        damages = damages_of(options.store, bar.update)
    if options.json:
        _print_json({"store": options.store, "damaged": [damage._asdict() for damage in damages]})
    elif damages:
        for damage in damages:
            console.print(f"error: {damage}", style="red", markup=False)
    else:
        console.print(
            f"{options.store}: all {manifest.num_tokens:,} tokens in {len(manifest.shards):,} shards are as they were "
            "written.",
            markup=False,
        )
    if damages:
        sys.exit(1)


def plan(options: argparse.Namespace) -> None:
    data, _, dataset = _data(options)
    shares = []
    for rank in range(options.world_size):
        epoch, windows, batch = _share(data, dataset, options.step, rank, options.world_size)
        worker = batch % options.num_workers if options.num_workers else None
        shares.append({"rank": rank, "worker": worker, "epoch": epoch, "windows": windows.tolist()})
    if options.json:
        _print_json(shares)
        return
    table = _table("process", "worker", "epoch", "windows", title=f"step {options.step}")
    for share in shares:
        worker = "-" if share["worker"] is None else str(share["worker"])
        table.add_row(str(share["rank"]), worker, str(share["epoch"]), " ".join(map(str, share["windows"])))
    console.print(table)


def _share(
    data: "GPTDataModule", dataset: "GPTDatasetV1", step: int, rank: int, world_size: int
) -> tuple[int, "np.ndarray", int]:
    """What one of the processes trains on at a step: the epoch, its windows, and the number of the batch in it."""
    from gpt2_lit.order import Position, WindowSampler

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


def _data(options: argparse.Namespace) -> tuple["GPTDataModule", "TokenStore", "GPTDatasetV1"]:
    """The data of a source as a training has it; of a run's folder, with the options of the run."""
    from gpt2_lit.datamodule import GPTDataModule

    given: dict[str, Any] = {
        name: getattr(options, name, None)
        for name in ("tokenizer", "context_size", "stride", "batch_size", "val_fraction", "seed", "shuffle")
    }
    given = {name: False if value == "false" else value for name, value in given.items() if value is not None}
    config = Path(options.source or "") / "config.yaml"
    if options.source and config.exists():
        import yaml

        given = yaml.safe_load(config.read_text())["data"] | given
    else:
        given["source"] = options.source
    data = GPTDataModule(**given)
    data.setup("fit")
    assert data.store is not None, "setup opens it"
    assert data.train_dataset is not None, "setup cuts it"
    return data, data.store, data.train_dataset


def _pieces(store: "TokenStore", num_tokens: int) -> Iterator["np.ndarray"]:
    """All tokens of a store, a million at a time; of a larger one ``num_tokens``, from evenly spaced places."""
    size = 1 << 20
    num_pieces = max(min(num_tokens, len(store)) // size, 1)
    if len(store) <= num_tokens:
        yield from (store.read(start, min(start + size, len(store))) for start in range(0, len(store), size))
        return
    for piece in range(num_pieces):
        start = (len(store) - size) * piece // max(num_pieces - 1, 1)
        yield store.read(start, start + size)


def _visible(text: str) -> str:
    """A token on one line: line ends and other invisible characters are written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("id", "count", "share") else "left", overflow="fold")
    return table


def _print_json(result: Any) -> None:
    print(json.dumps(result, indent=1))


def _stopped(options: argparse.Namespace) -> int:
    if options.run is prepare:
        print("\nstopped. What was finished is kept: the same command goes on.", file=sys.stderr)
    return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt2-lit", description="Prepare text for training, and look at what it gives."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], None], text: str, about: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=text, description=f"{text[0].upper()}{text[1:]}. {about}")
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
        return added

    def data_options(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "source", nargs="?", help="store, text, or folder of a run, whose options then count; the tale if left out"
        )
        for name, kind, text in (
            ("--tokenizer", str, "gpt2 or words (default: gpt2)"),
            ("--context-size", int, "length of a window, in tokens (default: 32)"),
            ("--stride", int, "distance between the starts of windows, in tokens (default: the context size)"),
            ("--batch-size", int, "windows in a batch, for each process (default: 8)"),
            ("--val-fraction", float, "share of the tokens set aside for validation (default: 0.1)"),
            ("--seed", int, "decides the split and the order (default: 42)"),
            ("--shuffle", str, "global, block or false (default: global)"),
        ):
            added.add_argument(name, type=kind, help=text, metavar=name[2:].upper().replace("-", "_"))

    make = command(
        prepare,
        "make a token store of text, or bring one up to date",
        "May be stopped at any time: the same command goes on with what is not finished.",
    )
    make.add_argument("source", nargs="+", help="files, folders, patterns or URLs")
    make.add_argument("store", help="folder for the tokens")
    make.add_argument("--processes", type=int, help="processes that encode (default: one for each core)")
    make.add_argument("--text-field", default="text", help="field of .jsonl, column of .parquet (default: text)")
    make.add_argument("--strip-gutenberg", action="store_true", help="leave out Project Gutenberg's header and footer")

    added = command(info, "tell what a store or a text holds")
    data_options(added)
    added.add_argument("--top", type=int, default=20, help="number of the most frequent tokens to show (default: 20)")

    added = command(preview, "show windows, input and target, in the order of training")
    data_options(added)
    added.add_argument("--windows", type=int, default=5, help="number of windows to show (default: 5)")
    added.add_argument(
        "--step", type=int, default=0, help="step of the training to begin at, with one process (default: 0)"
    )

    added = command(verify, "compare a store with its checksums")
    added.add_argument("store")

    added = command(plan, "tell which windows each process gets at a step")
    data_options(added)
    added.add_argument("--world-size", type=int, default=1, help="number of processes that train (default: 1)")
    added.add_argument("--num-workers", type=int, default=0, help="loader workers of each process (default: 0)")
    added.add_argument(
        "--step", type=int, default=0, help="number of the batch, from 0, since the training began (default: 0)"
    )
    return parser
