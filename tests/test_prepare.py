import gzip
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lit import SimpleTokenizerV2, gpt2_tokenizer
from gpt2_lit.store import plan, storage
from gpt2_lit.store import prepare as prepare_module
from gpt2_lit.store.manifest import Manifest, StoreError, VersionError
from gpt2_lit.store.plan import Recipe, plan_shards
from gpt2_lit.store.prepare import prepare
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.token_store import open_store
from gpt2_lit.store.verify import verify
from gpt2_lit.store.workers import encode_in_threads, encode_shard
from gpt2_lit.text.bpe import GPT2_END_OF_TEXT
from gpt2_lit.text.files import SHIPPED_TEXT
from gpt2_lit.text.readers import TextOptions
from gpt2_lit.text.sources import Source
from gpt2_lit.text.tokenizer import make_tokenizer

TALE = SHIPPED_TEXT.read_text(encoding="utf-8")
SHARD_BYTES = 20_000

# What a user's program does, with shards so small that a corpus of a megabyte has dozens.
DRIVER = """
import logging, resource, sys
from gpt2_lit.store import plan, prepare
source, store, num_processes, shard_bytes, file_bytes = *sys.argv[1:3], *map(int, sys.argv[3:])
logging.basicConfig(level="INFO")
plan.SHARD_BYTES, prepare._IN_PROCESS_BYTES = shard_bytes, 0
if file_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
print(prepare.prepare(source, store, num_processes=num_processes, show_progress=False).num_made)
"""


def start(source: Path, store: Path, num_processes: int = 2, file_bytes: int = 0) -> subprocess.Popen:
    arguments = [str(source), str(store), str(num_processes), str(SHARD_BYTES), str(file_bytes)]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen) -> int:
    """The number of shards that a program made."""
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return int(output)


