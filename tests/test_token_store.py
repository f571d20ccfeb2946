import pickle
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lit.store.token_store import (
    Manifest,
    Shard,
    StoreError,
    TokenStore,
    VersionError,
    is_store,
    open_raw,
    open_store,
    token_dtype,
    verify,
    write_file,
)

END = 7  # the id behind each document
GPT2, LARGE = 50257, 70000  # vocabularies of two and of four bytes an id


def write_store(folder: Path, shards: list[list[list[int]]], vocab_size: int = GPT2) -> Path:
    """A store written by hand: the documents of each shard, each a list of ids."""
    folder.mkdir(parents=True)
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
            (folder / name).write_bytes(content)
        written.append(shard)
    sources = b'[["/texts/0.txt", 100, "1"]]\n'
    manifest = Manifest("gpt2", "0" * 16, vocab_size, {"text_field": "text"}, 100, 1, zlib.crc32(sources), written)
    (folder / manifest.sources_file).write_bytes(sources)
    (folder / "manifest.json").write_bytes(manifest.dumps())
    return folder


SHARDS = [[[1, 2, 3], [4]], [], [[5, 6], [8, 9, 10, 11]]]
TOKENS = [1, 2, 3, END, 4, END, 5, 6, END, 8, 9, 10, 11]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", SHARDS)


def read_all(store: TokenStore) -> list[int]:
    return store.read(0, len(store)).tolist()


def test_tokens_stand_one_behind_the_other_without_the_very_last_end_of_text(store):
    opened = open_store(store)
    assert read_all(opened) == TOKENS
    assert len(opened) == opened.manifest.num_tokens == 13
    assert opened.manifest.num_documents == 4
    assert opened.starts.tolist() == [0, 6, 6, 13]
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
    folder = tmp_path_factory.mktemp("stores") / "store"
    store = open_store(write_store(folder, shards, vocab_size))
    everything = [token for documents in shards for document in documents for token in (*document, END)]
    tokens = everything[:-1]
    ends = {0, len(tokens)} | {place + 1 for place, token in enumerate(tokens) if token == END}
    assert read_all(store) == tokens
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    assert store.read(start, stop).tolist() == tokens[start:stop]
    for position in range(len(tokens) + 1):
        within = data.draw(st.integers(0, len(tokens) + 2))
        found = store.nearest_document_end(position, within)
        distance = min(abs(end - position) for end in ends)
        assert abs(found - position) == (distance if distance <= within else 0)
        assert found in ends or distance > within
    shutil.rmtree(folder)


def test_every_byte_changed_and_every_cut_is_detected(tmp_path):
    store = write_store(tmp_path / "store", SHARDS[:1])
    for file in store.iterdir():
        whole = file.read_bytes()
        for place in range(len(whole)):
            for damaged in (
                whole[:place],
                whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :],
            ):
                file.write_bytes(damaged)
                with pytest.raises(StoreError, match=r"damaged|bytes, not|version|missing"):
                    raise_damage(store)
        file.write_bytes(whole + b"\n")
        with pytest.raises(StoreError):
            raise_damage(store)
        file.write_bytes(whole)
    raise_damage(store)
    assert read_all(open_store(store)) == [1, 2, 3, END, 4]


def raise_damage(store: Path) -> None:
    """What a careful user does before reading."""
    for damage in verify(store):
        raise StoreError(str(damage))


def test_a_missing_file_is_named_with_the_way_to_mend_it(store):
    for file in sorted(store.iterdir()):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(StoreError) as caught:
            raise_damage(store)
        assert str(file) in str(caught.value)
        assert "gpt2-lit prepare" in str(caught.value) or "mend it, prepare the store again" in str(caught.value)
        if not file.name.startswith("shard-"):  # which is there for the one who prepares
            with pytest.raises(StoreError):
                open_store(store)
        file.write_bytes(whole)
    shard = store / f"tokens-{2:016x}.bin"
    shard.unlink()
    with pytest.raises(StoreError, match=rf"{shard} is missing. It was made from /texts/2.txt. To mend it, prepare"):
        open_store(store)


