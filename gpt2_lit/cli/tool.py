"""command line -> tokens, looked at: `gpt2-lit`, which prepares token stores and shows what training will see."""

import argparse
import difflib
import inspect
import itertools
import json
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from gpt2_lit.cli.data_options import SOURCES, add_data_options, all_options, data_options, given
from gpt2_lit.cli.messages import errors_as_messages, prepare_console, program_name
from gpt2_lit.errors import InvalidValue, printable

if TYPE_CHECKING:
    import numpy as np

    from gpt2_lit.data.datamodule import GPTDataModule
    from gpt2_lit.data.windows import Batch, DocumentBatch, Windows
    from gpt2_lit.store.token_store import TokenStore

SHOWN_CHARACTERS = 40  # of a window
RECIPE_OPTIONS = ("tokenizer", "text_field", "strip_gutenberg", "document_separator", "max_unpacked")


def main(args: Sequence[str] | None = None, trainings: Mapping[str, str] = {}) -> None:
    """Run a command line, that of the process unless ``args`` are given; ``trainings`` are named in the help alone."""
    options = _options(sys.argv[1:] if args is None else args, trainings)
    prepare_console(logging.WARNING if options.json else logging.INFO)
    try:
        with errors_as_messages(reword=_in_words_of_the_tool):
            options.run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        kept = "What was finished is kept: the same command resumes." if options.run is prepare else ""
        print(f"\nstopped. {kept}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # gpt2-lit info | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tells of it at its end
        sys.exit(1)


# The commands: the first line of each is its help, the rest stands below its options.


def prepare(options: argparse.Namespace) -> None:
    """make a token store of texts, or bring one up to date

    May be stopped at any time, in any way: the same command resumes after what was
    finished. Where files have changed since, only they are encoded again.

    examples:
      gpt2-lit prepare corpus/ tokens
      gpt2-lit prepare a.txt 'books/**/*.txt' more.jsonl.gz tokens
      gpt2-lit prepare c4/ tokens --text-field content --processes 8
      gpt2-lit prepare corpus/ tokens --tokenizer cl100k_base
    """
    from gpt2_lit.store.plan import Recipe
    from gpt2_lit.store.prepare import prepare as make_store
    from gpt2_lit.text.readers import TextOptions
    from gpt2_lit.text.sources import Source
    from gpt2_lit.text.tokenizer import make_tokenizer

    chosen = given(options)
    tokenizer = chosen.pop("tokenizer", "gpt2")
    text_options = TextOptions(**chosen)
    texts = partial(Source.of(options.source).read, text_options)
    recipe = Recipe(text_options, make_tokenizer(tokenizer, texts), options.sha256)
    done = make_store(options.source, options.store, recipe, options.processes, not options.json)
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
        console.print(_text(f"  {change}", style="yellow"))
    news = f"encoded {done.num_made} of {len(manifest.shards)} shards" if done.num_made else "nothing to do"
    console.print(
        _text(
            f"{options.store}: {manifest.num_tokens:,} tokens of {manifest.num_documents:,} documents; {news}.\n"
            f"Train on it: {program_name()} fit --data.source {shlex.quote(options.store)}"
            f"{f' --data.tokenizer {shlex.quote(tokenizer)}' * (tokenizer != 'gpt2')}"
        )
    )


def info(options: argparse.Namespace) -> None:
    """tell what a store or a text holds

    examples:
      gpt2-lit info tokens
      gpt2-lit info my_text.txt --context-size 256 --top 50
      gpt2-lit info train.bin --json
    """
    from gpt2_lit.monitor.counts import most_frequent, token_counts

    data, store, dataset = _data(options)
    rows: dict[str, Any] = {"store": store.path, "tokenizer": data.tokenizer.name, "tokens": len(store)}
    if store.num_sources:
        rows |= {
            "sources": store.num_sources,
            "documents": store.num_documents,
            "shards": store.num_shards,
            "bytes of text": store.num_bytes,
            "bytes a token": round(store.num_bytes / max(len(store), 1), 2),
        }
    counts = token_counts(dataset, data.vocab_size, tokenizer=data.tokenizer.name)
    counted = int(counts.sum())
    frequent = [
        {"id": token, "text": data.tokenizer.decode([token]), "count": int(counts[token])}
        for token in most_frequent(counts, options.top).tolist()
    ]
    splits = {name: {"tokens": tokens, "windows": data.num_windows[name]} for name, tokens in data.num_tokens.items()}
    if options.json:
        rows = {name.replace(" ", "_"): value for name, value in rows.items()}
        _print_json({**rows, "splits": splits, "counted_tokens": counted, "most_frequent": frequent})
        return
    table = _table("", "")
    for name, value in rows.items():
        table.add_row(name, _text(f"{value:,}" if isinstance(value, int) else str(value)))
    total = sum(split["tokens"] for split in splits.values())
    for name, split in splits.items():
        share = f"{split['tokens'] / total:.1%}"
        windows = f"{split['windows']:,} windows of {data.context_size}"
        table.add_row(name, f"{split['tokens']:,} tokens ({share}), {windows}")
    console = _console()
    console.print(table)
    if not frequent:
        return
    news = f"\nthe {len(frequent)} most frequent of {counted:,} tokens in training windows"
    console.print(_text(news, style="bold"))
    table = _table("id", "token", "count", "share")
    for token in frequent:
        share = f"{token['count'] / counted:.2%}"
        table.add_row(f"{token['id']}", _text(repr(token["text"])), f"{token['count']:,}", share)
    console.print(table)


def preview(options: argparse.Namespace) -> None:
    """show windows, input and target, in the order of training

    examples:
      gpt2-lit preview tokens --windows 3
      gpt2-lit preview tokens --context-size 1024 --step 5000 | less -S
      gpt2-lit preview logs/version_0            what that run began with
      gpt2-lit preview --data-module instructions alpaca.json --mask-prompt
    """
    from gpt2_lit.data.windows import IGNORED
    from gpt2_lit.monitor.counts import checked, pieces, visible

    data, _, dataset = _data(options)
    state = _state_of_run(data, options)
    decode = data.tokenizer.decode
    found: list[dict[str, Any]] = []
    step = options.step
    while len(found) < options.windows:
        epoch, windows, _ = data.windows_of_step(step, state=state)
        for window in windows[: options.windows - len(found)].tolist():
            batch = dataset[window]
            input_ids, target_ids = (
                checked(ids.numpy(), data.vocab_size, data.tokenizer.name).tolist() for ids in batch[:2]
            )
            found.append(
                {"step": step, "epoch": epoch, "window": window, "input_ids": input_ids, "target_ids": target_ids}
            )
        step += 1
    if options.json:
        for window in found:
            kept = [token for token in window["target_ids"] if token != IGNORED]
            window |= {"input": decode(window["input_ids"]), "target": decode(kept)}
        _print_json(found)
        return
    is_masked = any(IGNORED in window["target_ids"] for window in found)
    told = "What is masked is no target." if is_masked else "The target is the input one token later, in one column."
    console = _console()
    console.print(
        f"{len(dataset):,} windows of {data.context_size} tokens for training, in the order of seed {data.seed}; below "
        f"are {len(found)} from step {options.step} on.\n{told}"
    )
    for window in found:
        if IGNORED in window["target_ids"]:
            _print_masked(console, window, decode)
            continue
        tokens = [*window["input_ids"], window["target_ids"][-1]]
        # Tokens that are parts of a character stand together. The targets begin one to the right, below the input that
        # they repeat.
        first, *rest, last = (visible(decode(piece)) for piece in pieces(decode, tokens))
        inputs, targets, indent = [first, *rest], [*rest, last], " " * (cell_len(first) + 1)
        console.print(_text(f"\n{_head(window)}", style="bold"))
        for label, line in (("input ", "|".join(inputs)), ("target", indent + "|".join(targets))):
            text = Text.assemble((f"  {label}  ", "dim"), line)
            console.print(text, no_wrap=True, overflow="ellipsis")


def _print_masked(console: Console, window: dict[str, Any], decode: Callable[[list[int]], str]) -> None:
    """A window with targets that do not count: its text, in parts that are targets and parts that are not."""
    from gpt2_lit.data.windows import IGNORED
    from gpt2_lit.monitor.counts import visible

    input_ids, target_ids = window["input_ids"], window["target_ids"]
    follows = zip(target_ids, [*input_ids[1:], None], strict=True)  # a masked target is known from the inputs
    tokens = [*input_ids[:1], *(after if target == IGNORED else target for target, after in follows)]
    kept = [False, *(token != IGNORED for token in target_ids)]
    count = f"{sum(kept):,} of {len(target_ids):,} targets count"
    console.print(_text(f"\n{_head(window)}: {count}", style="bold"))
    for is_kept, part in itertools.groupby(zip(kept, tokens, strict=True), key=lambda pair: pair[0]):
        text = visible(decode([token for _, token in part if token is not None]))
        console.print(Text.assemble((f"  {'target' if is_kept else 'masked'}  ", "dim"), text), soft_wrap=False)


def _head(window: dict[str, Any]) -> str:
    return f"step {window['step']}, epoch {window['epoch']}, window {window['window']}"


def verify(options: argparse.Namespace) -> None:
    """compare a store with its checksums

    Reads all of it. Exit status 1 if a file is damaged; it is named, with what it
    was made from and how to mend it.

    example:
      gpt2-lit verify tokens
    """
    from gpt2_lit.store.manifest import Manifest
    from gpt2_lit.store.verify import checked_by
    from gpt2_lit.store.verify import verify as damages_of

    manifest = Manifest.load(options.store)
    damages = damages_of(options.store, show_progress=not options.json)
    if options.json:
        _print_json({"store": os.path.abspath(options.store), "damaged": [damage._asdict() for damage in damages]})
    for damage in damages if not options.json else []:
        _console().print(_text(f"error: {damage}", style="red"))
    if damages:
        sys.exit(1)
    if not options.json:
        num_tokens, num_shards = f"{manifest.num_tokens:,}", f"{len(manifest.shards):,}"
        start = f"{printable(options.store)}: all {num_tokens} tokens in {num_shards} shards"
        print(f"{start} are unchanged since they were written,")
        print(checked_by(options.store))


def plan(options: argparse.Namespace) -> None:
    """tell which windows each process trains on at a step

    A window is named by its number in reading order. Steps count from 0, over all
    epochs; accumulated batches count one by one. The worker is that of a training
    which was not stopped within the epoch.

    examples:
      gpt2-lit plan tokens --world-size 4 --num-workers 2 --step 1000
      gpt2-lit plan tokens --step 1000 --show     documents, files and bytes, too
    """
    data, _, _ = _data(options)
    state, shares = _state_of_run(data, options), []
    for rank in range(options.world_size):
        epoch, windows, batch = data.windows_of_step(options.step, rank, options.world_size, state)
        worker = batch % options.num_workers if options.num_workers else None
        share = {"process": rank, "worker": worker, "epoch": epoch, "windows": windows.tolist()}
        shares.append(share | ({"sources": _sources(data, windows)} if options.show else {}))
    if options.json:
        _print_json(shares)
        return
    console = _console()
    console.print(_text(f"step {options.step}, in epoch {shares[0]['epoch']}", style="bold"))
    table = _table("process", "worker", "windows")
    for share in shares:
        worker = "-" if share["worker"] is None else str(share["worker"])
        table.add_row(str(share["process"]), worker, " ".join(map(str, share["windows"])))
    console.print(table)
    if options.show:
        console.print()
        _print_sources(console, shares)


def where(options: argparse.Namespace) -> None:
    """tell from which documents, files and bytes the windows of a step come

    Steps, windows and documents count from 0; accumulated batches count one by one.
    Bytes are those of the window in a plain text, and of its line in a .jsonl file.
    By these numbers --data.skip leaves windows, documents or steps out.

    examples:
      gpt2-lit where 2050 logs/version_0        what that run had at step 2050
      gpt2-lit where 0 tokens --batch-size 16
    """
    data, _, _ = _data(options)
    state, shares = _state_of_run(data, options), []
    for rank in range(options.world_size):
        epoch, windows, _ = data.windows_of_step(options.step, rank, options.world_size, state)
        shares.append({"process": rank, "epoch": epoch, "sources": _sources(data, windows)})
    if options.json:
        _print_json(shares)
        return
    console = _console()
    console.print(_text(f"step {options.step}, in epoch {shares[0]['epoch']}", style="bold"))
    _print_sources(console, shares)


def neighbours(options: argparse.Namespace) -> None:
    """show the tokens whose vectors are most alike in an embedding, by cosine

    examples:
      gpt2-lit neighbours last rain book
      gpt2-lit neighbours openai-community/gpt2 Paris --num 5
    """
    import torch
    import torch.nn.functional as F

    from gpt2_lit.embedding.pretrained import read_tables
    from gpt2_lit.monitor.atlas import most_similar

    path = _checkpoint(options.checkpoint)
    tokenizer = _tokenizer_of(path)
    table = F.normalize(read_tables(path).token[: tokenizer.n_vocab], dim=-1)
    found = []
    for word in options.word:
        for token_id in _ids_of_word(tokenizer, word):
            if token_id >= len(table):
                raise InvalidValue(
                    f"{path} has {len(table):,} tokens, and {word!r} is number {token_id} of the tokenizer."
                )
            cosines, others = most_similar(table, torch.tensor([token_id]), options.num)
            nearest = [
                {"id": i, "text": tokenizer.decode([i]), "cosine": round(cosine, 4)}
                for i, cosine in zip(others[0].tolist(), cosines[0].tolist(), strict=True)
            ]
            found.append({"word": word, "id": token_id, "text": tokenizer.decode([token_id]), "neighbours": nearest})
    if options.json:
        _print_json(found)
        return
    console = _console()
    for token in found:
        console.print(_text(f"{token['text']!r} (id {token['id']})", style="bold"))
        table_of_word = _table("id", "token", "cosine")
        for near in token["neighbours"]:
            table_of_word.add_row(f"{near['id']}", _text(repr(near["text"])), f"{near['cosine']:.3f}")
        console.print(table_of_word)


def export(options: argparse.Namespace) -> None:
    """write weights as a safetensors file, or tables as Parquet for a viewer

    Parquet has a row for each token: text, count, norm, neighbours, vectors.

    examples:
      gpt2-lit export best embedding.safetensors
      gpt2-lit export best embedding.parquet         for Embedding Atlas
    """
    from gpt2_lit.embedding.pretrained import read_weights, write_weights

    extension = ".parquet" if options.parquet or options.file.endswith(".parquet") else ".safetensors"
    if not options.file.endswith(extension):
        names = ".parquet" if options.parquet else ".safetensors or .parquet"
        raise InvalidValue(f"FILE must end in {names}, got {options.file}.")
    path = _checkpoint(options.checkpoint)
    if extension == ".parquet":
        _export_tables(path, options)
        return
    weights = read_weights(path)
    write_weights(weights, options.file)
    if options.json:
        _print_json({name: list(tensor.shape) for name, tensor in weights.items()})
        return
    table = _table("tensor", "shape")
    for name, tensor in weights.items():
        table.add_row(_text(name), str(tuple(tensor.shape)))
    console = _console()
    console.print(table)
    console.print(_text(f"\n{options.file}: EmbeddingModule.from_pretrained({options.file!r}) reads its tables."))


def _export_tables(path: str, options: argparse.Namespace) -> None:
    """Write both tables for Embedding Atlas, with what the text of their run tells of the tokens."""
    from gpt2_lit.embedding.pretrained import read_tables
    from gpt2_lit.monitor.atlas import write_parquet
    from gpt2_lit.monitor.counts import Corpus, labels_of_tokens, token_counts, token_label

    tokens, positions = read_tables(path)
    tokenizer = _tokenizer_of(path)
    tokens = tokens[: tokenizer.n_vocab]
    run = _config_of_run(str(Path(path).absolute().parent.parent))
    if run is None:
        labels, counts = [token_label(tokenizer.decode, token_id) for token_id in range(len(tokens))], None
    else:
        data = _made(run.get("data_module", "text"), run["data"])
        data.setup("fit")
        labels = labels_of_tokens(Corpus(tokenizer.decode, data.train_dataset), range(len(tokens)))
        counts = token_counts(data.train_dataset, len(tokens))
    write_parquet(options.file, tokens, positions, labels, counts)
    if options.json:
        _print_json({"file": options.file, "tokens": len(tokens), "positions": len(positions)})
        return
    counted = "" if run else "; without the directory of a run there are no counts"
    told = f"{options.file}: {len(tokens):,} tokens and {len(positions):,} positions{counted}. To look at them:"
    command = f"embedding-atlas {shlex.quote(options.file)} --vector vector --neighbors neighbors --text text"
    _console().print(_text(f"{told}\npip install embedding-atlas\n{command}"), soft_wrap=True)


def init(options: argparse.Namespace) -> None:
    """put configs and examples into a directory, and overwrite nothing

    example:
      gpt2-lit init my_gpt && cd my_gpt && gpt2-lit fit --config configs/tiny.yaml
    """
    from gpt2_lit.cli.starter import copy_starter

    names = copy_starter(Path(options.directory))
    if options.json:
        _print_json({"directory": os.path.abspath(options.directory), "files": names})
        return
    change = "" if options.directory == "." else f"cd {shlex.quote(options.directory)} && "
    print("\n".join(f"  {name}" for name in names))
    print(printable(f"Train: {change}{program_name()} fit --config configs/tiny.yaml"))


def cache(options: argparse.Namespace) -> None:
    """list what is kept of encoded texts, or delete it

    A text that is trained on is encoded once and kept. What a process uses is not
    deleted.

    examples:
      gpt2-lit cache
      gpt2-lit cache --clear                            all of it
      gpt2-lit cache --clear tale.txt-602e96b89e311108  one name, or several
    """
    from gpt2_lit.store.plan import Recipe
    from gpt2_lit.store.token_cache import TokenCache, default_directory, expanded

    directory = expanded(options.cache_dir or default_directory())
    kept = TokenCache(directory, Recipe())
    entries = kept.entries()
    if unknown := set(options.clear or ()) - {entry.path.name for entry in entries}:
        raise InvalidValue(f"there is no {min(unknown)} in the cache {directory}. gpt2-lit cache lists what there is.")
    deleted = [] if options.clear is None else kept.clear(options.clear or None)
    if options.json:
        rows = [entry._asdict() | {"path": str(entry.path), "deleted": entry in deleted} for entry in entries]
        _print_json({"directory": str(directory), "entries": rows})
        return
    console = _console()
    table = _table("name", "source", "size", "last use", "")
    for entry in entries:
        in_use = options.clear == [] or entry.path.name in (options.clear or ())
        what = "deleted" if entry in deleted else "in use, kept" if in_use else ""
        last_use = datetime.fromtimestamp(entry.last_use).isoformat(" ", "minutes")
        table.add_row(*map(_text, (entry.path.name, entry.source, decimal(entry.num_bytes), last_use, what)))
    if entries:
        console.print(table)
    left = [entry.num_bytes for entry in entries if entry not in deleted]
    console.print(_text(f"{directory}: {decimal(sum(left))} in {len(left)} {'store' if len(left) == 1 else 'stores'}"))


# Data and checkpoints, as a training has them.


def _data(options: argparse.Namespace) -> tuple["GPTDataModule", "TokenStore", "Windows"]:
    """The data of a source; of a run's directory, with the options of the run."""
    run = _config_of_run(options.source) or {"data": {"source": options.source}}
    data_module = options.data_module or run.get("data_module", "text")
    data = _made(data_module, run["data"] | given(options, data_module))
    data.setup("fit")
    assert data.store is not None, "setup opens it"
    assert data.train_dataset is not None, "setup cuts it"
    return data, data.store, data.train_dataset


def _made(data_module: str, options: dict[str, Any]) -> "GPTDataModule":
    if data_module == "instructions":
        from gpt2_lit.data.instructions import InstructionDataModule

        return InstructionDataModule(**options)
    from gpt2_lit.data.datamodule import GPTDataModule

    return GPTDataModule(**options)


def _config_of_run(directory: str | None) -> dict[str, Any] | None:
    """A run's config.yaml, which has data options; None if it is not the directory of a run."""
    config = Path(directory or "") / "config.yaml"
    if directory is None or not config.exists():
        return None
    import yaml

    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
        return found | {"data": dict(found["data"])}
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError):
        return None  # texts beside somebody else's config.yaml