def error_of(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    return errors.splitlines()[-1]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD_BYTES", SHARD_BYTES)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A large file that is cut, a packed one, lines of JSON and many small files; half a megabyte."""
    directory = tmp_path / "corpus"
    (directory / "small").mkdir(parents=True)
    (directory / "large.txt").write_text("\n\n".join(f"{number} {TALE}" for number in range(200_000 // len(TALE))))
    with gzip.open(directory / "packed.txt.gz", "wt", compresslevel=1) as file:
        file.write(TALE * 3)
    lines = [json.dumps({"text": f"{number}: {TALE[: number * 7]}", "id": number}) for number in range(200)]
    (directory / "lines.jsonl").write_text("\n".join(lines))
    for number in range(60):
        (directory / "small" / f"{number:03}.txt").write_text(f"{number} {TALE[number * 40 : number * 80 + 100]}")
    return directory


def tree(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def fresh(source: Path, recipe: Recipe | None = None) -> dict[str, bytes]:
    """The files of a store that is made in one go."""
    store = source.parent / "fresh"
    shutil.rmtree(store, ignore_errors=True)
    prepare(source, store, recipe, num_processes=1)
    return tree(store)


def num_shards(store: Path) -> int:
    return len(Manifest.load(store).shards)


def read_all(store: Path) -> list[int]:
    opened = open_store(store)
    return opened.read(0, len(opened)).tolist()


def joined(documents: list[str]) -> list[int]:
    """What a store must hold: the documents, each as tiktoken encodes it, with the end of text between them."""
    ids = [gpt2_tokenizer().encode_ordinary(document) for document in documents if document]
    return [token for document in ids for token in (*document, GPT2_END_OF_TEXT)][:-1]


# What comes out.

TEXTS = st.text(
    st.one_of(st.sampled_from(" \n\r\t.ab1'\u00e9\u3000\U0001f600"), st.characters(codec="utf-8")), max_size=60
)
PLAIN_TEXTS = TEXTS.map(lambda text: text.replace("\0", ""))  # with a NUL a .txt is refused
FILES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["txt", "txt.gz"]), st.lists(PLAIN_TEXTS, min_size=1, max_size=1)),
        st.tuples(st.sampled_from(["jsonl", "jsonl.gz"]), st.lists(TEXTS, max_size=5)),
    ),
    min_size=1,
    max_size=5,
)


@given(FILES, st.integers(1, 80))
@settings(deadline=None, max_examples=40)
def test_a_store_holds_the_ids_of_the_documents_with_the_end_of_text_between(tmp_path_factory, files, shard_bytes):
    directory = tmp_path_factory.mktemp("corpora")
    corpus, documents = directory / "corpus", []
    corpus.mkdir()
    for number, (ending, texts) in enumerate(files):
        if ending.startswith("txt"):
            content = texts[0].encode()
            documents.append(texts[0].removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
        else:
            content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
            documents += texts
        packed = gzip.compress(content, 1) if ending.endswith("gz") else content
        (corpus / f"{number}.{ending}").write_bytes(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_BYTES", shard_bytes)
        patch.setattr("os.fsync", lambda descriptor: None)  # hundreds of files
        if not any(documents):
            with pytest.raises(ValueError, match="empty"):
                prepare(corpus, directory / "store")
        else:
            manifest = prepare(corpus, directory / "store").manifest
            tokens = joined(documents)
            assert read_all(directory / "store") == tokens
            assert manifest.num_documents == len([text for text in documents if text])
            assert sum(shard.num_bytes for shard in manifest.shards) == len("".join(documents).encode())
            store = open_store(directory / "store")
            ends = [place for place in range(1, len(store)) if store.nearest_document_end(place, 0) == place]
            found = {store.nearest_document_end(place, len(store)) for place in range(len(store) + 1)}
            assert found == {0, len(tokens), *(place + 1 for place in range(len(tokens)) if tokens[place] == 50256)}
            assert len(ends) == len(store) - 1
            assert verify(directory / "store") == []
    shutil.rmtree(directory)


def test_several_processes_write_the_bytes_of_one(corpus, tmp_path):
    expected = fresh(corpus)
    made = finished(start(corpus, tmp_path / "store", num_processes=3))
    assert tree(tmp_path / "store") == expected
    assert made == num_shards(tmp_path / "store") > 20
    documents = [(corpus / "large.txt").read_text()]
    documents += [json.loads(line)["text"] for line in (corpus / "lines.jsonl").read_text().splitlines()]
    documents += [TALE * 3, *(file.read_text() for file in sorted((corpus / "small").iterdir()))]
    assert read_all(tmp_path / "store") == joined(documents)


def test_words_have_the_ids_of_their_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text("b a")
    (tmp_path / "b.txt").write_text("c a")
    words = SimpleTokenizerV2({"a": 0, "b": 1, "c": 2, "<|endoftext|>": 3, "<unk>": 4})
    recipe = Recipe(tokenizer=make_tokenizer(words))
    manifest = prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "store", recipe).manifest
    assert read_all(tmp_path / "store") == [1, 0, 3, 2, 0]
    assert (manifest.tokenizer, manifest.vocab_size, manifest.dtype) == ("words", 5, np.dtype("<u2"))


def test_a_vocabulary_beyond_two_bytes_takes_four(tmp_path):
    words = {f"w{number}": number for number in range(70_000)} | {"<|endoftext|>": 70_000, "<unk>": 70_001}
    (tmp_path / "a.txt").write_text("w5 w69999")
    recipe = Recipe(tokenizer=make_tokenizer(SimpleTokenizerV2(words)))
    manifest = prepare(tmp_path / "a.txt", tmp_path / "store", recipe).manifest
    assert manifest.dtype == np.dtype("<u4")
    assert read_all(tmp_path / "store") == [5, 69999]


def test_a_shard_depends_on_its_plan_alone(corpus, tmp_path):
    recipe = Recipe()
    prepare(corpus, tmp_path / "store")
    plans = plan_shards(
        [file._replace(path=os.path.abspath(file.path)) for file in Source.of(corpus).find_files()], recipe, 20_000
    )
    (tmp_path / "elsewhere").mkdir()
    shards = [encode_shard(plan, LocalStorage(tmp_path / "elsewhere"), recipe).shard for plan in reversed(plans)]
    assert shards[::-1] == Manifest.load(tmp_path / "store").shards
    made, whole = tree(tmp_path / "elsewhere"), tree(tmp_path / "store")
    assert made == {name: whole[name] for name in made}
    assert set(whole) - set(made) == {"manifest.json", ".lock", Manifest.load(tmp_path / "store").sources_file}


def test_a_store_is_the_same_from_whatever_folder_its_source_is_named(corpus, tmp_path, monkeypatch):
    expected = fresh(corpus)
    monkeypatch.chdir(corpus)
    assert prepare("../corpus", "../store").num_made > 20
    assert tree(tmp_path / "store") == expected
    monkeypatch.chdir(tmp_path)
    assert prepare(["corpus/small", "corpus"], "store").num_made == 0


def test_a_store_may_lie_within_the_texts(corpus):
    first = prepare(corpus, corpus / "store")
    assert prepare(corpus, corpus / "store") == (first.manifest, 0, [])
    (corpus / "more.txt").write_text("more")
    assert prepare(corpus, corpus / "store").changes == [f"added {corpus / 'more.txt'}"]


def test_a_corpus_of_any_size_has_a_bounded_number_of_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MAX_SHARDS", 8)
    (tmp_path / "large.txt").write_text("a b c d e f " * 40_000)
    assert len(prepare(tmp_path / "large.txt", tmp_path / "store").manifest.shards) in range(4, 9)


@pytest.mark.parametrize(
    ("releases_gil", "in_process_bytes", "num_processes", "expected"),
    [
        (True, 0, 3, ("threads", 3)),
        (True, 1 << 30, 3, ("threads", 3)),
        (True, 0, 1000, ("threads", 20)),
        (False, 0, 3, ("processes", 3)),
        (False, 0, 1, ("threads", 1)),
        (False, 1 << 30, 3, ("threads", 1)),
    ],
)
def test_threads_encode_where_the_gil_is_released_and_processes_where_they_pay(
    tmp_path, monkeypatch, releases_gil, in_process_bytes, num_processes, expected
):
    used = []

    def encode_in(kind: str, plans, storage, recipe, num_workers, on_progress):
        used.append((kind, num_workers))
        return encode_in_threads(plans, storage, recipe, num_workers, on_progress)

    for kind in ("threads", "processes"):
        monkeypatch.setattr(prepare_module, f"encode_in_{kind}", partial(encode_in, kind))
    monkeypatch.setattr(prepare_module, "_IN_PROCESS_BYTES", in_process_bytes)
    (tmp_path / "text.txt").write_text("word " * (SHARD_BYTES // 5) * 20)
    tokenizer = replace(make_tokenizer("gpt2"), releases_gil=releases_gil)
    prepare(tmp_path / "text.txt", tmp_path / "store", Recipe(tokenizer=tokenizer), num_processes)
    assert used == [expected]


def test_a_faster_tokenizer_is_recommended_for_large_texts(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "text.txt").write_text("word " * 100)
    for least, is_installed in ((1000, False), (10, True), (10, False)):
        assert "20 times faster" not in caplog.text
        monkeypatch.setattr(prepare_module, "_WORTH_A_WORD_BYTES", least)
        monkeypatch.setattr(prepare_module, "uses_gigatoken", lambda is_installed=is_installed: is_installed)
        prepare(tmp_path / "text.txt", tmp_path / f"store {least} {is_installed}")
    assert "pip install 'gpt2-lit[fast]' encodes about 20 times faster, to the same ids." in caplog.text


# Again, and after changes.


def test_what_is_up_to_date_is_not_touched(corpus, tmp_path):
    store = tmp_path / "store"
    first = prepare(corpus, store)
    times = {file.name: file.stat().st_mtime_ns for file in store.iterdir()}
    assert prepare(corpus, store) == (first.manifest, 0, [])
    assert {file.name: file.stat().st_mtime_ns for file in store.iterdir()} == times


def lengthen(corpus: Path) -> list[str]:
    (corpus / "small" / "030.txt").write_text("something else")
    return [f"changed {corpus}/small/030.txt"]


def add(corpus: Path) -> list[str]:
    (corpus / "small" / "0301.txt").write_text("something new")
    return [f"added {corpus}/small/0301.txt"]


def remove(corpus: Path) -> list[str]:
    (corpus / "small" / "030.txt").unlink()
    return [f"removed {corpus}/small/030.txt"]


def rename(corpus: Path) -> list[str]:
    (corpus / "lines.jsonl").rename(corpus / "rows.jsonl")
    return [f"added {corpus}/rows.jsonl", f"removed {corpus}/lines.jsonl"]


def empty(corpus: Path) -> list[str]:
    (corpus / "small" / "030.txt").write_text("")
    return [f"changed {corpus}/small/030.txt"]


@pytest.mark.parametrize("change", [lengthen, add, remove, rename, empty])
def test_a_change_rebuilds_what_it_touches_and_is_told(corpus, tmp_path, change):
    before = prepare(corpus, tmp_path / "store").manifest
    expected = change(corpus)
    done = prepare(corpus, tmp_path / "store")
    assert done.changes == expected
    kept = {shard.key for shard in before.shards} & {shard.key for shard in done.manifest.shards}
    assert done.num_made == len(done.manifest.shards) - len(kept)
    assert len(kept) > len(before.shards) / 2
    assert tree(tmp_path / "store") == fresh(corpus)
    assert verify(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        (Recipe(TextOptions(strip_gutenberg=True)), "strip_gutenberg was False and is True"),
        (
            Recipe(tokenizer=make_tokenizer(SimpleTokenizerV2({"the": 0, "<|endoftext|>": 1, "<unk>": 2}))),
            "the tokenizer was gpt2 and is words",
        ),
    ],
    ids=["options", "tokenizer"],
)
def test_other_options_or_another_tokenizer_give_other_shards(corpus, tmp_path, recipe, change):
    before = prepare(corpus, tmp_path / "store").manifest
    done = prepare(corpus, tmp_path / "store", recipe)
    assert done.changes[0].startswith(change)
    assert not {shard.key for shard in before.shards} & {shard.key for shard in done.manifest.shards}
    assert tree(tmp_path / "store") == fresh(corpus, recipe)


@pytest.mark.parametrize("kind", ["tokens", "documents", "shard", "sources", "manifest"])
def test_what_is_damaged_is_mended_as_verify_says(corpus, tmp_path, kind):
    store = tmp_path / "store"
    prepare(corpus, store)
    expected = tree(store)
    file = max(store.glob(f"{kind}*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if kind != "manifest":
        [damage] = verify(store)
        assert damage.file == str(file)
        file.unlink()
    assert prepare(corpus, store).num_made == (kind in ("tokens", "documents", "shard"))
    assert tree(store) == expected


def test_a_receipt_that_is_damaged_is_not_believed(corpus, tmp_path):
    store = tmp_path / "store"
    prepare(corpus, store)
    expected = tree(store)
    receipt = min(store.glob("shard-*"))
    content = receipt.read_text()
    place = content.index('"num_bytes": ') + len('"num_bytes": ')
    receipt.write_text(content[:place] + str((int(content[place]) + 1) % 10) + content[place + 1 :])
    assert prepare(corpus, store).num_made == 1
    assert tree(store) == expected


# Directories.


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"manifest.json": '{"name": "an app"}'},
        {"tokens-0123456789abcdef.bin": "", "notes": ""},
        {".lock": "", "thesis.tex": ""},
    ],
    ids=["a text", "a manifest of another program", "between shards", "beside a lock"],
)
def test_a_folder_that_holds_other_things_is_refused_and_not_touched(tmp_path, files):
    (tmp_path / "mine").mkdir()
    for name, content in files.items():
        (tmp_path / "mine" / name).write_text(content)
    before = tree(tmp_path / "mine")
    with pytest.raises(
        StoreError, match=r"mine holds other files and no token store. Give an empty or a new directory"
    ):
        prepare(None, tmp_path / "mine")
    assert tree(tmp_path / "mine") == before


def test_a_store_of_another_version_is_refused_and_not_touched(corpus, tmp_path):
    store = tmp_path / "store"
    prepare(None, store)
    manifest = store / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    before = tree(store)
    with pytest.raises(VersionError, match="has format version 2"):
        prepare(corpus, store)
    assert tree(store) == before


def test_a_file_is_no_folder_for_tokens(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"file is a file. Give a directory"):
        prepare(None, tmp_path / "file")
    with pytest.raises(OSError, match=r"cannot be made \(Not a directory\). Or give another directory"):
        prepare(None, tmp_path / "file" / "store")


def test_what_others_put_into_a_store_stays_there(corpus, tmp_path):
    store = tmp_path / "store"
    prepare(corpus, store)
    mine = {
        "README.md",
        "tokens-mine.txt",
        "tokens-0123456789abcdef.bin.bak",
        "sources-of-all.json",
        "shard-1.json",
        "x.tmp",
    }
    for name in mine:
        (store / name).write_text("mine")
    (store / "tokens-0123456789abcdef.bin").write_text("of no shard")
    (corpus / "large.txt").unlink()
    prepare(corpus, store)
    assert mine < {file.name for file in store.iterdir()}
    assert not (store / "tokens-0123456789abcdef.bin").exists()


def mount(*options: str) -> None:
    if sys.platform != "linux" or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", str(directory))
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_store_that_cannot_be_written_is_used_where_it_is_up_to_date(tmp_path, disk):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a text")
    first = prepare(tmp_path / "corpus", disk / "store")
    mount("-o", "remount,ro", str(disk))
    assert prepare(tmp_path / "corpus", disk / "store") == (first.manifest, 0, [])
    assert read_all(disk / "store") == joined(["a text"])
    (tmp_path / "corpus" / "b.txt").write_text("another")
    with pytest.raises(OSError, match=r"store cannot be written: Read-only file system. .* give another directory"):
        prepare(tmp_path / "corpus", disk / "store")
    with pytest.raises(OSError, match=r"other cannot be made \(Read-only file system\)"):
        prepare(tmp_path / "corpus", disk / "other")
    assert read_all(disk / "store") == joined(["a text"])


# Errors, after which it resumes.


def test_a_disk_without_room_is_told_before_the_work(tmp_path, disk):
    (tmp_path / "large.txt").write_text("word " * 1_000_000)
    with pytest.raises(OSError, match=r"the tokens take 0.0 GB or more, and the disk of .* has 0.0 GB left. Make room"):
        prepare(tmp_path / "large.txt", disk / "store")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_full_disk_keeps_what_was_finished(tmp_path, disk, monkeypatch, num_processes):
    monkeypatch.setattr(prepare_module, "_IN_PROCESS_BYTES", 0)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"{number} {TALE}"}) + "\n" for number in range(2_000_000 // len(TALE)))
    )
    with pytest.raises(OSError, match=r"store cannot be written: No space left on device. What was finished is kept"):
        prepare(rows, disk / "store", num_processes=num_processes)
    with pytest.raises(StoreError, match="is not a token store"):
        open_store(disk / "store")
    kept = len(list((disk / "store").glob("shard-*.json")))
    assert kept > 5
    assert not list((disk / "store").glob("*.tmp"))
    mount("-o", "remount,size=5m", str(disk))
    done = prepare(rows, disk / "store", num_processes=num_processes)
    assert done.num_made <= len(done.manifest.shards) - kept
    assert tree(disk / "store") == fresh(rows)


