import itertools
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from gpt2_lit import Batch, GPTDatasetV1, dataloader_v1, gpt2_tokenizer
from gpt2_lit.data.split import Range
from gpt2_lit.data.windows import TokenWindows
from gpt2_lit.errors import whole_number
from gpt2_lit.store.manifest import StoreError
from gpt2_lit.store.raw_ids import open_raw
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.sources import SHIPPED_TEXT

STORY = "Once upon a time there were four little Rabbits, and their names were Flopsy, Mopsy, Cotton-tail, and Peter."


class LetterTokenizer:
    """The id of a letter is its code point."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


class TextbookDataset(Dataset):
    """Every window is stored, as in the book: two tensors each."""

    def __init__(self, text, tokenizer, context_size, stride):
        ids = tokenizer.encode(text)
        self.inputs, self.targets = [], []
        for start in range(0, len(ids) - context_size, stride):
            self.inputs.append(torch.tensor(ids[start : start + context_size]))
            self.targets.append(torch.tensor(ids[start + 1 : start + context_size + 1]))

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]


def as_lists(batches) -> list[tuple[list, list]]:
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


@given(
    text=st.integers(0, 60).map(lambda length: "".join(chr(300 + i) for i in range(length))),
    context_size=st.integers(1, 12),
    stride=st.integers(1, 20),
    batch_size=st.integers(1, 5),
)
@settings(deadline=None, max_examples=150)
def test_windows_are_those_of_the_textbook(text, context_size, stride, batch_size):
    textbook = TextbookDataset(text, LetterTokenizer(), context_size, stride)
    if not len(textbook):
        with pytest.raises(ValueError, match="the text is too short"):
            GPTDatasetV1(text, LetterTokenizer(), context_size, stride)
        return
    dataset = GPTDatasetV1(text, LetterTokenizer(), context_size, stride)
    assert len(dataset) == len(textbook)
    assert as_lists(dataset) == as_lists(textbook)
    assert as_lists(DataLoader(dataset, batch_size)) == as_lists(DataLoader(textbook, batch_size))
    for start in range(0, len(textbook), batch_size):
        indices = list(range(start, min(start + batch_size, len(textbook))))
        assert as_lists([dataset[indices]]) == as_lists(
            [next(iter(DataLoader(textbook, len(indices), sampler=indices)))]
        )


RANGES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 15)), max_size=6)


@given(RANGES, st.integers(1, 6), st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_no_window_crosses_from_one_range_into_another(gaps_and_lengths, context_size, stride):
    ranges, end = [], 0
    for gap, length in gaps_and_lengths:
        ranges.append(Range(end + gap, end + gap + length))
        end = ranges[-1].stop
    dataset = TokenWindows(np.arange(end), context_size, stride, ranges)
    starts = [start for r in ranges for start in range(r.start, r.stop - context_size, stride)]
    windows = [list(range(start, start + context_size)) for start in starts]
    assert len(dataset) == len(windows)
    assert [inputs.tolist() for inputs, _ in dataset] == windows
    assert dataset[list(range(len(windows)))].input_ids.tolist() == windows
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in dataset)
    assert dataset.num_tokens == sum(length for _, length in gaps_and_lengths)


@pytest.mark.parametrize(
    ("num_tokens", "num_windows"), [(0, 0), (1, 0), (4, 0), (5, 1), (6, 1), (7, 2), (8, 2)], ids=lambda n: f"{n}"
)
def test_a_window_of_4_needs_5_tokens(num_tokens, num_windows):
    dataset = TokenWindows(np.zeros(num_tokens, np.int64), context_size=4, stride=2)
    assert len(dataset) == len(list(dataset)) == num_windows
    if num_windows:
        assert len(GPTDatasetV1("x" * num_tokens, LetterTokenizer(), context_size=4, stride=2)) == num_windows
    else:
        with pytest.raises(
            ValueError,
            match=rf"the text is too short: .* context_size \+ 1 = 5 tokens, and it has {num_tokens}\. Lower",
        ):
            GPTDatasetV1("x" * num_tokens, LetterTokenizer(), context_size=4, stride=2)


@pytest.mark.parametrize(("index", "shape"), [(1, (3,)), ([1], (1, 3)), ([1, 0], (2, 3)), ([], (0, 3))])
def test_a_batch_is_a_named_pair_of_contiguous_int64_tensors(index, shape):
    batch = TokenWindows(np.arange(10, dtype=np.uint16), context_size=3, stride=2)[index]
    assert isinstance(batch, Batch)
    assert batch.input_ids is batch[0]
    assert batch.target_ids is batch[1]
    for ids in batch:
        assert ids.shape == shape
        assert ids.dtype == torch.int64
        assert ids.is_contiguous()


def test_a_plain_dataloader_collates_windows_to_a_batch():
    dataset = TokenWindows(np.arange(10), context_size=3, stride=2)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert isinstance(batch, Batch)
    assert as_lists([batch]) == as_lists([dataset[[0, 1]]]) == [([[0, 1, 2], [2, 3, 4]], [[1, 2, 3], [3, 4, 5]])]


@pytest.mark.parametrize(
    "token_ids",
    [
        np.arange(12, dtype=np.uint16),
        np.arange(12, dtype=np.int32),
        np.arange(12, dtype=np.int64),
        np.arange(24, dtype=np.uint32)[::2] // 2,
    ],
    ids=["uint16", "int32", "int64", "every second of uint32"],
)
def test_tokens_may_be_of_any_integer_type(token_ids):
    windows = TokenWindows(token_ids, context_size=5, stride=5)
    assert [inputs.tolist() for inputs, _ in windows] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_tokens_that_are_memory_mapped_are_not_copied(tmp_path):
    np.arange(12, dtype=np.uint16).tofile(tmp_path / "tokens")
    token_ids = np.memmap(tmp_path / "tokens", np.uint16, mode="r+")
    windows = TokenWindows(token_ids, context_size=5, stride=5)
    assert windows[[1, 0]].input_ids.tolist() == [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]
    token_ids[0] = 77
    assert windows[0].input_ids.tolist() == [77, 1, 2, 3, 4]


def test_documents_in_a_window_are_numbered_and_their_positions_start_at_0():
    token_ids = np.array([1, 2, 9, 3, 4, 5, 9, 9, 6, 7])
    dataset = TokenWindows(token_ids, context_size=9, stride=1, end_of_text=9)
    input_ids, target_ids, position_ids, document_ids = dataset[0]
    assert input_ids.tolist() == [1, 2, 9, 3, 4, 5, 9, 9, 6]
    assert target_ids.tolist() == [2, 9, 3, 4, 5, 9, 9, 6, 7]
    assert position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 0]
    assert document_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 3]


@given(st.lists(st.integers(0, 2), min_size=3, max_size=60), st.integers(1, 12), st.integers(1, 5))
def test_positions_and_documents_are_those_that_counting_token_by_token_gives(token_ids, context_size, stride):
    dataset = TokenWindows(np.array(token_ids), context_size, stride, end_of_text=0)
    plain = TokenWindows(np.array(token_ids), context_size, stride)
    for input_ids, _, position_ids, document_ids in dataset:
        position = document = 0
        for i in range(context_size):
            assert (position_ids[i], document_ids[i]) == (position, document)
            position += 1
            if input_ids[i] == 0:
                position, document = 0, document + 1
    if len(dataset):
        batch, pair = dataset[range(len(dataset))], plain[range(len(dataset))]
        assert all(ids.is_contiguous() and ids.dtype == torch.int64 for ids in batch)
        assert torch.equal(batch.input_ids, pair.input_ids)
        assert torch.equal(batch.position_ids[-1], dataset[-1].position_ids)


def test_a_batch_can_be_changed_without_changing_the_dataset():
    dataset = TokenWindows(np.arange(6), context_size=3, stride=1)
    inputs, targets = dataset[[0, 1]]
    inputs.zero_()
    assert targets.tolist() == [[1, 2, 3], [2, 3, 4]]
    assert dataset[0].input_ids.tolist() == [0, 1, 2]


def test_a_negative_index_counts_from_the_end():
    dataset = TokenWindows(np.arange(9), context_size=2, stride=2)
    assert dataset[-1].input_ids.tolist() == [6, 7]
    assert dataset[-4].input_ids.tolist() == [0, 1]
    assert dataset[[-1, 0, -3]].input_ids.tolist() == [[6, 7], [0, 1], [2, 3]]


@pytest.mark.parametrize("index", [4, -5, [0, 4], [-5, 0], 10**12])
def test_an_index_beyond_the_windows_is_an_error_with_their_number(index):
    dataset = TokenWindows(np.arange(9), context_size=2, stride=2)
    with pytest.raises(IndexError, match="the dataset has 4, from 0"):
        dataset[index]


@pytest.mark.parametrize("name", ["context_size", "stride"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_below_1_is_an_error_that_names_its_setting(name, value):
    options = {"context_size": 4, "stride": 2, name: value}
    with pytest.raises(ValueError, match=rf"{name} must be at least 1 token, got {value}. Set data.{name}"):
        GPTDatasetV1(STORY, gpt2_tokenizer(), **options)
    with pytest.raises(ValueError, match=f"{name} must be at least 1 token"):
        dataloader_v1(STORY, **options)


def test_a_pickled_dataset_takes_two_bytes_a_token():
    dataset = GPTDatasetV1(SHIPPED_TEXT.read_text(encoding="utf-8"), gpt2_tokenizer(), context_size=64, stride=1)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2 * dataset.num_tokens + 1000
    assert as_lists([pickle.loads(pickled)[[5, 3]]]) == as_lists([dataset[[5, 3]]])


def test_tokens_are_kept_once_however_much_windows_overlap():
    tale = SHIPPED_TEXT.read_text(encoding="utf-8")
    text = tale * (1_000_000 // len(tale) + 1)
    gpt2_tokenizer()
    tracemalloc.start()
    dataset = GPTDatasetV1(text, gpt2_tokenizer(), context_size=256, stride=64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The windows alone would be 16 MB: 8 bytes a token, twice, each token in 4 of them.
    assert len(dataset) * 256 * 2 * 8 > 15e6
    assert peak < 4e6


def test_an_index_that_is_no_whole_number_is_refused():
    dataset = TokenWindows(np.arange(9), 2, 2)
    for index in (np.array(1.0), np.array([0.5]), np.array([True])):
        with pytest.raises(TypeError, match="a window is named by a whole number"):
            dataset[index]
    assert dataset[[]].input_ids.shape == (0, 2)


@st.composite
def shards_in_files(draw) -> tuple[list[int], str, int]:
    """Lengths of shards, the type of their ids and the bytes in front of them, as of llm.c's header."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    return lengths, draw(st.sampled_from(["<u2", "<u4"])), draw(st.sampled_from([0, 1024]))