def _state_of_run(data: "GPTDataModule", options: argparse.Namespace) -> Mapping[str, Any] | None:
    """How the training of a run went, by its newest checkpoint; None if there is none, or other data is asked for."""
    found = list(Path(options.source or "", "checkpoints").glob("*.ckpt"))
    run = _config_of_run(options.source)
    if run is None or not found or given(options, options.data_module or run.get("data_module", "text")):
        return None
    from gpt2_lit.embedding.pretrained import read_checkpoint

    state = read_checkpoint(max(found, key=lambda path: path.stat().st_mtime_ns)).get(type(data).__qualname__)
    return state if state and "segments" in state else None


def _sources(data: "GPTDataModule", windows: "np.ndarray") -> list[dict[str, Any]]:
    """Where windows come from, and how each begins."""
    from gpt2_lit.monitor.counts import checked

    assert data.train_dataset is not None, "it is set up"
    found = []
    for window in windows.tolist():
        ids = checked(_shown_ids(data.train_dataset[window]), data.vocab_size, data.tokenizer.name)
        origins = [
            {"document": origin.document, "file": origin.file, "span": str(origin.span or "")}
            for origin in data.origins(window)
        ]
        found.append({"window": window, "origins": origins, "text": data.tokenizer.decode(ids.tolist())})
    return found


