"""The tool as a process of its own, beside what a training gets."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from gpt2_lit import Batch, EmbeddingModule, GPTDataModule, gpt2_tokenizer
from gpt2_lit.cli.tool import _parser, _table, main
from gpt2_lit.data.order import WindowSampler
from gpt2_lit.store.manifest import Manifest
from gpt2_lit.text.sources import SHIPPED_TEXT

TALE = SHIPPED_TEXT.read_text(encoding="utf-8")
TOOL = [sys.executable, "-c", "from gpt2_lit.cli.tool import main; main()"]

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process and in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpt2-lit"])

    def tool(*args: object) -> tuple[int, str, str]:
        status = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return (1, out, f"{err}{status}\n") if isinstance(status, str) else (status or 0, out, err)

    return tool


@pytest.fixture
def as_json(tool: Any) -> Callable[..., Any]:
    def as_json(*args: object) -> Any:
        status, out, err = tool(*args, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    return as_json


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text(TALE)
    (folder / "b.jsonl").write_text('{"text": "the cat"}\n{"text": "the hat"}\n')
    return folder


@pytest.fixture
def store(corpus: Path, tool: Any, tmp_path: Path) -> Path:
    assert tool("prepare", corpus, tmp_path / "tokens")[0] == 0
    return tmp_path / "tokens"


# What it tells.


def test_prepare_tells_what_there_is_and_what_was_done(tool, as_json, corpus, tmp_path):
    num_tokens = len(gpt2_tokenizer().encode(TALE)) + 2 * 3
    status, out, err = tool("prepare", "corpus", "tokens")
    num_bytes = (corpus / "a.txt").stat().st_size + sum(path.stat().st_size for path in corpus.glob("*.jsonl"))
    assert (status, err) == (0, f"data.source: 2 files (1 .txt, 1 .jsonl), {num_bytes:,} bytes\n")
    assert out.splitlines() == [
        f"tokens: {num_tokens:,} tokens of 3 documents; encoded 1 of 1 shards.",
        "Train on it: gpt2-lit fit --data.source tokens",
    ]
    assert "nothing to do" in tool("prepare", "corpus", "tokens")[1]
    (corpus / "c.txt").write_text("new")
    assert as_json("prepare", "corpus", "tokens") == {
        "store": str(tmp_path / "tokens"),
        "tokens": num_tokens + 2,
        "documents": 4,
        "shards": 1,
        "shards_made": 1,
        "changes": [f"added {corpus}/c.txt"],
    }
    (corpus / "c.txt").unlink()
    assert f"removed {corpus}/c.txt" in tool("prepare", "corpus", "tokens")[1]


def test_prepare_takes_the_options_of_the_text(tool, as_json, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"content": "a b c"}\n')
    status, _, err = tool("prepare", "rows.jsonl", "tokens")
    assert status == 1
    assert err == (
        f"error: {tmp_path}/rows.jsonl, line 1: the object has no field 'text'. It has: content. Set --text-field.\n"
    )
    assert as_json("prepare", "rows.jsonl", "tokens", "--text-field", "content", "--processes", 1)["tokens"] == 3
    assert Manifest.load("tokens").options == {"text_field": "content", "strip_gutenberg": False}


def test_info_tells_what_the_store_holds_and_counts_the_inputs_of_training(as_json, store):
    num_tokens = len(gpt2_tokenizer().encode(TALE)) + 6
    told = as_json("info", store, "--context-size", 64, "--top", 3)
    num_bytes = len(TALE.encode()) + len("the cat") + len("the hat")
    assert (told["tokens"], told["documents"], told["sources"]) == (num_tokens, 3, 2)
    assert (told["bytes_of_text"], told["bytes_a_token"]) == (num_bytes, round(num_bytes / num_tokens, 2))
    data = GPTDataModule(str(store), context_size=64)
    data.setup("fit")
    counts = Counter(token for window in data.train_dataset for token in window.input_ids.tolist())
    expected = sorted((-count, token) for token, count in counts.items())[:3]
    assert [(-token["count"], token["id"]) for token in told["most_frequent"]] == expected
    assert told["most_frequent"][0]["text"] == "\n"
    assert told["counted_tokens"] == counts.total()
    for split in ("train", "val"):
        assert told["splits"][split] == {"tokens": data.num_tokens[split], "windows": data.num_windows[split]}


def test_info_the_projector_and_the_results_of_a_run_count_the_same_tokens(here, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("gpt2_lit.monitor.counts.RUNS", 6)  # all of validation, and a ninth of training
    monkeypatch.setattr("gpt2_lit.monitor.counts.RUN_TOKENS", 64)
    out = here("fit", "--trainer.max_steps=13", "--monitor.projected_tokens=1000")
    main(["info", "--top", "1000", "--json"])
    told = json.loads(capfd.readouterr().out)
    [labels] = tmp_path.rglob("metadata.tsv")
    header, *rows = labels.read_text().splitlines()
    assert told["counted_tokens"] == 6 * 64
    assert header.endswith(f"count in {6 * 64} tokens of the corpus")
    assert [int(row.split("\t")[1]) for row in rows] == [token["count"] for token in told["most_frequent"]]
    counts = np.ones(50257)
    counts[[token["id"] for token in told["most_frequent"]]] += [token["count"] for token in told["most_frequent"]]
    data = GPTDataModule()
    data.setup("fit")
    targets = data.val_dataset[range(len(data.val_dataset))].target_ids.flatten()
    perplexity = np.exp(-np.log(counts[targets] / counts.sum()).mean())
    assert f"({perplexity:,.0f} from the tokens' frequencies alone)" in " ".join(out.split())


def test_info_in_a_pipe_is_plain_and_not_folded(tool, store):
    status, out, _ = tool("info", store)
    assert status == 0
    assert "\x1b" not in out
    assert f"store          {store}" in out
    assert "bytes a token  3.5" in out
    assert [line.split()[:1] for line in out.splitlines() if "' the'" in line] == [["262"]]


def test_preview_shows_the_target_one_token_on(tool, tmp_path):
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine ten\nlast")
    status, out, err = tool(
        "preview",
        "a.txt",
        "--context-size",
        4,
        "--windows",
        1,
        "--val-fraction",
        0,
        "--shuffle",
        "false",
        "--batch-size",
        1,
    )
    assert (status, err) == (0, "")
    title, of_input, of_target = out.splitlines()[-3:]
    assert title == "step 0, epoch 0, window 0"
    assert of_input == "  input   one| two| three| four"
    assert of_target == "  target       two| three| four| five"
    assert of_input.index(" three") == of_target.index(" three")


def test_preview_joins_tokens_that_are_parts_of_a_character(tool, tmp_path):
    (tmp_path / "a.txt").write_text("\u543e\u8f29\u306f\u732b\u3067\u3042\u308b a b c d e f g", encoding="utf-8")
    options = ["--context-size", 12, "--windows", 1, "--val-fraction", 0, "--shuffle", "false", "--batch-size", 1]
    status, out, err = tool("preview", "a.txt", *options)
    assert (status, err) == (0, "")
    *_, of_input, of_target = out.splitlines()
    assert of_input == "  input   \u543e|\u8f29|\u306f|\u732b|\u3067|\u3042|\u308b"
    assert of_target == "  target     \u8f29|\u306f|\u732b|\u3067|\u3042|\u308b| a"


def test_preview_writes_line_ends_and_wide_letters_so_that_columns_stay(tool, tmp_path):
    (tmp_path / "a.txt").write_text("\u4f60 a\n\t\u200bb c d e f g h")
    out = tool("preview", "a.txt", "--context-size", 8, "--windows", 1, "--val-fraction", 0, "--batch-size", 1)[1]
    assert "\\n" in out
    assert "\\t" in out
    assert "\u200b" not in out


def test_preview_shows_what_is_masked(tool, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "2 + 2?", "completion": "It is\\n4."}\n' * 2)
    args = ["a.jsonl", "--data-module", "instructions", "--template", "Q: {prompt} A: {completion}", "--mask-prompt"]
    status, out, err = tool("preview", *args, "--val-fraction", 0, "--batch-size", 1, "--windows", 1)
    assert status == 0, err
    assert out.endswith(": 6 of 13 targets count\n  masked  Q: 2 + 2? A:\n  target   It is\\n4.<|endoftext|>\n")
    [window] = json.loads(tool("preview", *args, "--val-fraction", 0, "--batch-size", 1, "--windows", 1, "--json")[1])
    assert window["target"] == " It is\n4.<|endoftext|>"
    assert window["target_ids"].count(-100) == 7
    assert "--stride is an option of --data-module text" in tool("preview", *args, "--stride", 3)[2]


class Record(LightningModule):
    """Trains a single number, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        return self.number

    def validation_step(self, batch: Batch) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("shuffle", ["global", "block", "false"])