def test_what_unpacks_to_more_than_the_disk_has_leaves_some_of_it_to_others(tmp_path, disk, monkeypatch):
    mount("-o", "remount,size=8m", str(disk))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a " * 10_000_000))  # 40 kB, and 20 MB of tokens
    least = []
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: least.append(usage(path).free) or usage(path))
    with pytest.raises(OSError, match=r"store cannot be written: its disk has 0.00 GB left, which are kept for others"):
        prepare(tmp_path / "a.txt.gz", disk / "store")
    assert 8 * 2**20 / 20 - 2**18 < min(least) < 8 * 2**20 / 20
    assert not list((disk / "store").glob("*.tmp"))


def test_a_corpus_that_grows_keeps_the_size_of_its_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MAX_SHARDS", 2)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("word " * 8_000)
    assert prepare(tmp_path / "corpus", tmp_path / "store").num_made == 2
    (tmp_path / "corpus" / "b.txt").write_text("word " * 12_000)
    done = prepare(tmp_path / "corpus", tmp_path / "store")  # made anew it would have two shards, of up to 80,000 bytes
    assert (done.num_made, len(done.manifest.shards), done.manifest.shard_bytes) == (3, 5, 20_000)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a file's size is POSIX'")
def test_a_file_that_cannot_grow_is_told(corpus, tmp_path):
    error = error_of(start(corpus, tmp_path / "store", num_processes=1, file_bytes=8192))
    assert f"{tmp_path / 'store'} cannot be written: File too large. What was finished is kept" in error
    assert not list((tmp_path / "store").glob("*.tmp"))
    finished(start(corpus, tmp_path / "store"))
    assert tree(tmp_path / "store") == fresh(corpus)