def _shown_ids(batch: "Batch | DocumentBatch") -> "np.ndarray":
    """The inputs of a window; where prompts are masked its answers, as prompts begin alike."""
    from gpt2_lit.data.windows import IGNORED

    is_kept = batch.target_ids != IGNORED
    return (batch.input_ids if is_kept[:1].all() else batch.target_ids[is_kept]).numpy()


def _checkpoint(name: str) -> str:
    """The file that a name stands for: last and best are those of the newest run, as in a training."""
    if name not in ("last", "best"):
        return name
    from gpt2_lit.cli.run import find_checkpoint

    return str(find_checkpoint(name))


def _tokenizer_of(checkpoint: str) -> Any:
    """The tokenizer of the run that a checkpoint lies in; GPT-2's for any other file."""
    run = _config_of_run(str(Path(checkpoint).absolute().parent.parent)) or {"data": {}}
    return _made(run.get("data_module", "text"), run["data"]).tokenizer


def _ids_of_word(tokenizer: Any, word: str) -> list[int]:
    """The one token that is a word, in GPT-2's way with the space before it, or its pieces."""
    from gpt2_lit.text.word_tokenizer import SimpleTokenizerV2

    ids = min((tokenizer.encode(text) for text in (f" {word}", word)), key=len)
    if not ids or SimpleTokenizerV2.UNKNOWN in tokenizer.decode(ids):
        raise InvalidValue(f"{word!r} is not in the vocabulary of the checkpoint's tokenizer.")
    return ids


