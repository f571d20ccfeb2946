import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lit.store.manifest import Manifest, Shard, StoreError, token_dtype
from gpt2_lit.store.token_store import TokenStore, open_store
from gpt2_lit.store.verify import verify

END = 7  # the id after each document
GPT2, LARGE = 50257, 70000  # vocabularies of two and of four bytes an id


def write_store(directory: Path, shards: list[list[list[int]]], vocab_size: int = GPT2) -> Path:
    """A store written by hand: the documents of each shard, each a list of ids."""
    directory.mkdir(parents=True)
    dtype, written = token_dtype(vocab_size), []
    for number, documents in enumerate(shards):
        ids = np.array([token for document in documents for token in (*document, END)], dtype).tobytes()
        ends = np.cumsum([len(document) + 1 for document in documents], dtype="<i8").tobytes()
        shard = Shard(
            key=f"{number:016x}",
            num_tokens=len(ids) // dtype.itemsize,
            num_documents=len(documents),
            num_bytes=100,
            tokens_crc32=zlib.crc32(ids),
            documents_crc32=zlib.crc32(ends),
            made_from=f"/texts/{number}.txt",
        )
        for name, content in (
            (shard.tokens_file, ids),
            (shard.documents_file, ends),
            (shard.receipt_file, shard.dumps()),
        ):
            (directory / name).write_bytes(content)
        written.append(shard)
    sources = b'[["/texts/0.txt", 100, "1"]]\n'
    manifest = Manifest("gpt2", "0" * 16, vocab_size, {"text_field": "text"}, 100, 1, zlib.crc32(sources), written)
    (directory / manifest.sources_file).write_bytes(sources)
    (directory / "manifest.json").write_bytes(manifest.dumps())
    return directory


SHARDS = [[[1, 2, 3], [4]], [], [[5, 6], [8, 9, 10, 11]]]
TOKENS = [1, 2, 3, END, 4, END, 5, 6, END, 8, 9, 10, 11]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", SHARDS)


def read_all(store: TokenStore) -> list[int]:
    return store.read(0, len(store)).tolist()


def test_documents_are_concatenated_without_the_very_last_end_of_text(store):
    opened = open_store(store)
    assert read_all(opened) == TOKENS
    assert len(opened) == Manifest.load(store).num_tokens == 13
    assert opened.num_documents == 4
    assert opened.segments == [(0, 6), (6, 13)]
    assert verify(store) == []


def test_the_last_end_of_text_is_left_out_also_where_empty_shards_follow(tmp_path):
    assert read_all(open_store(write_store(tmp_path / "store", [[[1, 2]], [], []]))) == [1, 2]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(GPT2, "<u2"), (1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_ids_take_two_bytes_or_four_where_the_vocabulary_needs_them(tmp_path, vocab_size, dtype):
    store = write_store(tmp_path / "store", [[[vocab_size - 1, 3]]], vocab_size)
    assert np.fromfile(store / f"tokens-{0:016x}.bin", dtype).tolist() == [vocab_size - 1, 3, END]
    assert read_all(open_store(store)) == [vocab_size - 1, 3]


ANY_SHARDS = st.lists(st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=4), min_size=1, max_size=5)


@given(ANY_SHARDS, st.sampled_from([GPT2, LARGE]), st.data())
@settings(deadline=None, max_examples=150)
def test_any_range_can_be_read_over_shards_and_document_ends_be_found(tmp_path_factory, shards, vocab_size, data):
    directory = tmp_path_factory.mktemp("stores") / "store"
    store = open_store(write_store(directory, shards, vocab_size))
    everything = [token for documents in shards for document in documents for token in (*document, END)]
    tokens = everything[:-1]
    ends = {0, len(tokens)} | {place + 1 for place, token in enumerate(tokens) if token == END}
    assert read_all(store) == tokens
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    assert store.read(start, stop).tolist() == tokens[start:stop]
    assert store.document_ends(start, stop).tolist() == sorted(
        end for end in ends if start < end <= stop and (end < len(tokens) or tokens[-1:] == [END])
    )
    for position in range(len(tokens) + 1):
        within = data.draw(st.integers(0, len(tokens) + 2))
        found = store.nearest_document_end(position, within)
        distance = min(abs(end - position) for end in ends)
        assert abs(found - position) == (distance if distance <= within else 0)
        assert found in ends or distance > within
    shutil.rmtree(directory)