@given(shards_in_files(), RANGES, st.integers(1, 6), st.integers(1, 9), st.data())
@settings(deadline=None, max_examples=150)
def test_no_window_crosses_from_one_shard_into_another(
    tmp_path_factory, shards_of, gaps_and_lengths, context_size, stride, data
):
    lengths, dtype, offset = shards_of
    folder = tmp_path_factory.mktemp("shards")
    ids, borders, files = np.arange(sum(lengths)), np.cumsum([0, *lengths]).tolist(), []
    for number, (start, stop) in enumerate(itertools.pairwise(borders)):
        files.append(folder / str(number))
        files[-1].write_bytes(bytes(offset) + ids[start:stop].astype(dtype).tobytes())
    # Mapped in any order, so that they lie in the memory in any order.
    mapped: dict[int, np.ndarray] = {}
    for number in data.draw(st.permutations(range(len(lengths)))):
        empty = np.empty(0, dtype)
        mapped[number] = np.memmap(files[number], dtype, mode="r", offset=offset) if lengths[number] else empty
    store = TokenStore(str(folder), [mapped[number] for number in range(len(lengths))], content="")

    ranges, end = [], 0
    for gap, length in gaps_and_lengths:
        ranges.append(Range(min(end + gap, len(ids)), min(end + gap + length, len(ids))))
        end = ranges[-1].stop
    windows = [
        list(range(first, first + context_size))
        for part in ranges
        for start, stop in itertools.pairwise(borders)
        for first in range(max(part.start, start), min(part.stop, stop) - context_size, stride)
    ]
    dataset = TokenWindows(store, context_size, stride, ranges)
    assert len(dataset) == len(windows)
    indices = data.draw(st.lists(st.integers(-len(windows), len(windows) - 1), max_size=20)) if windows else []
    batch = dataset[indices]
    assert batch.input_ids.tolist() == [windows[index] for index in indices]
    assert torch.equal(batch.target_ids, batch.input_ids + 1)
    assert [dataset[index].input_ids.tolist() for index in indices] == [windows[index] for index in indices]
    assert dataset[np.arange(len(windows))].input_ids.tolist() == windows
    shutil.rmtree(folder)


