import errno
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gpt2_lit import GPTDataModule, SimpleTokenizerV2, gpt2_tokenizer
from gpt2_lit.store import last_use, token_cache
from gpt2_lit.store.last_use import _HELD
from gpt2_lit.store.manifest import StoreError
from gpt2_lit.store.plan import Recipe
from gpt2_lit.store.prepare import prepare
from gpt2_lit.store.storage import LAST_USE, LocalStorage
from gpt2_lit.store.token_cache import TokenCache, default_directory, expanded
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.files import SourceFile
from gpt2_lit.text.readers import TextOptions
from gpt2_lit.text.sources import SHIPPED_TEXT, Source
from gpt2_lit.text.tokenizer import make_tokenizer

TALE = SHIPPED_TEXT.read_text(encoding="utf-8")
VOCAB = {"a": 0, "b": 1, "<|endoftext|>": 2, "<unk>": 3}
WORDS = make_tokenizer(SimpleTokenizerV2(VOCAB))


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "cache", Recipe())


def read_all(store: TokenStore) -> list[int]:
    return store.read(0, len(store)).tolist()


def test_a_text_is_encoded_once(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    assert cache.prepare(tmp_path / "a.txt").num_made == 1
    assert cache.prepare(str(tmp_path / "a.txt")).num_made == 0
    assert read_all(cache.open(tmp_path / "a.txt")) == gpt2_tokenizer().encode("a b")
    (tmp_path / "a.txt").write_text("b a")
    assert cache.prepare(tmp_path / "a.txt").changes == [f"changed {tmp_path}/a.txt"]
    assert read_all(cache.open(tmp_path / "a.txt")) == gpt2_tokenizer().encode("b a")


def test_the_tale_is_the_source_if_there_is_none(cache):
    cache.prepare(None)
    assert read_all(cache.open(None)) == gpt2_tokenizer().encode(TALE)
    assert str(Source.of(None)) == "the tale that ships with gpt2_lit (tale.txt)"


def test_a_source_has_one_place_however_it_is_named(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = cache.directory_of(tmp_path / "texts")
    assert place.parent == tmp_path / "cache"
    assert place.name.startswith("texts-")
    for same in ("texts", "./texts/", "~/texts", ["texts"], Path("texts")):
        assert cache.directory_of(same) == place
    assert cache.directory_of(["b", "a"]) == cache.directory_of(("a", "b")) != cache.directory_of("a")
    assert cache.directory_of("https://host/my%20text.txt?x=1").name.startswith("my_20text.txt_x_1-")


def test_another_source_tokenizer_or_option_has_another_place(tmp_path):
    recipes = [
        Recipe(),
        Recipe(TextOptions("content")),
        Recipe(TextOptions(strip_gutenberg=True)),
        Recipe(tokenizer=WORDS),
        Recipe(tokenizer=make_tokenizer(SimpleTokenizerV2({**VOCAB, "c": 4}))),
    ]
    sources = (None, "a.txt", "b/a.txt")
    places = {TokenCache(tmp_path, recipe).directory_of(source) for recipe in recipes for source in sources}
    assert len(places) == 3 * (len(recipes) - 1)  # another vocabulary of words has the same


def test_a_store_is_opened_where_it_lies(cache, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a b")
    prepare(tmp_path / "a.txt", tmp_path / "tokens")
    (tmp_path / "a.txt").unlink()
    assert cache.prepare(tmp_path / "tokens") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (tmp_path / "tokens", "~/tokens", [str(tmp_path / "tokens")]):
        assert read_all(cache.open(source)) == gpt2_tokenizer().encode("a b")
    assert not cache.directory.exists()


def test_a_store_of_another_tokenizer_is_refused(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    prepare(tmp_path / "a.txt", tmp_path / "tokens", Recipe(tokenizer=WORDS))
    with pytest.raises(StoreError, match=r"was made with the tokenizer words, and data.tokenizer is gpt2"):
        cache.open(tmp_path / "tokens")
    assert read_all(TokenCache(tmp_path, Recipe(tokenizer=WORDS)).open(tmp_path / "tokens")) == [0, 1]


def test_texts_that_lie_beside_a_manifest_of_another_program_are_texts(cache, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a b")
    (tmp_path / "texts" / "manifest.json").write_text(json.dumps({"name": "an app"}))
    assert cache.prepare(tmp_path / "texts").num_made == 1
    assert read_all(cache.open(tmp_path / "texts")) == gpt2_tokenizer().encode("a b")


def test_a_store_in_a_directory_named_like_a_file_of_ids_is_a_store(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    prepare(tmp_path / "a.txt", tmp_path / "tokens.bin")
    assert cache.prepare(tmp_path / "tokens.bin") is None
    assert read_all(cache.open(tmp_path / "tokens.bin")) == gpt2_tokenizer().encode("a b")


def test_files_of_ids_are_opened_in_sorted_order_each_once(tmp_path):
    for name, ids in (("b", [3, 4]), ("a", [1, 2])):
        np.array(ids, "<u4").tofile(tmp_path / f"{name}.bin")
    cache = TokenCache(tmp_path / "cache", Recipe(), token_dtype="uint32")
    for source in (f"{tmp_path}/*.bin", [tmp_path / "b.bin", f"{tmp_path}/*.bin"]):
        assert cache.prepare(source) is None
        assert read_all(cache.open(source)) == [1, 2, 3, 4]
    with pytest.raises(
        StoreError, match=r"a.bin read as uint64 has the id 8589934593, and the vocabulary ends at 50256"
    ):
        cache._replace(token_dtype="uint64").open(tmp_path / "a.bin")


def test_a_file_of_ids_is_read_once_however_it_is_named(cache, tmp_path):
    np.array([1, 2], "<u2").tofile(tmp_path / "a.bin")
    (tmp_path / "b.bin").symlink_to("a.bin")
    for source in ([f"{tmp_path}/a.bin", f"{tmp_path}/./a.bin"], f"{tmp_path}/*.bin"):
        assert read_all(cache.open(source)) == [1, 2]


def test_a_file_whose_name_is_also_a_pattern_is_that_file(cache, tmp_path):
    for name, number in (("train[1].BIN", 111), ("train1.BIN", 222)):
        np.full(3, number, "<u2").tofile(tmp_path / name)
    assert read_all(cache.open(tmp_path / "train[1].BIN")) == [111] * 3
    assert read_all(cache.open(f"{tmp_path}/train[1-2].BIN")) == [222] * 3


@pytest.mark.parametrize(
    "name", ["https://host/train.bin", "https://host/train.BIN?download=true", "s3://bucket/train.bin"]
)
def test_files_of_ids_elsewhere_are_refused_with_the_way_out(cache, name):
    with pytest.raises(ValueError, match=r"files of ids are read from a disk of this machine\. Download .*train"):
        cache.open(name)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (["store", "b.txt"], "store is a token store, b.txt is text"),
        (["store", "store"], "store is a token store"),
        (["b.txt", "x.bin"], "b.txt is text, x.bin is a file of ids"),
        (["store", "x.bin"], "store is a token store, x.bin is a file of ids"),
    ],
)
def test_tokens_beside_other_sources_are_refused_by_name(cache, tmp_path, monkeypatch, source, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.txt").write_text("a b")
    np.array([1, 2], "<u2").tofile("x.bin")
    prepare("b.txt", "store")
    for use in (cache.prepare, cache.open):
        with pytest.raises(ValueError, match=rf"data.source is several things at once: {named}\. Give only"):
            use(source)


def test_a_file_of_ids_that_does_not_exist_is_named(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.source: there is no file .*nowhere.bin \(looked in"):
        cache.open(tmp_path / "nowhere.bin")


@pytest.mark.parametrize("source", [[], "", [""]])
def test_an_empty_source_is_an_error(cache, source):
    with pytest.raises(ValueError, match=r"data.source is empty"):
        cache.prepare(source)


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/reader")
    assert expanded("~/x") == Path("/home/reader/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("GPT2_LIT_CACHE", "~/tokens")
    assert default_directory() == Path("/home/reader/tokens")
    monkeypatch.delenv("GPT2_LIT_CACHE")
    assert default_directory() == Path("/caches/gpt2_lit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_directory() == Path("/home/reader/.cache/gpt2_lit")


def test_a_source_is_named_in_a_few_words():
    assert str(Source.of("a.txt")) == "a.txt"
    assert str(Source.of(["a.txt", "b.txt", Path("c.txt")])) == "a.txt to c.txt"


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (Recipe(), ["a.txt-58d84501cbf9c606", "b-b1d31d69e58c4781"]),
        (Recipe(TextOptions("content", True)), ["a.txt-ab745e89e7ab41ad", "b-080cd8a3092f98f1"]),
    ],
)
def test_the_places_of_gpt2s_tokens_are_those_of_all_caches_that_there_are(tmp_path, recipe, names):
    cache = TokenCache(tmp_path, recipe)
    sources = ("/texts/a.txt", ["/texts/b", "https://host/d.txt"])
    assert [cache.directory_of(source).name for source in sources] == names


def words_of(path: Path, cache: Path) -> TokenCache:
    return TokenCache(cache, Recipe(tokenizer=make_tokenizer("words", lambda: [path.read_text()])))


def test_a_text_whose_words_change_leaves_one_store(tmp_path):
    text = tmp_path / "a.txt"
    for number in range(3):
        text.write_text(f"a text of {number} changes")
        cache = words_of(text, tmp_path / "cache")
        assert cache.prepare(text).num_made == 1
        assert cache.recipe.tokenizer.decode(read_all(cache.open(text))) == f"a text of {number} changes"
    [store] = (tmp_path / "cache").iterdir()
    assert len(list(store.glob("tokens-*"))) == 1


def test_a_tokenizer_json_has_one_store_however_it_is_named_and_another_has_another(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    places = []
    for last in ("b", "c"):
        model = tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1, last: 2}, unk_token="a")
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.add_special_tokens(["<|endoftext|>"])
        tokenizer.save("mine/tokenizer.json")
        made = [make_tokenizer(choice) for choice in ("mine/", "mine/tokenizer.json", tmp_path / "mine")]
        places += [TokenCache(tmp_path, Recipe(tokenizer=tokenizer)).directory_of("a.txt") for tokenizer in made]
    assert len({*places[:3]}) == len({*places[3:]}) == 1
    assert places[0] != places[3]


def test_tokens_of_another_vocabulary_are_never_opened(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("before")
    before = words_of(text, tmp_path / "cache")
    before.prepare(text)
    text.write_text("after")
    words_of(text, tmp_path / "cache").prepare(text)
    with pytest.raises(StoreError, match=r"made with the tokenizer words, and data.tokenizer is words, or of"):
        before.open(text)


class Letters:
    n_vocab, eot_token = 70_000, 69_999

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_tokenizer_without_a_fingerprint_encodes_each_time_in_one_place(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    cache = TokenCache(tmp_path / "cache", Recipe(tokenizer=make_tokenizer(Letters())))
    for _ in range(2):
        assert cache.prepare(tmp_path / "a.txt").num_made == 1
        assert read_all(cache.open(tmp_path / "a.txt")) == [97, 98, 99]
    assert len(list((tmp_path / "cache").iterdir())) == 1


# What the cache keeps.

TEN_THOUSAND = "a b" + " a b" * 4999  # tokens


def fill(cache: TokenCache, directory: Path, names: str) -> dict[str, Path]:
    """A text of 10,000 tokens under each name, used one day after the other, by processes that have ended."""
    for day, name in enumerate(names):
        (directory / name).write_text(TEN_THOUSAND)
        cache.prepare(directory / name)
        age(cache.directory_of(directory / name), len(names) - day)
    return {name: cache.directory_of(directory / name) for name in names}


def age(place: Path, days: int) -> None:
    if place in _HELD:
        os.close(_HELD.pop(place))
    at = time.time() - days * 24 * 3600
    os.utime(place / ".last_use", (at, at))


def test_a_store_that_somebody_works_on_is_neither_removed_nor_waited_for(tmp_path):
    with ThreadPoolExecutor() as pool:
        with LocalStorage(tmp_path / "store").lock():
            (tmp_path / "store" / LAST_USE).touch()
            removed = pool.submit(last_use.remove, tmp_path / "store")
            wait([removed], timeout=1)
        assert not removed.result()


def test_the_cache_lists_what_it_holds_the_last_used_first(cache, tmp_path):
    assert cache.entries() == []
    places = fill(cache, tmp_path, "abc")
    cache.open(tmp_path / "a")
    (cache.directory / "of others").mkdir()
    (cache.directory / "of others" / "manifest.json").write_text("mine")
    prepare(tmp_path / "a", cache.directory / "my own store")
    entries = cache.entries()
    assert [entry.source for entry in entries] == [str(tmp_path / name) for name in "acb"]
    assert [entry.path for entry in entries] == [places[name] for name in "acb"]
    assert entries[0].last_use == pytest.approx(time.time(), abs=60)
    assert entries[1].last_use == pytest.approx(time.time() - 24 * 3600, abs=60)
    assert entries[0].num_bytes == sum(f.stat().st_size for f in places["a"].iterdir() if f.name != ".last_use")


def test_the_least_recently_used_go_when_the_cache_is_full(cache, tmp_path, caplog):
    caplog.set_level(logging.INFO, "gpt2_lit")
    places = fill(cache, tmp_path, "abcd")
    size = cache.entries()[0].num_bytes
    age(places["a"], 0)  # used again
    full = cache._replace(max_bytes=3 * size + size // 2)
    full.prepare(tmp_path / "a")
    assert len(cache.entries()) == 4, "nothing was encoded"
    (tmp_path / "e").write_text(TEN_THOUSAND)
    full.prepare(tmp_path / "e")
    assert {entry.path for entry in cache.entries()} == {places["a"], places["d"], cache.directory_of(tmp_path / "e")}
    assert f"deleted {places['b']}, which was used least recently" in caplog.text


def test_what_a_process_uses_or_works_on_is_not_deleted(cache, tmp_path, caplog):
    places = fill(cache, tmp_path, "abc")
    with subprocess.Popen(
        [sys.executable, "-c", USER, str(cache.directory), str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as user:
        assert user.stdout.readline() == b"10000\n"
        age(places["a"], 9)
        with LocalStorage(places["b"]).lock():
            (tmp_path / "d").write_text(TEN_THOUSAND)
            cache._replace(max_bytes=0).prepare(tmp_path / "d")
        assert {entry.source[-1] for entry in cache.entries()} == set("abd")
        assert "that are in use, more than the 0.0 GB allowed" in caplog.text
        assert [entry.path for entry in cache.clear()] == [places["b"]]
        assert {entry.source[-1] for entry in cache.entries()} == set("ad")
        user.stdin.close()
    assert [entry.path for entry in cache.clear()] == [places["a"]]


USER = """
import sys
from pathlib import Path
from gpt2_lit.store.plan import Recipe
from gpt2_lit.store.storage import LAST_USE, LocalStorage
from gpt2_lit.store.token_cache import TokenCache
print(len(TokenCache(Path(sys.argv[1]), Recipe()).open(sys.argv[2])), flush=True)
sys.stdin.read()
"""


def test_a_cache_that_cannot_be_written_is_read(cache, tmp_path, monkeypatch):
    fill(cache, tmp_path, "a")
    monkeypatch.setattr("os.open", partial(open_to_read_only, os.open))
    assert cache.prepare(tmp_path / "a").num_made == 0
    assert len(cache.open(tmp_path / "a")) == 10_000


def open_to_read_only(open_file: Callable[..., int], path: str, flags: int, *args: int, **kwargs: int) -> int:
    if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise OSError(errno.EROFS, "Read-only file system", path)
    return open_file(path, flags, *args, **kwargs)


def test_a_new_cache_is_its_owners_alone_and_one_that_is_shared_stays_so(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    cache.prepare(tmp_path / "a.txt")
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    cache.directory.chmod(0o775)
    cache.prepare(tmp_path / "a.txt")
    assert cache.directory.stat().st_mode & 0o777 == 0o775


def test_the_note_of_a_use_is_written_through_no_link(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "mine").write_text("mine")
    place = cache.directory_of(tmp_path / "a.txt")
    place.mkdir(parents=True)
    (place / LAST_USE).symlink_to(tmp_path / "mine")
    cache.prepare(tmp_path / "a.txt")
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_a_home_directory_the_cache_is_one_that_cannot_be_made(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", str)
    for name in ("GPT2_LIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_directory() == Path("/nonexistent/.cache/gpt2_lit")
    assert GPTDataModule(cache_dir="~/x").cache_dir == Path("/nonexistent/x")


def test_without_locks_a_directory_counts_as_used_for_a_day(monkeypatch, tmp_path):
    monkeypatch.setattr(last_use, "fcntl", None)  # as on Windows
    used, idle = tmp_path / "used", tmp_path / "idle"
    for directory in (used, idle):
        directory.mkdir()
        last_use.hold(directory, "a note")
    os.utime(idle / LAST_USE, (time.time() - 25 * 3600,) * 2)
    os.utime(used / LAST_USE, (time.time() - 23 * 3600,) * 2)
    assert [last_use.remove(used), last_use.remove(idle)] == [False, True]
    assert [used.exists(), idle.exists()] == [True, False]


def test_a_file_that_cannot_be_read_is_no_twin(tmp_path):
    (tmp_path / "a.txt").write_text("same")
    there = SourceFile(str(tmp_path / "a.txt"), 4, "")
    gone = SourceFile(str(tmp_path / "gone.txt"), 4, "")
    assert not token_cache._is_same(there, gone)


def test_a_pattern_finds_files_of_ids_in_directories_below_and_mixes_no_splits(cache, tmp_path):
    for name, number in (("a_train_0", 1), ("deep/er/a_train_1", 2), ("a_val_0", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.full(2, number, "<u2").tofile(tmp_path / f"{name}.bin")
    assert read_all(cache.open(f"{tmp_path}/**/*train*.bin")) == [1, 1, 2, 2]
    for pattern in ("*.bin", "**/*.bin"):
        with pytest.raises(ValueError, match=r"several splits .* Name the one to read: .*a_train_\*.bin"):
            cache.open(f"{tmp_path}/{pattern}")
    assert read_all(cache.open([f"{tmp_path}/a_train_0.bin", f"{tmp_path}/a_val_0.bin"])) == [1, 1, 3, 3]