@given(ANY_SHARDS, st.integers(1, 4), st.data())
@settings(deadline=None, max_examples=150)
def test_rows_are_read_in_one_shard_and_over_several(shards, length, data):
    arrays = [np.array([token for document in documents for token in document], np.uint16) for documents in shards]
    tokens = np.concatenate(arrays)
    store = TokenStore("", arrays)
    assert store.segments == segments_of(arrays)
    starts = data.draw(st.lists(st.integers(0, max(len(tokens) - length, 0)), max_size=5))
    if starts and max(starts) + length > len(tokens):
        with pytest.raises(IndexError):
            store.rows(np.array(starts), length)
        return
    rows = store.rows(np.array(starts, np.int64), length)
    assert rows.dtype == np.uint16
    assert rows.tolist() == [tokens[start : start + length].tolist() for start in starts]
    assert not any(np.shares_memory(rows, array) for array in arrays)


def segments_of(arrays: list[np.ndarray]) -> list[tuple[int, int]]:
    stops = np.cumsum([len(array) for array in arrays]).tolist()
    return [(stop - len(array), stop) for array, stop in zip(arrays, stops, strict=True) if len(array)]


def test_rows_beyond_the_end_are_an_error():
    for arrays in ([np.arange(9)], [np.arange(4), np.arange(5)]):
        store = TokenStore("", arrays)
        for start, length in ((7, 3), (9, 1), (0, 10)):
            with pytest.raises(IndexError):
                store.rows(np.array([0, start]), length)


def test_document_ends_are_those_of_a_range(tmp_path):
    store = open_store(write_store(tmp_path / "store", SHARDS))
    assert store.document_ends(0, 13).tolist() == [4, 6, 9]
    assert store.document_ends(4, 8).tolist() == [6]
    assert store.document_ends(-5, 100).tolist() == [4, 6, 9]
    assert store.document_ends(9, 13).tolist() == []
    assert TokenStore.of_array(np.arange(9)).document_ends(0, 9).tolist() == []


def test_an_array_is_a_store_of_one_segment():
    ids = np.arange(9, dtype=np.uint32)
    store = TokenStore.of_array(ids)
    assert (len(store), store.dtype, store.segments) == (9, np.uint32, [(0, 9)])
    assert store.rows(np.array([6, 2]), 3).tolist() == [[6, 7, 8], [2, 3, 4]]
    assert pickle.loads(pickle.dumps(store)).read(3, 5).tolist() == [3, 4]
    assert (store.num_documents, store.num_bytes, store.tokenizer, store.vocab_size) == (0, 0, None, None)


def test_a_store_goes_to_another_process_as_its_path(tmp_path, monkeypatch):
    write_store(tmp_path / "store", [[list(range(10)) * 10_000]])
    monkeypatch.chdir(tmp_path)
    store = open_store("store")
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    monkeypatch.chdir("/")
    assert read_all(pickle.loads(pickled)) == read_all(store)


def test_a_store_that_changed_since_is_refused(tmp_path):
    store = write_store(tmp_path / "store", SHARDS)
    pickled = pickle.dumps(open_store(store))
    shutil.rmtree(store)
    write_store(store, [[[1, 2, 4], [4]], *SHARDS[1:]])
    with pytest.raises(StoreError, match="has changed since it was opened"):
        pickle.loads(pickled)


def test_the_content_is_the_same_wherever_a_store_lies(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    other = write_store(tmp_path / "other", [[[1, 2, 3], [4]], [], [[5, 6], [8, 9, 10, 12]]])
    assert open_store(store).content == open_store(tmp_path / "copy").content != open_store(other).content