def test_a_store_that_changed_since_is_refused_by_spawned_workers(tmp_path):
    np.arange(100, dtype="<u2").tofile(tmp_path / "tokens.bin")
    pickled = pickle.dumps(TokenWindows(open_raw([tmp_path / "tokens.bin"]), 5, 3))
    np.arange(1, 101, dtype="<u2").tofile(tmp_path / "tokens.bin")
    with pytest.raises(StoreError, match="has changed since it was opened"):
        pickle.loads(pickled)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_a_window_may_be_named_by_any_integer_type(dtype):
    dataset = TokenWindows(np.arange(1000), 2, 9, [Range(0, 500), Range(500, 1000)])
    assert dataset[np.array([100, 3], dtype)].input_ids.tolist() == [[900 - 4, 900 - 3], [27, 28]]
    assert dataset[dtype(100)].input_ids.tolist() == [900 - 4, 900 - 3]


@pytest.mark.parametrize("integer", [np.int64, np.uint8])
def test_sizes_may_be_of_any_integer_type(integer):
    windows = TokenWindows(np.arange(300), integer(4), integer(100))
    assert [inputs.tolist() for inputs, _ in windows] == [list(range(start, start + 4)) for start in (0, 100, 200)]
    assert type(windows.context_size) is type(windows.stride) is int


def test_a_size_that_is_no_whole_number_is_an_error_that_names_its_setting():
    with pytest.raises(TypeError, match=r"stride must be a whole number, got 2\.5\. Set data\.stride"):
        whole_number("stride", 2.5)