def test_a_damaged_file_is_named_with_what_it_was_made_from(store):
    shard = store / f"tokens-{2:016x}.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    [damage] = verify(store)
    assert damage.file == str(shard)
    assert "CRC-32" in damage.problem
    assert "It was made from /texts/2.txt. To mend it, delete it and prepare the store again" in str(damage)


def test_verify_tells_how_far_it_is(store):
    told = []
    verify(store, told.append)
    assert sum(told) == sum(file.stat().st_size for file in store.iterdir() if file.name != "manifest.json")


def test_a_store_of_another_version_is_refused_by_its_number(store):
    manifest = store / "manifest.json"
    manifest.write_text('{"format": "gpt2_lit token store", "format_version": 2, "content": "of another form"}')
    with pytest.raises(VersionError, match=r"has format version 2, and this gpt2_lit reads version 1"):
        open_store(store)
    assert is_store(store)


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", "null", '"', '{"name": "an app"}', "\0", '{"shards": 3}'])
def test_another_manifest_is_no_store(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert not is_store(tmp_path)
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        open_store(tmp_path)


def test_what_is_no_store_says_how_to_make_one(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "text.txt"):
        assert not is_store(path)
        with pytest.raises(StoreError, match=r"is not a token store: there is no .* gpt2-lit prepare SOURCE"):
            open_store(path)


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


# Files of ids, as others write them.


def llmc(path: Path, ids: list[int], magic: int = 20240520, dtype: str = "<u2") -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_nanogpts_files_are_read_by_the_type_told(tmp_path, dtype):
    np.arange(200).astype(dtype).tofile(tmp_path / "train.bin")
    store = open_raw([tmp_path / "train.bin"], dtype)
    assert read_all(store) == list(range(200))
    assert store.manifest is None
    assert store.nearest_document_end(50, 10) == 50


@pytest.mark.parametrize(("magic", "dtype", "highest"), [(20240520, "<u2", 50256), (20240801, "<u4", 128_000)])
def test_llmcs_header_tells_the_type(tmp_path, magic, dtype, highest):
    path = llmc(tmp_path / "train.bin", [1, 2, highest], magic, dtype)
    for told in ("uint16", "uint32"):
        assert read_all(open_raw([path], told)) == [1, 2, highest]


def test_several_files_are_one_store_in_the_order_given(tmp_path):
    paths = [llmc(tmp_path / f"{name}.bin", ids) for name, ids in (("b", [1, 2, 3]), ("a", [4, 5]))]
    store = open_raw(paths)
    assert read_all(store) == [1, 2, 3, 4, 5]
    assert store.starts.tolist() == [0, 3, 5]
    assert read_all(pickle.loads(pickle.dumps(store))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", [1, 2, 3, 1000, 1024 + 5])
def test_a_file_of_llmc_that_is_cut_off_is_refused(tmp_path, cut):
    path = llmc(tmp_path / "train.bin", [1, 2, 3])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        StoreError, match=r"train.bin (is cut off: its header tells of 1,030 bytes|has .* bytes, which)"
    ):
        open_raw([path])


@pytest.mark.parametrize(("content", "dtype"), [(b"", "uint16"), (b"abc", "uint16"), (b"abcdef", "uint32")])
def test_a_file_that_is_no_whole_ids_is_refused(tmp_path, content, dtype):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(StoreError, match=rf"not a whole number of {dtype} ids above 0. Set data.token_dtype"):
        open_raw([tmp_path / "x.bin"], dtype)


@pytest.mark.parametrize("dtype", ["int16", "float32", "words", ""])
def test_a_type_that_holds_no_ids_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"token_dtype must be one of uint8, uint16, uint32, uint64, got"):
        open_raw([tmp_path / "x.bin"], dtype)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
    ids = np.zeros(100_000, "<u2")
    ids[-1] = 60_000
    ids.tofile(tmp_path / "train.bin")
    assert len(open_raw([tmp_path / "train.bin"])) == 100_000
    with pytest.raises(
        StoreError, match=r"train.bin read as uint16 has the id 60000, and the vocabulary ends at 50256"
    ):
        open_raw([tmp_path / "train.bin"], vocab_size=GPT2)
    ids[-1] = 3
    ids.tofile(tmp_path / "train.bin")
    open_raw([tmp_path / "train.bin"], vocab_size=GPT2)
    with pytest.raises(StoreError, match=r"read as uint32 has the id 196608.* Set data.token_dtype"):
        open_raw([tmp_path / "train.bin"], "uint32", vocab_size=GPT2)


