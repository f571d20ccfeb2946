import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_token_store import GPT2, read_all

from gpt2_lit.store.manifest import StoreError
from gpt2_lit.store.raw_ids import open_raw


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
    assert store.tokenizer is None
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
    assert store.segments == [(0, 3), (3, 5)]
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


@pytest.mark.parametrize(
    ("written", "read", "vocab_size"),
    [
        ("<u4", "uint16", GPT2),
        ("<i4", "uint16", GPT2),
        ("<i8", "uint16", GPT2),
        ("<i8", "uint32", GPT2),
        ("<u4", "uint16", 128_256),
        ("<u2", "uint8", 1_000),
    ],
)
@pytest.mark.parametrize("num_ids", [40, 100_001])
def test_ids_read_as_a_narrower_type_are_refused_by_the_zeros_after_each(tmp_path, written, read, vocab_size, num_ids):
    ids = np.random.default_rng(1).integers(5, vocab_size, num_ids)
    ids.astype(written).tofile(tmp_path / "x.bin")
    fits = {"<u4": "uint32", "<i4": "uint32", "<i8": "uint64", "<u2": "uint16"}[written]
    with pytest.raises(StoreError, match=f"x.bin read as {read} .* Set data.token_dtype to {fits}"):
        open_raw([tmp_path / "x.bin"], read)
    assert read_all(open_raw([tmp_path / "x.bin"], fits)) == ids.tolist()


@pytest.mark.parametrize("ids", [[0] * 200, [1, 0] * 100, [7], [9, 0] * 20, [3, 50000] * 40])
def test_ids_that_are_often_0_are_ids(tmp_path, ids):
    np.array(ids, "<u2").tofile(tmp_path / "x.bin")
    assert read_all(open_raw([tmp_path / "x.bin"])) == ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([20240520, 2, 5], "<i4").tobytes(), "llm.c that is not read: 20240520 version 2"),
        (
            np.array([20240801, 3, 5], "<i4").tobytes(),
            "20240801 version 3. Known are 20240520 version 1, 20240801 version 7",
        ),
        (np.array([20240326, 3, 1024], "<i4").tobytes(), "llm.c that is not read: 20240326 version 3"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': ", "NumPy's .npy: write the ids with array.tofile"),
        (b"PK\x03\x04 archive/data.pkl ", "a zip archive, as torch.save writes weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146", "git lfs pull"),
        (b"\x1f\x8b\x08\x00 abcdefgh", "gunzip"),
    ],
    ids=["a version", "another version", "weights", "npy", "zip", "lfs", "gzip"],
)
def test_what_is_no_plain_ids_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(StoreError, match=f"x.bin .*{message}"):
        open_raw([tmp_path / "x.bin"])


def test_llmcs_header_of_llama_3_has_version_7(tmp_path):
    path = llmc(tmp_path / "x.bin", [1, 2, 128_000], 20240801, "<u4")
    content = bytearray(path.read_bytes())
    content[4] = 7
    path.write_bytes(content)
    assert read_all(open_raw([path])) == [1, 2, 128_000]


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


def test_the_checksum_of_short_files_is_that_of_all_their_ids_with_number_and_type(tmp_path):
    np.array([1, 2, 3], "<u2").tofile(tmp_path / "a.bin")
    np.array([4], "<u2").tofile(tmp_path / "b.bin")
    checksum = zlib.crc32(b"\1\0\2\0\3\0" + b"3 uint16" + b"\4\0" + b"1 uint16")
    assert open_raw([tmp_path / "a.bin", tmp_path / "b.bin"]).content == f"{checksum:08x}" == "36ecba2d"


# A sparse file of two terabytes stands in for 10^12 tokens.
LOOK = """
import resource, sys
import numpy as np
from gpt2_lit import GPTDataModule
from gpt2_lit.data.order import Position, WindowSampler
from gpt2_lit.data.windows import TokenWindows
from gpt2_lit.store.raw_ids import open_raw

def look(path, num_tokens):
    store = open_raw([path])
    assert len(store) == num_tokens
    dataset = TokenWindows(store, context_size=1024, stride=1)
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