def test_preview_shows_what_a_training_is_given(as_json, store, shuffle):
    options = {"context_size": 16, "stride": 7, "batch_size": 100, "val_fraction": 0.2, "seed": 3}
    data = GPTDataModule(str(store), shuffle=False if shuffle == "false" else shuffle, **options)
    record = Record()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(record, data)
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    steps_of_epoch = len(record.batches) // 2
    shown = as_json("preview", store, *arguments, "--shuffle", shuffle, "--windows", 100 * len(record.batches))
    assert [window["input_ids"] for window in shown] == torch.cat(
        [batch.input_ids for batch in record.batches]
    ).tolist()
    assert [window["target_ids"] for window in shown] == torch.cat(
        [batch.target_ids for batch in record.batches]
    ).tolist()
    assert [window["epoch"] for window in shown] == [0] * 100 * steps_of_epoch + [1] * 100 * steps_of_epoch
    assert shown[0]["input"] == gpt2_tokenizer().decode(shown[0]["input_ids"])
    later = as_json("preview", store, *arguments, "--shuffle", shuffle, "--windows", 3, "--step", steps_of_epoch)
    assert later == shown[100 * steps_of_epoch :][:3]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (3, 2)])
def test_plan_tells_what_the_sampler_gives_each_process(as_json, store, world_size, num_workers):
    data = GPTDataModule(str(store), batch_size=10)
    data.setup("fit")
    samplers = [
        WindowSampler(data.num_windows["train"], 10, seed=42, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len(samplers[0]) % 2, "so that an epoch's first worker is not that of the step's number"
    steps = [[(epoch, windows.tolist()) for epoch in range(2) for windows in sampler] for sampler in samplers]
    for step in {0, 1, len(samplers[0]) - 1, len(samplers[0]), 2 * len(samplers[0]) - 1}:
        told = as_json(
            "plan", store, "--batch-size", 10, "--world-size", world_size, "--num-workers", num_workers, "--step", step
        )
        assert [(share["epoch"], share["windows"]) for share in told] == [of_rank[step] for of_rank in steps]
        assert [share["process"] for share in told] == list(range(world_size))
        worker = step % len(samplers[0]) % num_workers if num_workers else None
        assert {share["worker"] for share in told} == {worker}


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_plan_names_the_worker_that_makes_the_batch(as_json, store, monkeypatch):
    data = GPTDataModule(str(store), batch_size=10, num_workers=2)
    data.setup("fit")
    plain = type(data.train_dataset).__getitem__

    def with_worker(dataset, index):
        batch = plain(dataset, index)
        return batch._replace(target_ids=torch.full_like(batch.target_ids, torch.utils.data.get_worker_info().id))

    monkeypatch.setattr(type(data.train_dataset), "__getitem__", with_worker)
    loader = data.train_dataloader()
    workers = [int(batch.target_ids[0, 0]) for _ in range(2) for batch in loader]
    del loader
    monkeypatch.undo()
    for step in (0, 1, len(workers) // 2, len(workers) - 1):
        [share] = as_json("plan", store, "--batch-size", 10, "--num-workers", 2, "--step", step)
        assert share["worker"] == workers[step]


def test_plan_far_into_a_store_of_a_trillion_tokens(as_json, tmp_path):
    with open(tmp_path / "x.bin", "wb") as file:
        try:
            file.truncate(2 * 10**12)
        except OSError:
            pytest.skip("this file system has no files of two terabytes")
    told = as_json("plan", "x.bin", "--world-size", 64, "--context-size", 1024, "--stride", 1, "--step", 10**9)
    windows = [window for share in told for window in share["windows"]]
    assert len(set(windows)) == 64 * 8
    assert max(windows) < 0.95 * 10**12


def test_verify_names_the_damaged_file_and_how_to_mend_it(tool, store, corpus, capsys):
    status, out, _ = tool("verify", store)
    assert status == 0
    assert out.startswith(f"{store}: all 3,962 tokens in 1 shards are unchanged since they were written,")
    assert out.endswith("by CRC-32: finds accidents, not people.\n")
    [file] = store.glob("tokens-*")
    content = bytearray(file.read_bytes())
    content[1000] ^= 4
    file.write_bytes(content)
    status, out, _ = tool("verify", store)
    assert status == 1
    assert out.startswith(f"error: {file} is damaged: its CRC-32 is ")
    assert f"It was made from {corpus}/a.txt to {corpus}/b.jsonl. To mend it, delete it and prepare" in out
    assert out.count("\n") == 1
    status, out, _ = tool("verify", store, "--json")
    assert status == 1
    assert json.loads(out)["damaged"][0]["file"] == str(file)
    file.unlink()
    assert "is missing" in tool("verify", store)[1]
    assert tool("prepare", corpus, store)[0] == 0
    assert tool("verify", store)[0] == 0


@pytest.mark.parametrize("command", ["info", "preview", "plan"])
def test_without_a_source_it_is_the_tale(as_json, command):
    assert as_json(command)


def test_the_folder_of_a_run_brings_its_options(as_json, store, tmp_path):
    run = tmp_path / "version_0"
    run.mkdir()
    (run / "config.yaml").write_text(
        f"seed_everything: 1\ndata: {{source: {store}, context_size: 8, stride: null, seed: 7, shuffle: false}}\n"
    )
    shown = as_json("preview", "version_0", "--windows", 3)
    same = as_json("preview", store, "--windows", 3, "--context-size", 8, "--seed", 7, "--shuffle", "false")
    assert shown == same
    assert len(as_json("preview", run, "--context-size", 5)[0]["input_ids"]) == 5


def test_a_folder_of_texts_may_hold_a_config_of_its_own(as_json, corpus):
    for content in ("data: 3", "- a", "{", "x: 1"):
        (corpus / "config.yaml").write_text(content)
        assert as_json("info", corpus)["documents"] == 3


def test_a_run_of_the_program_is_previewed_as_it_began(as_json, program, tmp_path):
    (tmp_path / "words.txt").write_text(" ".join(f"w{number:03}" for number in range(300)))
    args = ["--data.tokenizer=words", "--data.source=words.txt", "--data.context_size=4", "--data.stride=3"]
    status, printed = program("fit", *args, "--model.embed_dim=4", "--trainer.max_steps=1", "--trainer.accelerator=cpu")
    assert status == 0, printed
    shown = as_json("preview", "logs/version_0", "--windows", 8)
    data = GPTDataModule("words.txt", tokenizer="words", context_size=4, stride=3)
    data.setup("fit")
    assert [window["input_ids"] for window in shown] == next(iter(data.train_dataloader())).input_ids.tolist()
    assert shown[0]["input"].split()[1:] == shown[0]["target"].split()[:-1]


def test_a_store_of_another_tokenizer_is_prepared_and_looked_at(tool, as_json, tmp_path):
    (tmp_path / "words.txt").write_text("the cat sat on the mat")
    status, out, _ = tool("prepare", "words.txt", "tokens", "--tokenizer", "words")
    assert status == 0
    assert "Train on it: gpt2-lit fit --data.source tokens --data.tokenizer words" in out
    assert Manifest.load("tokens").tokenizer == "words"
    assert as_json("prepare", "words.txt", "tokens", "--tokenizer", "words")["shards_made"] == 0


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GPT2_LIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_lists_what_was_encoded_and_clears_it(tool, as_json, own_cache, tmp_path):
    assert as_json("cache") == {"directory": str(own_cache), "entries": []}
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} word after another. " * 100)
    code = "from gpt2_lit.cli.tool import main; main(['info', 'one.txt']); main(['info', 'two.txt'])"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)  # which ends its use
    told = as_json("cache")["entries"]
    assert [entry["source"] for entry in told] == ["two.txt", "one.txt"], "the last used first"
    for entry in told:
        assert entry["num_bytes"] == sum(path.stat().st_size for path in Path(entry["path"]).glob("[!.]*"))
        assert time.time() - 60 < entry["last_use"] < time.time() + 1
    name = Path(told[1]["path"]).name
    status, out, _ = tool("cache")
    assert status == 0
    assert re.search(rf"{name} +one.txt +\d[\d.,]* \w*B +\d{{4}}-\d\d-\d\d \d\d:\d\d *\n", out)
    assert re.search(rf"{name} .* deleted\n", tool("cache", "--clear", name)[1])
    assert [path.name for path in own_cache.iterdir() if path.is_dir()] == [Path(told[0]["path"]).name]
    status, _, err = tool("cache", "--clear", name)
    assert (status, f"there is no {name} in the cache" in err) == (1, True)
    assert [entry["deleted"] for entry in as_json("cache", "--clear")["entries"]] == [True]
    assert as_json("cache")["entries"] == []


@pytest.mark.skipif(os.name != "posix", reason="Windows does not tell who uses a file")
def test_what_a_process_uses_is_not_cleared(tool, own_cache, tmp_path):
    (tmp_path / "one.txt").write_text("one word after another. " * 100)
    data = GPTDataModule("one.txt")
    data.setup("fit")
    code = [*TOOL[:-1], f"{TOOL[-1]}", "cache", "--clear"]
    told = subprocess.run(code, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert "in use, kept" in told
    assert next(iter(data.train_dataloader()))


def test_where_names_documents_files_and_bytes_of_what_a_training_gets_at_a_step(as_json, tool, store, corpus):
    options = ["--context-size", 16, "--batch-size", 3]
    data = GPTDataModule(str(store), context_size=16, batch_size=3)
    data.setup("fit")
    batch = list(data.train_dataloader())[5]
    [share] = as_json("where", 5, store, *options)
    raw = (corpus / "a.txt").read_bytes()
    for source, input_ids in zip(share["sources"], batch.input_ids, strict=True):
        assert source["text"] == data.tokenizer.decode(input_ids.tolist())
        [origin] = source["origins"]
        assert (origin["document"], origin["file"]) == (0, str(corpus / "a.txt"))
        start, stop = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+", origin["span"]))
        assert raw[start:stop].decode().startswith(source["text"])
    shares = as_json("plan", store, "--step", 5, "--world-size", 3, "--context-size", 16, "--batch-size", 1, "--show")
    assert [share["sources"][0] for share in shares] == share["sources"]
    shown = tool("where", 5, store, *options)[1]
    assert re.search(rf"0 +{share['sources'][0]['window']} +0 +{corpus}/a.txt +bytes [\d,]+ to [\d,]+ ", shown)
    assert tool("plan", store, "--step", 5, *options, "--show")[1].endswith(shown.partition("\n")[2])


def test_where_leaves_out_what_a_training_leaves_out(as_json, store):
    def windows(*options: object) -> list[int]:
        return [source["window"] for share in as_json("where", 2, store, *options) for source in share["sources"]]

    assert windows("--skip", "step 2") == as_json("plan", store, "--step", 3)[0]["windows"]


# What a training has learned.


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A table in which the vectors of a few words are as alike as one can say by heart."""
    embedding = EmbeddingModule(embed_dim=2, context_size=3)
    with torch.no_grad():
        embedding.token_embedding.weight[:] = torch.tensor([0.0, -1.0])
        for word, vector in {" rain": (2.0, 0.0), " snow": (3.0, 0.0), " book": (1.0, 1.0)}.items():
            (token_id,) = gpt2_tokenizer().encode(word)
            embedding.token_embedding.weight[token_id] = torch.tensor(vector)
    torch.save(embedding.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_neighbours_are_the_tokens_with_the_largest_cosine(tool, as_json, weights):
    (rain,) = as_json("neighbours", weights, "rain", "--num", 2)
    assert (rain["word"], rain["text"]) == ("rain", " rain")
    assert [(near["text"], near["cosine"]) for near in rain["neighbours"]] == [(" snow", 1.0), (" book", 0.7071)]
    status, out, _ = tool("neighbours", weights, "snow", "book", "--num", 1)
    assert status == 0
    assert [line.split() for line in out.splitlines() if "'" in line and "id" not in line] == [
        ["6290", "'", "rain'", "1.000"],
        ["6290", "'", "rain'", "0.707"],
    ]


def test_a_word_of_several_tokens_is_shown_piece_by_piece(as_json, weights):
    found = as_json("neighbours", weights, "unbelievability", "--num", 1)
    assert [token["text"] for token in found] == [" unbeliev", "ability"]


def test_a_run_has_neighbours_among_its_own_words_and_is_exported_whole(tool, as_json, program, tmp_path):
    (tmp_path / "words.txt").write_text("the cat sat on the mat and the dog sat on the cat")
    status, printed = program(
        "fit",
        "--data.source=words.txt",
        "--data.tokenizer=words",
        "--data.context_size=2",
        "--data.batch_size=1",
        "--data.val_fraction=0.0",
        "--model.embed_dim=4",
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
    )
    assert status == 0, printed
    (cat,) = as_json("neighbours", "last", "cat")
    assert len(cat["neighbours"]) == 8  # cat, sat, on, the, mat, and, dog; end of text and unknown
    status, _, err = tool("neighbours", "last", "fish")
    assert status == 1
    assert "error: 'fish' is not in the vocabulary of the checkpoint's tokenizer." in err

    shapes = as_json("export", "last", "tables.safetensors")
    assert shapes == {"embedding.token_embedding.weight": [9, 4], "embedding.position_embedding.weight": [2, 4]}
    trained = torch.load("logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    exported = EmbeddingModule.from_pretrained("tables.safetensors").state_dict()
    assert all(torch.equal(trained[f"embedding.{name}"], tensor) for name, tensor in exported.items())

    parquet = pytest.importorskip("pyarrow.parquet")
    status, out, _ = tool("export", "last", "tables.parquet", "--parquet")
    assert status == 0
    command = "embedding-atlas tables.parquet --vector vector --neighbors neighbors --text text"
    assert out.splitlines()[-1] == command
    rows = parquet.read_table("tables.parquet").to_pylist()
    counts = {row["text"]: row["count"] for row in rows}
    assert (len(rows), counts["the"], counts["cat"], counts["dog"]) == (9 + 2, 4, 1, 1), (
        "the last cat is a target alone"
    )
    Path("logs/version_0/checkpoints/last.ckpt").rename("alone.ckpt")
    tool("export", "alone.ckpt", "alone.parquet")
    assert {row["count"] for row in parquet.read_table("alone.parquet").to_pylist()} == {None}


# What may go wrong.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "nowhere.txt"], "error: SOURCE: there is no file or directory nowhere.txt (looked in"),
        (["info", "--context-size", "0"], "error: context_size must be at least 1, got 0. Set --context-size."),
        (["preview", "--context-size", "100000"], "error: the text is too short: one window needs"),
        (["plan", "--world-size", "1000"], "error: too few windows for one full batch: 1000 x batch_size 8 windows"),
        (["info", "x.bin"], "error: SOURCE: there is no file x.bin"),
        (["info", "wrong.bin"], "vocabulary ends at 50256. Set --token-dtype to the type it was written with"),
        (["info", "odd.bin"], "which is not a whole number of uint16 ids above 0. Set --token-dtype"),
        (["verify", "nowhere"], "error: nowhere is not a token store: there is no"),
        (["prepare", "wrong.bin", "."], "holds other files and no token store. Give an empty or a new directory."),
        (["prepare", "nowhere", "tokens"], "error: SOURCE: there is no file or directory nowhere"),
        (["neighbours", "nowhere.pt", "rain"], "error: there is no file or directory nowhere.pt"),
        (["neighbours", "last", "rain"], "error: --ckpt_path last: no run in"),
        (["export", "odd.bin", "x.safetensors"], "error: odd.bin is not a checkpoint of tensors and plain values"),
        (["export", "nowhere", "x.safetensors"], "error: there is no file nowhere. Give the path of a checkpoint."),
        (["export", "odd.bin", "x.pt"], "error: FILE must end in .safetensors or .parquet, got x.pt."),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(tool, tmp_path, args, message):
    np.full(100_000, 60_000, "<u2").tofile(tmp_path / "wrong.bin")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    status, out, err = tool(*args)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_id_beyond_the_vocabulary_that_no_sample_showed_is_an_error(tool, tmp_path):
    ids = np.zeros(10_000_000, "<u2")
    ids[5_000] = 60_000
    ids.tofile(tmp_path / "x.bin")
    status, _, err = tool("info", "x.bin")
    assert status == 1
    assert "error: the source holds the id 60000, and the vocabulary of gpt2 ends at 50256. Was it" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["infoo"], "there is no command 'infoo'. Did you mean info?\n  for all options: gpt2-lit --help"),
        (["info", "--contextsize=3"], "there is no option --contextsize=3. Did you mean --context-size?"),
        (["info", "--context", "3"], "there is no option --context"),
        (["info", "a", "b"], "there is one argument too many: b."),
        (
            ["info", "--context-size", "x"],
            "argument --context-size: invalid int value: 'x'\n  for all options: gpt2-lit info",
        ),
        (["plan", "--step", "-1"], "argument --step: must be at least 0, got -1"),
        (["plan", "--world-size", "0"], "argument --world-size: must be at least 1, got 0"),
        (["prepare", "a", "b", "--processes", "0"], "argument --processes: must be at least 1, got 0"),
        (["info", "--shuffle", "rows"], "argument --shuffle: invalid choice: 'rows'"),
        (["prepare", "a"], "the following arguments are required: STORE\n  for all options: gpt2-lit prepare --help"),
        (["verify"], "the following arguments are required: STORE"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_a_hint(tool, args, message):
    status, out, err = tool(*args)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 2


def run(*args: object, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run([*TOOL, *map(str, args)], capture_output=True, text=True, timeout=100, **options)


def test_help_has_examples_and_needs_no_torch():
    for args in (
        [],
        ["--help"],
        *([name, "--help"] for name in ("prepare", "info", "preview", "verify", "plan", "where")),
    ):
        code = f"import sys; from gpt2_lit.cli.tool import main\ntry: main({args!r})\n"
        code += "finally: assert 'torch' not in sys.modules"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "example" in done.stdout
        assert f"  gpt2-lit {args[0] if args and args[0] != '--help' else 'prepare'} " in done.stdout


@pytest.mark.parametrize("command", [None, *_parser()[1]])
def test_each_help_fits_into_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["gpt2-lit"])
    parser, commands = _parser({"fit": "train"})
    text = (commands[command] if command else parser).format_help()
    assert max(map(len, text.splitlines())) <= 80


def test_preparing_and_verifying_need_no_torch(corpus, tmp_path):
    for args in (["prepare", str(corpus), str(tmp_path / "tokens")], ["verify", str(tmp_path / "tokens")]):
        code = f"import sys; from gpt2_lit.cli.tool import main; main({args!r}); assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_store_prepared_with_sha256_is_verified_by_it(tool, corpus, tmp_path):
    assert tool("prepare", corpus, tmp_path / "tokens", "--sha256")[0] == 0
    status, out, _ = tool("verify", tmp_path / "tokens")
    assert status == 0
    manifest = hashlib.sha256((tmp_path / "tokens" / "manifest.json").read_bytes()).hexdigest()
    assert f"by SHA-256. That of manifest.json, which holds the others, is {manifest}" in out


def test_a_reader_that_leaves_early_gets_no_traceback(store):
    code = f"{sys.executable} -c 'from gpt2_lit.cli.tool import main; main()' preview {store} --windows 3000 | head -1"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, timeout=100)
    assert "windows of 32 tokens for training" in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C reaches a group of processes")
def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path):
    rows = "".join(json.dumps({"text": f"{number} {TALE}"}) + "\n" for number in range(10_000))
    (tmp_path / "rows.jsonl").write_text(rows)
    command = [*TOOL, "prepare", str(tmp_path / "rows.jsonl"), str(tmp_path / "tokens")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "tokens" / ".lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the processes that encode get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "stopped. What was finished is kept: the same command resumes." in err
    assert not list((tmp_path / "tokens").glob("*.tmp"))
    done = run(*command[3:])
    assert done.returncode == 0
    assert "10,000 documents" in done.stdout


def test_numbers_of_a_table_are_aligned_to_the_right() -> None:
    columns = _table("id", "token", "count").columns
    assert [column.justify for column in columns] == ["right", "left", "right"]


@pytest.mark.parametrize("name", sorted(_parser({})[1]))
def test_each_argument_of_a_command_is_explained_and_what_it_takes_is_in_capitals(name: str) -> None:
    for action in _parser({})[1][name]._actions:
        assert action.help
        if action.nargs != 0 and not action.choices:
            assert isinstance(action.metavar, str)
            assert action.metavar.isupper()


HOSTILE = "\x1b[2J[bold]a[/b]"  # clears a terminal, and is no markup of rich's


def test_names_from_outside_write_neither_to_the_terminal_nor_in_richs_markup(
    tool: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    escaped = HOSTILE.replace("\x1b", "\\x1b")
    name, store = f"{HOSTILE}.txt".replace("/", ""), HOSTILE.replace("/", "")
    (tmp_path / name).write_text(TALE)
    torch.save({HOSTILE: torch.zeros(2)}, tmp_path / "a.ckpt")
    outputs = [
        tool("prepare", name.replace("[", "[[]"), store),
        tool("info", store),
        tool("verify", store),
        tool("cache"),
        tool("export", "a.ckpt", "a.safetensors"),
        tool("export", "a.ckpt", f"{store}.safetensors"),
        tool("info", HOSTILE),
    ]
    assert [status for status, _, _ in outputs[:6]] == [0] * 6, outputs
    assert not [text for _, *texts in outputs for text in texts if "\x1b" in text]
    assert escaped in outputs[4][1]
    assert escaped.replace("/", "") in outputs[1][1]