def break_gzip(corpus: Path) -> tuple[Path, str]:
    file = corpus / "packed.txt.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    return file, r"packed.txt.gz is not a whole gzip file: .* Download it or make it anew"


def cut_gzip(corpus: Path) -> tuple[Path, str]:
    file = corpus / "packed.txt.gz"
    file.write_bytes(file.read_bytes()[:-100])
    return file, r"packed.txt.gz is not a whole gzip file"


def break_json(corpus: Path) -> tuple[Path, str]:
    file = corpus / "lines.jsonl"
    lines = file.read_text().splitlines()
    lines[150] = lines[150][:-5]
    file.write_text("\n".join(lines))
    return file, r"lines.jsonl, line 151: this is not JSON"


def lack_the_field(corpus: Path) -> tuple[Path, str]:
    file = corpus / "lines.jsonl"
    lines = file.read_text().splitlines()
    lines[120] = '{"content": "a text"}'
    file.write_text("\n".join(lines))
    return file, r"lines.jsonl, line 121: the object has no field 'text'. It has: content"


def break_utf8(corpus: Path) -> tuple[Path, str]:
    file = corpus / "small" / "030.txt"
    file.write_bytes(b"line one\nline two \xff\n")
    return file, r"030.txt is not UTF-8: byte 0xff at offset 18 \(line 2"