# What is printed.


def _print_sources(console: Console, shares: list[dict[str, Any]]) -> None:
    from gpt2_lit.monitor.counts import visible

    table = _table("process", "window", "document", "file", "in it", "text")
    for share in shares:
        for source in share["sources"]:
            head = [str(share["process"]), f"{source['window']:,}"]
            text = visible(source["text"][:SHOWN_CHARACTERS]) + "..." * (len(source["text"]) > SHOWN_CHARACTERS)
            for origin in source["origins"]:
                document = "" if origin["document"] is None else f"{origin['document']:,}"
                table.add_row(*map(_text, (*head, document, origin["file"], origin["span"], text)))
                head, text = ["", ""], ""
    console.print(table)


def _console() -> Console:
    """Rich as it is in a terminal; in a file or pipe lines of any length, which nobody needs folded."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1 << 20)


def _text(text: str, style: str = "") -> Text:
    """Text from outside, for rich: neither its markup nor control characters count."""
    return Text(printable(text), style=style)


def _table(*columns: str) -> Table:
    table = Table(box=None, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column in ("id", "count", "share", "cosine", "size") else "left", overflow="fold"
        )
    return table


def _print_json(result: Any) -> None:
    print(json.dumps(result, indent=1))


def _in_words_of_the_tool(message: str) -> str:
    """The options of a training, data.context_size, by their names here: --context-size."""

    def name(match: re.Match) -> str:
        if match[1] == "source":
            return "SOURCE"
        return f"--{match[1].replace('_', '-')}" if match[1] in all_options() else match[0]

    return re.sub(r"\bdata\.(\w+)", name, message)


# The options.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}\n  for all options: {self.prog} --help\n")


def _options(args: Sequence[str], trainings: Mapping[str, str] = {}) -> argparse.Namespace:
    parser, commands = _parser(trainings)
    if not args:
        parser.print_help()
        sys.exit(0)
    if args[0] not in commands and not args[0].startswith("-"):
        parser.error(f"there is no command {args[0]!r}.{_meant(args[0], commands)}")
    options, unknown = parser.parse_known_args(args)
    if unknown:
        command = commands[args[0]]
        if unknown[0].startswith("-"):
            known = re.findall(r"--[\w-]+", command.format_help())
            command.error(f"there is no option {unknown[0]}.{_meant(unknown[0].partition('=')[0], known)}")
        command.error(f"there is one argument too many: {unknown[0]}.")
    return options


def _meant(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _parser(trainings: Mapping[str, str] = {}) -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and those of the commands by their names."""
    parser = _Parser(
        prog=program_name(),
        description="Prepare text for training, look at what training will see, and train.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
examples:
  gpt2-lit prepare corpus/ tokens      encode a directory of texts, once
  gpt2-lit info tokens                 documents, tokens, the most frequent ones
  gpt2-lit preview tokens              the first windows of a training on it
  gpt2-lit verify tokens               compare it with its checksums
  gpt2-lit fit --data.source tokens    train on it

The options of a command:  gpt2-lit COMMAND --help
""",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in trainings.items():
        commands.add_parser(name, help=text)

    def command(run: Callable[[argparse.Namespace], None]) -> _Parser:
        text, _, below = (inspect.getdoc(run) or "").partition("\n\n")
        added = commands.add_parser(
            run.__name__,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=below,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    def number(added: _Parser, name: str, lowest: int, default: int | None, text: str) -> None:
        """An option that takes a whole number; without a default the text says what is done."""

        def whole_number(value: str) -> int:
            if int(value) < lowest:
                raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {value}")
            return int(value)

        whole_number.__name__ = "int"  # in argparse's message
        text += "" if default is None else f" (default: {default})"
        added.add_argument(name, type=whole_number, default=default, metavar="N", help=text)

    def data(added: _Parser) -> None:
        added.add_argument(
            "source",
            metavar="SOURCE",
            nargs="?",
            help="a store, a text or directory of texts (encoded at the first use), a .bin file of ids, or the "
            "directory of a run, whose options then count; left out: the tale that ships with gpt2_lit",
        )
        added.add_argument("--data-module", choices=[*SOURCES], help="what SOURCE holds (default: text, or as the run)")
        add_data_options(added.add_argument_group("data, as in a training (--data.context_size ...)"), data_options())
        of_instructions = [name for name in data_options("instructions") if name not in data_options()]
        add_data_options(added.add_argument_group("of --data-module instructions alone"), of_instructions)

    make = command(prepare)
    make.add_argument("source", metavar="SOURCE", nargs="+", help="files, directories, patterns or URLs")
    make.add_argument("store", metavar="STORE", help="directory for the tokens")
    number(make, "--processes", 1, None, "processes that encode (default: one for each core)")
    make.add_argument("--sha256", action="store_true", help="record a SHA-256 of each shard, which verify compares")
    add_data_options(make, RECIPE_OPTIONS)

    told = command(info)
    data(told)
    number(told, "--top", 0, 20, "most frequent tokens to show")

    shown = command(preview)
    data(shown)
    number(shown, "--windows", 1, 5, "windows to show")
    number(shown, "--step", 0, 0, "step of one process to begin at")

    command(verify).add_argument("store", metavar="STORE", help="directory of a store that was prepared")

    planned = command(plan)
    data(planned)
    number(planned, "--world-size", 1, 1, "processes that train")
    number(planned, "--num-workers", 0, 0, "loader workers of each process")
    number(planned, "--step", 0, 0, "number of the batch since the training began")
    planned.add_argument("--show", action="store_true", help="also show their documents, files and bytes")

    asked = command(where)
    number(asked, "step", 0, None, "number of the batch since the training began")
    data(asked)
    number(asked, "--world-size", 1, 1, "processes that train")

    checkpoint = "a checkpoint or other file of weights, or last or best for that of the newest run in logs/"
    near = command(neighbours)
    near.add_argument("checkpoint", metavar="CHECKPOINT", help=f"{checkpoint}, or a repository on Hugging Face")
    near.add_argument("word", metavar="WORD", nargs="+", help="a word; one of several tokens is shown piece by piece")
    number(near, "--num", 1, 10, "neighbours of each")

    written = command(export)
    written.add_argument("checkpoint", metavar="CHECKPOINT", help=checkpoint)
    written.add_argument("file", metavar="FILE", help="ends in .safetensors or .parquet")
    written.add_argument("--parquet", action="store_true", help="write the tables for Embedding Atlas: FILE.parquet")

    begun = command(init)
    begun.add_argument("directory", metavar="DIRECTORY", nargs="?", default=".", help="made if absent (default: here)")

    listed = command(cache)
    listed.add_argument("--clear", metavar="NAME", nargs="*", help="delete these, or all")
    add_data_options(listed, ["cache_dir"])

    for added in commands.choices.values():
        added.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser, commands.choices
