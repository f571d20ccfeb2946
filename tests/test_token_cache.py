import json
from pathlib import Path

import numpy as np
import pytest

from gpt2_lit import SimpleTokenizerV2, gpt2_tokenizer
from gpt2_lit.store.manifest import StoreError
from gpt2_lit.store.prepare import Recipe, prepare
from gpt2_lit.store.token_cache import TokenCache, default_folder, source_name
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.readers import TextOptions
from gpt2_lit.text.sources import SHIPPED_TEXT

TALE = SHIPPED_TEXT.read_text(encoding="utf-8")
WORDS = SimpleTokenizerV2({"a": 0, "b": 1, "<|endoftext|>": 2, "<unk>": 3})


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
    assert source_name(None) == "the tale that ships with gpt2_lit (tale.txt)"


def test_a_source_has_one_place_however_it_is_named(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = cache.place(tmp_path / "texts")
    assert place.parent == tmp_path / "cache"
    assert place.name.startswith("texts-")
    for same in ("texts", "./texts/", "~/texts", ["texts"], Path("texts")):
        assert cache.place(same) == place
    assert cache.place(["b", "a"]) == cache.place(("a", "b")) != cache.place("a")
    assert cache.place("https://host/my%20text.txt?x=1").name.startswith("my_20text.txt_x_1-")


def test_another_source_tokenizer_or_option_has_another_place(tmp_path):
    recipes = [
        Recipe(),
        Recipe(TextOptions("content")),
        Recipe(TextOptions(strip_gutenberg=True)),
        Recipe(words=WORDS),
        Recipe(words=SimpleTokenizerV2({**WORDS.vocab, "c": 4})),
    ]
    places = {TokenCache(tmp_path, recipe).place(source) for recipe in recipes for source in (None, "a.txt", "b/a.txt")}
    assert len(places) == 3 * len(recipes)


def test_a_store_is_opened_where_it_lies(cache, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a b")
    prepare(tmp_path / "a.txt", tmp_path / "tokens")
    (tmp_path / "a.txt").unlink()
    assert cache.prepare(tmp_path / "tokens") is None
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (tmp_path / "tokens", "~/tokens", [str(tmp_path / "tokens")]):
        assert read_all(cache.open(source)) == gpt2_tokenizer().encode("a b")
    assert not cache.folder.exists()


def test_a_store_of_another_tokenizer_is_refused(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    prepare(tmp_path / "a.txt", tmp_path / "tokens", Recipe(words=WORDS))
    with pytest.raises(StoreError, match=r"was made with the tokenizer words, and data.tokenizer is gpt2"):
        cache.open(tmp_path / "tokens")
    assert read_all(TokenCache(tmp_path, Recipe(words=WORDS)).open(tmp_path / "tokens")) == [0, 1]


def test_texts_that_lie_beside_a_manifest_of_another_program_are_texts(cache, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a b")
    (tmp_path / "texts" / "manifest.json").write_text(json.dumps({"name": "an app"}))
    assert cache.prepare(tmp_path / "texts").num_made == 1
    assert read_all(cache.open(tmp_path / "texts")) == gpt2_tokenizer().encode("a b")


def test_a_store_in_a_folder_named_like_a_file_of_ids_is_a_store(cache, tmp_path):
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


def test_a_file_of_ids_that_does_not_exist_is_named(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.source: there is no file .*nowhere.bin \(looked in"):
        cache.open(tmp_path / "nowhere.bin")


@pytest.mark.parametrize("source", [[], "", [""]])
def test_an_empty_source_is_an_error(cache, source):
    with pytest.raises(ValueError, match=r"data.source is empty"):
        cache.prepare(source)


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/reader")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("GPT2_LIT_CACHE", "~/tokens")
    assert default_folder() == Path("/home/reader/tokens")
    monkeypatch.delenv("GPT2_LIT_CACHE")
    assert default_folder() == Path("/caches/gpt2_lit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path("/home/reader/.cache/gpt2_lit")


def test_a_source_is_named_in_a_few_words():
    assert source_name("a.txt") == "a.txt"
    assert source_name(["a.txt", "b.txt", Path("c.txt")]) == "a.txt to c.txt"