def make_unreadable(corpus: Path) -> tuple[Path, str]:
    file = corpus / "small" / "030.txt"
    file.unlink()
    file.symlink_to(f"/proc/{os.getpid()}/mem")  # of which the first byte gives an input/output error, also to root
    return file, r"030.txt cannot be read: Input/output error. Check its permissions and its disk"


HARMS = [break_gzip, cut_gzip, break_json, lack_the_field, break_utf8, make_unreadable]


@pytest.mark.parametrize(
    ("harm", "num_processes"), [*((harm, 1) for harm in HARMS), (break_gzip, 2), (break_json, 2), (make_unreadable, 2)]
)
def test_a_bad_file_is_named_and_the_rest_kept(corpus, tmp_path, monkeypatch, harm, num_processes):
    monkeypatch.setattr(prepare_module, "_IN_PROCESS_BYTES", 0)
    bad, message = harm(corpus)
    if bad.is_symlink() and not Path("/proc/self/mem").exists():
        pytest.skip("no file that cannot be read")
    store = tmp_path / "store"
    with pytest.raises((OSError, ValueError), match=message):
        prepare(corpus, store, num_processes=num_processes)
    with pytest.raises(StoreError, match="is not a token store"):
        open_store(store)
    assert not list(store.glob("*.tmp"))
    kept = {file.name: file.stat().st_mtime_ns for file in store.glob("shard-*.json")}
    assert kept
    bad.unlink()
    bad.write_text(json.dumps({"text": "mended"}) if bad.suffix == ".jsonl" else "mended")
    if bad.suffix == ".gz":
        bad.write_bytes(gzip.compress(b"mended"))
    done = prepare(corpus, store, num_processes=num_processes)
    assert done.num_made < len(done.manifest.shards)
    assert tree(store) == fresh(corpus)