def test_files_of_two_types_are_refused(tmp_path):
    paths = [llmc(tmp_path / "a.bin", [1]), llmc(tmp_path / "b.bin", [1], 20240801, "<u4")]
    with pytest.raises(StoreError, match="ids of different types"):
        open_raw(paths)


def test_a_raw_file_that_changed_since_is_refused(tmp_path):
    path = tmp_path / "train.bin"
    np.arange(1000, dtype="<u2").tofile(path)
    pickled = pickle.dumps(open_raw([path]))
    assert read_all(pickle.loads(pickled)) == list(range(1000))
    np.arange(1, 1001, dtype="<u2").tofile(path)
    with pytest.raises(StoreError, match="has changed since it was opened"):
        pickle.loads(pickled)
    np.arange(1001, dtype="<u2").tofile(path)
    with pytest.raises(StoreError, match="has changed since it was opened"):
        pickle.loads(pickled)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


# A sparse file of two terabytes stands in for 10^12 tokens.
LOOK = """
import resource, sys
import numpy as np
from gpt2_lit import GPTDataModule, GPTDatasetV1
from gpt2_lit.data.order import Position, WindowSampler
from gpt2_lit.store.token_store import open_raw

def look(path, num_tokens):
    store = open_raw([path])
    assert len(store) == num_tokens
    dataset = GPTDatasetV1.from_token_ids(store, context_size=1024, stride=1)
    assert len(dataset) == num_tokens - 1024
    last = len(dataset) - 1
    assert dataset[last].target_ids[-1] == 9
    assert dataset[[0, last]].target_ids[:, -1].tolist() == [0, 9]
    for shuffle in ("global", "block"):
        place = Position(3, len(dataset) - 64)
        windows = next(iter(WindowSampler(len(dataset), 32, seed=5, shuffle=shuffle, position=lambda: place)))
        assert len(set(windows.tolist())) == 32
        assert 0 <= windows.min() <= windows.max() < len(dataset)
        assert dataset[windows].input_ids.shape == (32, 1024)
    data = GPTDataModule(path, context_size=1024, stride=1, batch_size=4)
    data.setup("fit")
    assert sum(data.num_tokens.values()) == num_tokens
    assert abs(data.num_tokens["val"] / num_tokens - 0.1) < 0.01
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.shape == targets.shape == (4, 1024)
    data.summary()

look(sys.argv[1], 10**6)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
look(sys.argv[2], 10**12)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files and kilobytes of memory are Linux'")
def test_a_trillion_tokens_take_the_memory_of_a_million(tmp_path):
    paths = [tmp_path / "million.bin", tmp_path / "trillion.bin"]
    for path, num_tokens in zip(paths, (10**6, 10**12), strict=True):
        with open(path, "wb") as file:
            try:
                file.truncate(2 * num_tokens - 2)
            except OSError:
                pytest.skip("this file system has no files of two terabytes")
            file.seek(2 * num_tokens - 2)
            file.write(np.array([9], "<u2").tobytes())
    more_kilobytes = subprocess.check_output([sys.executable, "-c", LOOK, *map(str, paths)], text=True)
    assert int(more_kilobytes) < 16_000  # what it touches of the file, in pages, and 4,096 stretches of validation