def test_a_corpus_without_text_is_an_error_and_no_store(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "corpus" / name).write_text("")
    with pytest.raises(ValueError, match="are all empty"):
        prepare(tmp_path / "corpus", tmp_path / "store")
    with pytest.raises(StoreError):
        open_store(tmp_path / "store")


def test_a_store_stays_as_it_is_until_the_new_state_is_whole(corpus, tmp_path):
    store = tmp_path / "store"
    prepare(corpus, store)
    before, (bad, _) = read_all(store), break_json(corpus)
    (corpus / "large.txt").write_text("short")
    with pytest.raises(ValueError, match="not JSON"):
        prepare(corpus, store)
    assert verify(store) == []
    assert read_all(store) == before
    bad.unlink()
    prepare(corpus, store)
    assert tree(store) == fresh(corpus)


# Stops.

linux = pytest.mark.skipif(sys.platform != "linux", reason="it finds the processes by /proc")


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def workers_of(process: subprocess.Popen) -> list[int]:
    found = []
    for task in Path(f"/proc/{process.pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:  # the thread, or the process, has ended
            continue
    return [pid for pid in found if b"loky" in command_of(pid)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"-m")[2]
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def num_receipts(store: Path) -> int:
    return len(list(store.glob("shard-*.json")))


def stop_after(corpus: Path, store: Path, num_more: int, how: str) -> str | None:
    """Stop a run once it has finished so many shards more; all its processes must end."""
    goal = num_receipts(store) + num_more
    process = start(corpus, store)
    workers: list[int] = []

    def is_there() -> bool:
        workers[:] = workers_of(process) or workers
        return process.poll() is not None or (num_receipts(store) >= goal and bool(workers))

    wait_until(is_there)
    if how != "a worker":
        process.send_signal(how)
    elif workers:  # else it had nothing left to do
        with suppress(ProcessLookupError):  # it has just ended, with the last shard
            os.kill(random.choice(workers), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    wait_until(lambda: not any(map(is_alive, workers)))
    if process.returncode == 0:
        return None
    if how == "a worker":
        assert "a process that tokenizes has died" in errors.splitlines()[-1]
    return errors


def stop_often(corpus: Path, store: Path, num_stops: int, is_whole: Callable[[], None]) -> None:
    expected = fresh(corpus)
    num_shards = len([name for name in expected if name.startswith("shard-")])
    rng = random.Random(num_stops)
    stopped = 0
    for number in range(num_stops):
        how = ["a worker", signal.SIGKILL, signal.SIGTERM, signal.SIGINT][number % 4]
        stopped += stop_after(corpus, store, rng.randrange(0, 2 * num_shards // num_stops), how) is not None
        is_whole()
    assert stopped >= num_stops * 0.7
    finished(start(corpus, store))
    assert tree(store) == expected


def nothing_to_open(store: Path) -> None:
    if (store / "manifest.json").exists():
        assert verify(store) == []
    else:
        with pytest.raises(StoreError, match="is not a token store"):
            open_store(store)


@linux
def test_a_run_resumes_after_a_stop_of_any_kind(corpus, tmp_path):
    stop_often(corpus, tmp_path / "store", 4, lambda: nothing_to_open(tmp_path / "store"))


@linux
@pytest.mark.slow
def test_a_run_resumes_after_twenty_stops(corpus, tmp_path):
    for number in range(200):
        (corpus / "small" / f"more {number}.txt").write_text(TALE[:15_000])
    stop_often(corpus, tmp_path / "store", 20, lambda: nothing_to_open(tmp_path / "store"))


@linux
@pytest.mark.slow
def test_an_update_resumes_after_twenty_stops_and_the_former_store_stays_whole(corpus, tmp_path):
    store = tmp_path / "store"
    finished(start(corpus, store))
    before = read_all(store)
    for number in range(200):
        (corpus / "small" / f"more {number}.txt").write_text(TALE[:15_000])
    (corpus / "large.txt").write_text("changed " + (corpus / "large.txt").read_text())

    def is_whole() -> None:
        assert verify(store) == []
        assert read_all(store) in (before, after)

    fresh(corpus)
    after = read_all(corpus.parent / "fresh")
    stop_often(corpus, store, 20, is_whole)


@linux
def test_what_a_killed_run_left_half_done_goes_at_the_next_start(corpus, tmp_path):
    store = tmp_path / "store"
    finished(start(corpus, store))
    expected = tree(store)
    ended = start(corpus, store)
    finished(ended)
    (store / "manifest.json").unlink()
    for name in ("tokens-0123456789abcdef.bin", "manifest.json", "sources-01234567.json"):
        (store / f"{name}.{storage._HOST}.{ended.pid}.0123abcd.tmp").write_text("half")
    prepare(corpus, store)
    assert tree(store) == expected


@pytest.mark.parametrize("num_programs", [2, 4])
def test_programs_that_prepare_at_once_do_the_work_once(corpus, tmp_path, num_programs):
    store = tmp_path / "store"
    made = sorted(map(finished, [start(corpus, store) for _ in range(num_programs)]))
    assert made == [0] * (num_programs - 1) + [num_shards(store)]
    assert tree(store) == fresh(corpus)


def test_who_waits_says_so_and_resumes_where_the_other_was_stopped(corpus, tmp_path, capfd):
    store = tmp_path / "store"
    with LocalStorage(store).lock():
        waiting = start(corpus, store)
        assert "is being prepared by another process: waiting for it" in waiting.stderr.readline()
    assert finished(waiting) == num_shards(store)


def test_the_errors_of_sources_keep_their_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or directory") as caught:
        prepare(tmp_path / "nowhere", tmp_path / "store")
    assert caught.value.errno is None
    assert not (tmp_path / "store").exists()


def test_ends_of_text_in_a_text_are_told_and_a_separator_makes_documents_of_it(tmp_path, caplog):
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"Story {number} is short.\n<|endoftext|>\n" for number in range(100)))
    done = prepare(path, tmp_path / "one", show_progress=False)
    assert done.manifest.num_documents == 1
    assert "100 times <|endoftext|> in the texts is kept as text" in caplog.text
    assert "--data.document_separator '<|endoftext|>'" in caplog.text
    caplog.clear()
    recipe = Recipe(TextOptions(document_separator="<|endoftext|>"))
    done = prepare(path, tmp_path / "many", recipe, show_progress=False)
    assert done.manifest.num_documents == 100
    assert not caplog.text
    store = open_store(tmp_path / "many")
    first = store.read(0, int(store.document_ends(0, len(store))[0])).tolist()
    assert gpt2_tokenizer().decode(first) == "Story 0 is short.<|endoftext|>"


@pytest.mark.parametrize(("separator", "told"), [("###", "'###' made 1 document of 1 text: is it in them?"), ("b", "")])
def test_a_separator_that_is_in_no_text_is_told(tmp_path, caplog, separator, told):
    (tmp_path / "a.txt").write_text("a b c")
    prepare(tmp_path / "a.txt", tmp_path / "store", Recipe(TextOptions(document_separator=separator)))
    assert (told in caplog.text) if told else not caplog.text


def test_a_text_that_cannot_be_encoded_is_named(tmp_path):
    class Broken:
        n_vocab, eot_token, fingerprint = 10, 9, "broken"

        def encode(self, text):
            return [10]

        def decode(self, ids):
            return ""

    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a.txt: the tokenizer Broken gave the id 10"):
        prepare(tmp_path / "a.txt", tmp_path / "store", Recipe(tokenizer=make_tokenizer(Broken())), show_progress=False)


def test_an_option_is_recorded_where_it_differs_and_told_when_it_changes(tmp_path):
    (tmp_path / "a.txt").write_text("one#two")
    plain, parted = Recipe(), Recipe(TextOptions(document_separator="#"))
    changes = [prepare(tmp_path / "a.txt", tmp_path / "store", recipe).changes for recipe in (plain, parted, plain)]
    assert changes == [[], ["document_separator was None and is '#'"], ["document_separator was '#' and is None"]]
    assert Manifest.load(tmp_path / "store").options == {"text_field": "text", "strip_gutenberg": False}


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_bar_is_shown_only_where_it_is_asked_for(monkeypatch, capsys, is_shown):
    whole = prepare_module.tqdm
    monkeypatch.setattr(prepare_module, "tqdm", lambda **options: whole(**{**options, "delay": 0}))
    with prepare_module._progress_bar(4, is_shown) as on_progress:
        on_progress(4, 2_000_000)
    assert ("tokenizing: 100%" in capsys.readouterr().err) == is_shown
