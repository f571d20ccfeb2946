import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DIFFERENT_WORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from gpt2_lit import EmbeddingStub, GPTDataModule, SimpleTokenizerV1, build_vocab, gpt2_tokenizer, tokenize
from gpt2_lit.data.order import permute
from gpt2_lit.errors import UserError
from gpt2_lit.store import token_cache
from gpt2_lit.store.prepare import prepare
from gpt2_lit.text import sources
from gpt2_lit.text.files import SHIPPED_TEXT
from gpt2_lit.text.sources import Source
from gpt2_lit.text.tokenizer import make_tokenizer

# Lightning itself calls what torch deprecates, and asks for workers where a machine has three cores or more; torch
# warns where it has fewer cores than workers, and Python 3.12 where a process with threads forks.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

TALE = SHIPPED_TEXT.read_text(encoding="utf-8")


def made(source: Any, **options: Any) -> GPTDataModule:
    """Set up, over words: 30 validation tokens in 7 windows of 4, and 270 for training in 66 or 67 windows."""
    data = GPTDataModule(source, **({"tokenizer": "words", "context_size": 4, "batch_size": 4} | options))
    data.setup()
    return data


def windows(loader) -> list[list[int]]:
    return [window for inputs, _ in loader for window in inputs.tolist()]


def fit(data: GPTDataModule, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(EmbeddingStub(data.vocab_size, 8, data.context_size), data)
    return trainer


@pytest.mark.parametrize(
    ("pin_memory", "device", "is_pinned"),
    [(None, "cpu", False), (None, "cuda", True), (True, "cpu", True), (False, "cuda", False)],
)
def test_batches_are_copied_from_pinned_memory_to_a_gpu_or_if_asked_for(words, pin_memory, device, is_pinned):
    data = made(words, pin_memory=pin_memory)
    assert data.train_dataloader().pin_memory is bool(pin_memory), "without a trainer there is no device"
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.strategy._root_device = torch.device(device)
    assert data.train_dataloader().pin_memory is is_pinned


def test_the_ids_of_a_text_are_those_of_the_textbook():
    data = GPTDataModule()
    data.setup("fit")
    ids = gpt2_tokenizer().encode(TALE)
    assert data.store.read(0, len(data.store)).tolist() == ids
    assert data.vocab_size == 50257
    assert data.tokenizer == make_tokenizer("gpt2")
    assert data.num_tokens == {"train": len(ids) - round(len(ids) * 0.1), "val": round(len(ids) * 0.1)}


def test_several_texts_stand_one_behind_the_other_with_the_end_of_text_between(tmp_path):
    for name, text in (("b.txt", "the hat"), ("a.md", "the<|endoftext|>cat"), ("c.txt", "sat")):
        (tmp_path / name).write_text(text)
    data = GPTDataModule(tmp_path, context_size=1, val_fraction=0.0)
    data.setup("fit")
    first, second, third = map(gpt2_tokenizer().encode_ordinary, ("the<|endoftext|>cat", "the hat", "sat"))
    assert data.store.read(0, len(data.store)).tolist() == [*first, 50256, *second, 50256, *third]
    assert first.count(50256) == 0


def test_words_of_a_store_are_an_error_as_only_the_text_has_them(tmp_path):
    np.arange(100, dtype="<u2").tofile(tmp_path / "x.bin")
    with pytest.raises(
        ValueError, match=r"the vocabulary is that of the text, and .*x.bin holds tokens. Give the text"
    ):
        GPTDataModule(tmp_path / "x.bin", tokenizer="words").setup("fit")


def test_on_request_a_batch_tells_its_documents_apart(tmp_path):
    for name, text in (("a.txt", "one two three"), ("b.txt", "four five")):
        (tmp_path / name).write_text(text)
    data = GPTDataModule(
        tmp_path, tokenizer="words", context_size=5, batch_size=1, val_fraction=0.0, shuffle=False, document_ids=True
    )
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert [data.tokenizer.decode(batch.input_ids[0].tolist())] == ["one two three <|endoftext|> four"]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1]]


def test_validation_may_have_a_text_of_its_own(tmp_path):
    (tmp_path / "train.txt").write_text("the cat sat on the mat")
    (tmp_path / "val.txt").write_text("the mat sat on the dog")
    data = GPTDataModule(
        tmp_path / "train.txt", "words", context_size=2, batch_size=1, shuffle=False, val_source=tmp_path / "val.txt"
    )
    data.setup("fit")
    assert data.num_tokens == {"train": 6, "val": 6}
    read = [data.tokenizer.decode(batch.input_ids[0].tolist()) for batch in data.val_dataloader()]
    assert read == ["the mat", "sat on"]
    assert len(data.train_dataset) == 2


def test_words_have_the_ids_of_the_vocabulary_of_the_source(tmp_path):
    (tmp_path / "a.txt").write_text("the hat, the cat")
    (tmp_path / "b.txt").write_text("a cat")
    data = GPTDataModule(tmp_path, tokenizer="words", context_size=2, val_fraction=0.0)
    assert data.vocab_size == 7
    assert data.tokenizer.load().vocab == {",": 0, "a": 1, "cat": 2, "hat": 3, "the": 4, "<|endoftext|>": 5, "<unk>": 6}
    data.setup("fit")
    assert data.store.read(0, len(data.store)).tolist() == [4, 3, 0, 4, 2, 5, 1, 2]


def test_the_words_of_one_text_have_the_ids_of_the_textbook():
    data = GPTDataModule(tokenizer="words")
    data.setup("fit")
    assert data.store.read(0, len(data.store)).tolist() == SimpleTokenizerV1(build_vocab(TALE)).encode(TALE)
    assert data.vocab_size == len(set(tokenize(TALE))) + 2


@given(
    context_size=st.integers(1, 20),
    stride=st.integers(1, 25),
    val_fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_no_token_of_validation_is_in_a_training_window(tmp_path_factory, context_size, stride, val_fraction, seed):
    path = tmp_path_factory.getbasetemp() / "different.txt"
    path.write_text(DIFFERENT_WORDS)
    data = made(path, context_size=context_size, stride=stride, val_fraction=val_fraction, seed=seed, drop_last=False)
    train, val = (
        {token_id for batch in loader for ids in batch for token_id in ids.flatten().tolist()}
        for loader in (data.train_dataloader(), data.val_dataloader())
    )
    assert train
    assert val
    assert not train & val
    assert sum(data.num_tokens[split] for split in ("train", "val")) == 300
    # With every token different, its id is its position: the windows can be counted in the ranges.
    assert data.num_windows["train"] == sum(
        len(range(r.start, r.stop - context_size, stride)) for r in data.train_dataset.ranges
    )


def test_counts_are_known_for_each_split_that_is_set_up(words):
    data = GPTDataModule(words, tokenizer="words", context_size=4, test_source=SHIPPED_TEXT)
    assert data.num_tokens == data.num_windows == {}
    data.setup("fit")
    assert data.num_tokens == {"train": 270, "val": 30}
    data.setup("test")
    num_words = len(tokenize(TALE))
    assert data.num_tokens == {"train": 270, "val": 30, "test": num_words}
    assert data.num_windows["val"] == 7
    assert data.num_windows["test"] == (num_words - 1) // 4


def test_settings_are_kept_under_their_names(words):
    data = GPTDataModule(words, context_size=7, batch_size=3, seed=5)
    kept = {name: getattr(data, name) for name in ("source", "context_size", "stride", "batch_size", "seed")}
    assert kept == {"source": Source.of(words), "context_size": 7, "stride": 7, "batch_size": 3, "seed": 5}


def test_a_batch_is_a_pair_of_ids_and_the_ids_one_token_on(words):
    batch = next(iter(made(words).train_dataloader()))
    inputs, targets = batch
    assert inputs is batch.input_ids
    assert inputs.shape == targets.shape == (4, 4)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_each_pass_of_a_plain_loop_is_the_next_epoch_for_any_number_of_workers(words, num_workers):
    data = made(words, num_workers=num_workers, seed=3)
    dataset = data.train_dataset
    in_reading_order = [dataset[i].input_ids.tolist() for i in range(len(dataset))]
    loader = data.train_dataloader()
    for epoch in range(3):
        order = permute(torch.arange(len(dataset)).numpy(), len(dataset), seed=3, epoch=epoch)
        full_batches = len(dataset) // 4 * 4
        assert windows(loader) == [in_reading_order[i] for i in order[:full_batches]]
    assert len(loader) == len(dataset) // 4
    assert loader.num_workers == num_workers


def test_without_drop_last_each_window_comes_once_an_epoch(words):
    data = made(words, drop_last=False)
    in_reading_order = [inputs.tolist() for inputs, _ in data.train_dataset]
    epoch = windows(data.train_dataloader())
    assert epoch != in_reading_order
    assert sorted(epoch) == in_reading_order


def test_without_shuffling_windows_come_in_reading_order(words):
    data = made(words, shuffle=False, drop_last=False)
    assert windows(data.train_dataloader()) == [inputs.tolist() for inputs, _ in data.train_dataset]


def test_the_seed_decides_the_split_and_the_order(words):
    first, same, other = made(words, seed=1), made(words, seed=1), made(words, seed=2)
    assert first.val_dataset.ranges == same.val_dataset.ranges != other.val_dataset.ranges
    epochs = [windows(data.train_dataloader()) for data in (first, same, other)]
    assert epochs[0] == epochs[1] != epochs[2]
    whole = [windows(made(words, seed=seed, val_fraction=0.0).train_dataloader()) for seed in (1, 2)]
    assert whole[0] != whole[1]


def test_validation_begins_at_the_beginning_of_a_document_near_it(tmp_path):
    for name in "abcde":  # 59 words and the end of text: documents begin at 0, 60, 120, 180 and 240
        (tmp_path / f"{name}.txt").write_text(" ".join(f"{name}{i}" for i in range(59)))
    starts = {made(tmp_path, val_fraction=0.2, seed=seed).val_dataset.ranges[0].start for seed in range(20)}
    # The places are 0, 79, 159 and 239; near is within a quarter of 60 tokens.
    assert starts == {0, 79, 159, 240}


@pytest.mark.parametrize(
    "options", [{"stride": 1}, {"stride": 9}, {"batch_size": 1}, {"context_size": 7}, {"shuffle": False}], ids=str
)
def test_the_split_stays_whatever_the_windows_and_batches(words, options):
    plain, other = made(words), made(words, **options)
    assert other.train_dataset.ranges == plain.train_dataset.ranges
    assert other.val_dataset.ranges == plain.val_dataset.ranges


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_windows_come_in_reading_order_side_by_side_each_once(words, num_workers):
    data = made(words, stride=1, num_workers=num_workers)
    [val] = data.val_dataset.ranges
    side_by_side = [list(range(start, start + 4)) for start in range(val.start, val.stop - 4, 4)]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert windows(loader) == windows(loader) == side_by_side
        assert [len(inputs) for inputs, _ in loader] == [4, 3]


def test_a_val_fraction_of_0_gives_no_validation_and_nothing_to_test_on(words):
    data = made(words, val_fraction=0.0)
    assert data.num_tokens == {"train": 300}
    assert data.val_dataloader() == []
    for loader in (data.test_dataloader, data.predict_dataloader):
        with pytest.raises(ValueError, match=r"nothing to test on: data.val_fraction is 0 and .*data.test_source"):
            loader()


def test_a_trainer_of_data_without_validation_validates_other_data_later(words):
    without, data = GPTDataModule(words, "words", 4, batch_size=4, val_fraction=0.0), made(words)
    trainer = fit(without, max_steps=1, max_epochs=2)
    assert trainer.limit_val_batches == 1.0
    assert "val/loss" not in trainer.callback_metrics
    trainer.fit_loop.epoch_loop.max_steps = 100
    trainer.fit(EmbeddingStub(data.vocab_size, 8, 4), data)
    assert "val/loss" in trainer.callback_metrics
    assert "val/loss" in trainer.validate(EmbeddingStub(data.vocab_size, 8, 4), data, verbose=False)[0]


def test_a_training_without_validation_that_fails_leaves_the_trainer_its_validation(words):
    class Failing(EmbeddingStub):
        def training_step(self, batch, batch_idx):
            assert self.trainer.limit_val_batches == 0
            raise RuntimeError("stop")

    data = GPTDataModule(words, "words", 4, batch_size=4, val_fraction=0.0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=3, max_steps=1)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(Failing(data.vocab_size, 8, 4), data)
    assert trainer.limit_val_batches == 3


@pytest.mark.parametrize("name", ["val_source", "test_source"])
@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("corpus", "corpus/1.txt"),
        ("corpus", "./corpus/../corpus/1.txt"),
        ("corpus/*.txt", "linked"),
        ("corpus", "copied.txt"),
        ("corpus/0.txt", "corpus"),
        ("1.bin", "./1.bin"),
        ("[01].bin", "copy.bin"),
        ("store", "./store"),
        ("store", "moved"),
        ("corpus", "store"),
        (None, None),
    ],
)
def test_text_that_is_trained_on_is_refused_for_validation_and_test(tmp_path, monkeypatch, source, other, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for number in (0, 1):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"{number} {DIFFERENT_WORDS}")
        np.arange(number, 200 + number, dtype="<u2").tofile(f"{number}.bin")
    (tmp_path / "linked").symlink_to("corpus")
    shutil.copy("corpus/1.txt", "copied.txt")
    shutil.copy("1.bin", "copy.bin")
    prepare("corpus", "store")
    shutil.copytree("store", "moved")
    with pytest.raises(ValueError, match=rf"data.{name} holds text that is trained on: .*data.val_fraction"):
        made(source, tokenizer="gpt2", **{name: other or SHIPPED_TEXT})


def test_other_files_of_the_same_size_are_fine_for_validation(words, tmp_path):
    (tmp_path / "val.txt").write_text(DIFFERENT_WORDS.replace("w299", "w000"))
    assert made(words, val_source=tmp_path / "val.txt").num_tokens == {"train": 300, "val": 300, "test": 300}


def test_shards_that_leave_validation_no_window_are_an_error_with_the_numbers(tmp_path):
    for number in range(6):
        np.arange(20 if number else 2000, dtype="<u2").tofile(tmp_path / f"{number}.bin")
    message = r"val_source is too short: .* = 33 tokens, and it has 100 in 5 pieces of at most 20"
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "0.bin", tokenizer="gpt2", context_size=32, val_source=f"{tmp_path}/[1-5].bin")
    message = r"the train split is too short: .* = 33 tokens, and it has \d+ in \d pieces of at most 20"
    with pytest.raises(ValueError, match=message):
        made(f"{tmp_path}/[1-5].bin", tokenizer="gpt2", context_size=32)


def test_a_batch_larger_than_the_training_windows_ends_a_fit_before_anything_else(words):
    steps: list[int] = []

    class Watch(EmbeddingStub):
        def validation_step(self, batch, batch_idx):
            steps.append(batch_idx)

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(ValueError, match="too few windows for one full batch: 1 x batch_size 100"):
        trainer.fit(Watch(302, 8, 4), GPTDataModule(words, "words", 4, batch_size=100))
    assert steps == []


# In a process of its own: here jaxtyping checks the types of arguments, which a sweep's numbers do not have.
NUMPY_SETTINGS = """
import sys
from pathlib import Path
import numpy as np
from gpt2_lit import GPTDataModule

def windows(source, options):
    data = GPTDataModule(source, "words", **options)
    data.setup("fit")
    return data, [inputs.tolist() for inputs, targets in data.train_dataloader()]

ints = dict(context_size=4, stride=3, batch_size=4, seed=7, num_workers=0)
plain, expected = windows(sys.argv[1], ints | dict(shuffle=False, val_fraction=0.25))
given = {name: np.int64(value) for name, value in ints.items()} | dict(val_fraction=np.float32(0.25))
given |= dict(cache_size=np.int32(1), shuffle=np.False_, document_ids=np.False_, drop_last=np.True_)
folder = Path(sys.argv[1]).parent
for source in (folder.glob("words.txt"), (str(path) for path in [folder / "words.txt"]), np.array([sys.argv[1]])):
    data, found = windows(source, given)
    assert found == expected and len(found) > 10
    assert all(type(getattr(data, name)) is int for name in ints)
    assert type(data.val_fraction) is type(data.cache_size) is float
    assert data.shuffle is False
assert GPTDataModule(shuffle=np.True_).shuffle == "global"
for value in (2.5, "many", None):
    try:
        GPTDataModule(seed=value)
    except TypeError as error:
        assert "seed must be a whole number" in str(error)
"""


# Each argument that takes the setting's value from Python, and a value of a wrong type, which would else be taken for
# another one ("false" is true) or end in an error of other code.
WRONG_SETTINGS = """
import sys
from pathlib import Path
import numpy as np
from gpt2_lit import EmbeddingModule, GPTDataModule, InstructionDataModule, GPTDatasetV1, dataloader_v1, gpt2_tokenizer
from gpt2_lit.errors import UserError
from gpt2_lit.store.plan import Recipe
from gpt2_lit.store.prepare import prepare
from gpt2_lit.store.token_store import open_store

words, store = sys.argv[1], str(Path(sys.argv[1]).parent / "store")
text = "the cat sat on the mat " * 20
of_text = {"txt": text, "tokenizer": gpt2_tokenizer(), "context_size": 4, "stride": 1}
dataset = lambda **given: GPTDatasetV1(**(of_text | given))
loader = lambda **given: dataloader_v1(**({"txt": text} | given))
module = lambda **given: EmbeddingModule(**({"vocab_size": 10, "embed_dim": 8, "context_size": 4} | given))
make = lambda **given: prepare(**({"source": words, "store": store, "show_progress": False} | given))
no_switch, no_number, no_string = ("false", None, 2), ("0.1", None, "many"), (5, b"x")
wrong = [
    (GPTDataModule, dict.fromkeys(("drop_last", "document_ids", "check", "strip_gutenberg"), no_switch)),
    (GPTDataModule, {"pin_memory": ("no", 2), "shuffle": ("False", "none", 2, None)}),
    (GPTDataModule, dict.fromkeys(("val_fraction", "cache_size"), no_number) | {"max_unpacked": ("1",)}),
    (GPTDataModule, {"text_field": (*no_string, None), "document_separator": (*no_string, "")}),
    (GPTDataModule, {"cache_dir": (b"c", 5, "s3://bucket/c"), "source": (np.array("a"), {"a"}, 5, b"a")}),
    (loader, {"txt": (b"a", None, ["a"], Path("a")), "shuffle": no_switch, "drop_last": no_switch}),
    (loader, {"num_workers": (-1, 0.0, None), "batch_size": (2.0, None)}),
    (dataset, {"txt": (b"a", None, ["a"]), "tokenizer": (None, "gpt2", 5, len), "stride": (1.0, None)}),
    (module, dict.fromkeys(("vocab_size", "embed_dim", "context_size"), (8.0, "8", None, 0))),
    (module, {"dropout": no_number, "init": (None, "nope")}),
    (make, {"store": (b"a", None, 5, "", "s3://bucket/a"), "num_processes": (0, 1.5, "1"), "recipe": ("gpt2", 5)}),
    (GPTDataModule, {"token_dtype": ("float32", None, 16), "skip": (5, b"step 1", "step")}),
    (module(), {"input_ids": ([[1, 2]], None, np.array([1]))}),
    (InstructionDataModule, {"template": (3, None, "llama"), "packing": no_switch, "too_long": (None, True)}),
    (Recipe, {"sha256": ("false", None)}),
]
for of, arguments in wrong:
    for name, values in arguments.items():
        for value in values:
            try:
                of(**{name: value})
            except UserError:
                continue
            raise SystemExit(f"{of} takes {name}={value!r}")

assert module(vocab_size=np.int64(10), embed_dim=np.uint8(8), dropout=np.float32(0.1)).dropout.p == np.float32(0.1)
assert len(loader(batch_size=np.int64(2), drop_last=np.True_, shuffle=np.False_)) == 29
assert GPTDataModule(cache_size=float("inf"), strip_gutenberg=np.True_).text_options.strip_gutenberg is True
make(source=np.str_(words), store="~/store", num_processes=np.int64(1), recipe=Recipe(sha256=np.True_))
assert len(open_store("~/store")) == len(open_store(Path.home() / "store"))
assert not Path("~").exists()
"""


def test_a_setting_of_another_type_is_an_error_that_names_it_and_never_another_setting(words, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    ended = subprocess.run(
        [sys.executable, "-c", WRONG_SETTINGS, str(words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_settings_may_be_numbers_of_numpy_and_sources_generators(words):
    subprocess.run([sys.executable, "-c", NUMPY_SETTINGS, str(words)], check=True, timeout=120)


def test_a_test_source_is_cut_whole_with_the_vocabulary_of_the_source(words, tmp_path):
    (tmp_path / "other.txt").write_text("w005 w004 w003 dog w001 w000")
    data = made(words, context_size=2, test_source=tmp_path / "other.txt", val_fraction=0.0)
    assert windows(data.test_dataloader()) == windows(data.predict_dataloader()) == [[5, 4], [3, data.vocab_size - 1]]


def test_a_test_source_that_is_too_short_is_an_error_with_the_numbers(words, tmp_path):
    (tmp_path / "short.txt").write_text("w005 w004")
    with pytest.raises(ValueError, match=r"test_source is too short: .* context_size \+ 1 = 5 tokens, and it has 2"):
        made(words, test_source=tmp_path / "short.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "gpt3"}, r"tokenizer must be one of gpt2, words, .* got 'gpt3'. Set data.tokenizer"),
        ({"context_size": 0}, "context_size must be at least 1, got 0. Set data.context_size"),
        ({"stride": 0}, "stride must be at least 1, got 0. Set data.stride"),
        ({"stride": -3}, "stride must be at least 1, got -3"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0. Set data.batch_size"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1. Set data.num_workers"),
        ({"seed": 2**63}, "seed must be from -9223372036854775808 to 9223372036854775807, got 9223372036854775808"),
        ({"val_fraction": -0.1}, "val_fraction must be at least 0 and below 1, got -0.1. Set data.val_fraction"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1, got 1.0"),
        ({"cache_size": -1.0}, "cache_size must be at least 0, got -1.0. Set data.cache_size"),
        ({"max_unpacked": 0.0}, "max_unpacked must be above 0, got 0.0. Set data.max_unpacked"),
        ({"max_unpacked": float("nan")}, "max_unpacked must be above 0, got nan"),
        ({"document_separator": ""}, "document_separator must not be empty. Set data.document_separator"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0. Set data.vocab_size"),
        ({"val_fraction": float("nan")}, "val_fraction must be at least 0 and below 1, got nan"),
    ],
)
def test_a_setting_out_of_its_range_is_an_error_when_the_module_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        GPTDataModule(**options)


def test_a_source_that_does_not_fit_is_an_error_in_setup(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or directory"):
        GPTDataModule(tmp_path / "nothing.txt").setup("fit")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="is not UTF-8: byte 0xe9 at offset 3"):
        GPTDataModule(tmp_path / "latin.txt").setup("fit")
    (tmp_path / "short.txt").write_text("one two three")
    with pytest.raises(ValueError, match=r"the text is too short: .* 33 tokens in train and 33 for val, .* has 3"):
        GPTDataModule(tmp_path / "short.txt").setup("fit")


def test_a_batch_larger_than_the_training_windows_is_an_error_with_the_numbers(words):
    data = made(words, batch_size=100)
    num_windows = data.num_windows["train"]
    with pytest.raises(
        ValueError, match=rf"too few windows for one full batch: 1 x batch_size 100 .* split has {num_windows}"
    ):
        data.train_dataloader()
    loader = made(words, batch_size=100, drop_last=False).train_dataloader()
    assert [len(inputs) for inputs, _ in loader] == [num_windows]


@pytest.mark.parametrize("use", [GPTDataModule.train_dataloader, GPTDataModule.summary])
def test_using_it_before_setup_is_an_error_that_says_so(use):
    with pytest.raises(RuntimeError, match=r"call setup\(\"fit\"\) first"):
        use(GPTDataModule())


def test_setup_reads_the_source_once(words):
    data = made(words)
    before = data.train_dataset
    words.unlink()
    data.setup("fit")
    data.setup("test")
    assert data.train_dataset is before


def test_overfit_batches_trains_on_the_first_batches_again_and_again(words):
    class Watch(EmbeddingStub):
        def training_step(self, batch, batch_idx):
            seen.append(batch.input_ids.tolist())
            return super().training_step(batch, batch_idx)

    seen: list[list[list[int]]] = []
    data = made(words)
    trainer = Trainer(
        overfit_batches=2,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Watch(data.vocab_size, 8, 4), data)
    first = [inputs.tolist() for inputs, _ in (data.train_dataset[[0, 1, 2, 3]], data.train_dataset[[4, 5, 6, 7]])]
    assert seen == [*first, *first]


def test_the_summary_tells_what_was_read_and_how_it_is_cut(words):
    data = made(words, batch_size=10)
    assert data.summary().splitlines() == [
        f"  source  {words}",
        f"  store   {data.store.path}",
        "  tokens  300 (words, vocabulary of 302)",
        "  train   270 tokens (90.0%), 66 windows",
        "  val     30 tokens (10.0%), 7 windows",
        "  batch   10 windows x 4 tokens",
        "  epoch   6 batches, 6 windows sit out",
    ]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"val_fraction": 0.0}, ["  val     none (val_fraction is 0)", "  epoch   18 batches, 2 windows sit out"]),
        ({"drop_last": False}, ["  epoch   17 batches"]),
        ({"batch_size": 66}, ["  epoch   1 batches"]),
    ],
)
def test_the_summary_tells_what_is_left_out(words, options, lines):
    summary = made(words, **options).summary().splitlines()
    assert [line for line in summary if line in lines] == lines


def test_the_summary_names_the_source_and_counts_its_documents(tmp_path):
    for name in ("c.txt", "a.txt", "b.md"):
        (tmp_path / name).write_text(DIFFERENT_WORDS)
    assert made(tmp_path).summary().startswith(f"  source  {tmp_path} (3 documents in 3 files)\n")
    some = made([tmp_path / "c.txt", tmp_path / "a.txt"]).summary()
    assert some.startswith(f"  source  {tmp_path / 'c.txt'} to {tmp_path / 'a.txt'} (2 documents in 2 files)\n")
    assert "  source  the tale that ships with gpt2_lit (tale.txt)\n" in made(None).summary()


def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GPTDataModule, "data")
    parser.add_argument("--config", action="config")
    return parser


@pytest.mark.parametrize(
    ("args", "source"),
    [
        (["--data.source", "a.txt"], "a.txt"),
        (["--data.source", "A: b.txt"], "A: b.txt"),
        (["--data.source", "[a.txt, b.txt]"], ["a.txt", "b.txt"]),
        (["--data.source", '["A: b.txt", "null"]'], ["A: b.txt", "null"]),
        (["--data.source+", "a.txt", "--data.source+", "b.txt"], ["a.txt", "b.txt"]),
        (["--data.source", "a.txt", "--data.source+", "b.txt"], ["a.txt", "b.txt"]),
        (["--data.source+", "a.txt", "--data.source+", "A: b.txt", "--data.source+", "c"], ["a.txt", "A: b.txt", "c"]),
        (["--data.source+", "a.txt", "--data.source+", "null"], ["a.txt", "null"]),
        (["--config", '{data: {source: [a.txt, "A: b.txt", "null"]}}'], ["a.txt", "A: b.txt", "null"]),
        (["--data.source", "null"], None),
    ],
    ids=str,
)
def test_several_sources_can_be_named_on_the_command_line(args, source):
    config = parser().parse_args(args)
    assert config.data.source == source
    assert parser().parse_string(parser().dump(config)).data.source == source


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "12", "null", "A: b.json"])
def test_a_tokenizer_on_the_command_line_is_a_name_or_a_path(name):
    config = parser().parse_args(["--data.tokenizer", name])
    assert config.data.tokenizer == name
    assert parser().parse_string(parser().dump(config)).data.tokenizer == name


@pytest.mark.parametrize("with_val_source", [False, True])
def test_a_run_prepares_each_source_once(words, monkeypatch, with_val_source):
    prepared = []
    monkeypatch.setattr(token_cache, "prepare", lambda source, *args: prepared.append(source) or prepare(source, *args))
    sources = {"source": words, "val_source": SHIPPED_TEXT} if with_val_source else {}
    data = GPTDataModule(**sources)
    fit(data, max_steps=1)
    assert len(prepared) == max(len(sources), 1)


def test_ids_of_another_vocabulary_have_its_size_and_are_shown_as_numbers(tmp_path):
    ids = np.arange(100_000, 100_200, dtype="<u4")
    ids.tofile(tmp_path / "ids.bin")
    data = GPTDataModule(tmp_path / "ids.bin", token_dtype="uint32", vocab_size=128_256, context_size=4)
    data.setup("fit")
    assert data.vocab_size == 128_256
    input_ids, _ = next(iter(data.train_dataloader()))
    assert set(input_ids.flatten().tolist()) <= set(ids.tolist())
    assert data.tokenizer.decode(input_ids[0, :2].tolist()) == f"{input_ids[0, 0]} {input_ids[0, 1]}"
    too_small = GPTDataModule(tmp_path / "ids.bin", token_dtype="uint32", vocab_size=100_100)
    with pytest.raises(ValueError, match=r"has the id 100\d+, and the vocabulary ends at 100099"):
        too_small.setup("fit")


def test_the_size_of_a_vocabulary_is_for_ids_and_not_for_text(words):
    with pytest.raises(ValueError, match=r"data.vocab_size is for .bin files, and the source is text. Leave it out"):
        GPTDataModule(words, vocab_size=1000).setup("fit")
    np.arange(100, dtype="<u2").tofile(words.parent / "ids.bin")
    with pytest.raises(ValueError, match=r"data.document_ids needs the tokenizer"):
        GPTDataModule(words.parent / "ids.bin", vocab_size=1000, document_ids=True, context_size=4).setup("fit")


class Letters:
    """A tokenizer of one's own: the id of a letter is its code point."""

    n_vocab, eot_token, fingerprint = 128, 127, "letters 1"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize("tokenizer", [Letters(), make_tokenizer(Letters()), gpt2_tokenizer(), "cl100k_base"], ids=str)
def test_any_tokenizer_gives_the_ids_of_the_text_and_tells_the_size_of_its_vocabulary(words, tokenizer):
    if tokenizer == "cl100k_base":
        try:
            tokenizer = make_tokenizer(tokenizer)
        except OSError:
            pytest.skip("tiktoken downloads its ranks")
    data = GPTDataModule(words, tokenizer, context_size=4, document_ids=True)
    data.setup("fit")
    assert data.tokenizer.decode(data.store.read(0, len(data.store)).tolist()) == DIFFERENT_WORDS
    assert data.vocab_size == tokenizer.n_vocab


def test_a_cache_that_is_too_small_for_what_is_in_use_is_told(words, tmp_path, caplog):
    GPTDataModule(words, cache_dir=tmp_path / "cache", cache_size=1e-6).prepare_data()
    assert "more than the 0.0 GB allowed. Raise data.cache_size" in caplog.text


@pytest.mark.parametrize(("lengths", "told"), [((100, 3, 4), "7 of 107 tokens"), ((100, 5), "")])
def test_shards_shorter_than_a_window_are_told_once(tmp_path, caplog, lengths, told):
    for number, length in enumerate(lengths):
        np.arange(length, dtype=np.uint16).tofile(tmp_path / f"{number}.bin")
    made(str(tmp_path / "*.bin"), tokenizer="gpt2", val_fraction=0.0)
    messages = [record.message for record in caplog.records if "are left out" in record.message]
    assert len(messages) == bool(told)
    assert told in "".join(messages)


def test_texts_in_memory_are_trained_on_as_the_same_texts_in_files(tmp_path) -> None:
    stories = [f"{word} came to the old house and " * 12 for word in ("mice", "owls", "bees")]
    for number, story in enumerate(stories):
        (tmp_path / f"{number}.txt").write_text(story, encoding="utf-8")
    options: dict[str, Any] = {"context_size": 4, "batch_size": 4, "document_ids": True}
    in_memory = GPTDataModule.from_text((story for story in stories), **options)
    in_memory.setup()
    from_files = GPTDataModule(tmp_path, **options)
    from_files.setup()
    assert in_memory.store
    assert in_memory.store.num_documents == 3
    for loader in ("train_dataloader", "val_dataloader"):
        pairs = list(zip(getattr(in_memory, loader)(), getattr(from_files, loader)(), strict=True))
        assert pairs
        assert all(torch.equal(one, other) for pair in pairs for one, other in zip(*pair, strict=True))
    assert "3 documents)" in in_memory.summary()
    assert "in memory" in in_memory.summary()


def test_files_are_looked_for_once_also_where_validation_has_its_own(tmp_path, monkeypatch) -> None:
    looked_for: list[str] = []
    local_files = sources._local_files
    monkeypatch.setattr(
        sources, "_local_files", lambda name, *rest: (looked_for.append(name), local_files(name, *rest))[1]
    )
    texts = {"source": "the cat sat", "val_source": "on the mat", "test_source": "and slept"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"{text} " * 9)
    data = GPTDataModule(**{name: tmp_path / name for name in texts}, context_size=4, batch_size=1)
    data.prepare_data()
    assert looked_for == [str(tmp_path / name) for name in texts]


def test_a_text_in_memory_writes_no_file_and_comes_along_in_a_pickle(tmp_path) -> None:
    data = GPTDataModule.from_text(TALE, context_size=8, batch_size=2, cache_dir=tmp_path / "cache")
    data.setup()
    assert not (tmp_path / "cache").exists()
    copy = pickle.loads(pickle.dumps(data))
    assert windows(copy.train_dataloader()) == windows(data.train_dataloader())
    assert copy.tokenizer.decode(next(iter(data.train_dataloader())).input_ids[0]) in TALE


def test_separators_end_documents_of_a_text_in_memory_and_else_are_told(caplog: pytest.LogCaptureFixture) -> None:
    text = "one two three four five<|endoftext|>" * 3
    for separator, num_documents in (("<|endoftext|>", 3), (None, 1)):
        data = GPTDataModule.from_text(
            text, document_separator=separator, context_size=2, batch_size=1, val_fraction=0.0
        )
        data.setup()
        assert data.store
        assert data.store.num_documents == num_documents
    assert caplog.text.count("3 times <|endoftext|> in the texts is kept as text") == 1
    assert "document_separator '" not in caplog.text.replace("--data.document_separator '", "")
    GPTDataModule.from_text(text, document_separator="###", context_size=2).setup()
    assert "data.document_separator '###' made 1 document of 1 text: is it in them?" in caplog.text


def test_a_checkpoint_of_another_text_in_memory_is_refused(tmp_path) -> None:
    data = GPTDataModule.from_text(TALE, context_size=8)
    trainer = fit(data, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = GPTDataModule.from_text(TALE[::-1], context_size=8)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=4)
    with pytest.raises(ValueError, match="the checkpoint is of a run on other data"):
        trainer.fit(EmbeddingStub(50257, 8, 8), other, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "there is no text in memory"),
        ([], {}, "there is no text in memory"),
        (["", ""], {}, "there is no text in memory"),
        ("\n--\n", {"document_separator": "--"}, "there is no document in the texts in memory"),
        ("a text", {"source": "a.txt"}, "from_text takes the text instead of source"),
    ],
)
def test_what_is_no_text_in_memory_is_refused(text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPTDataModule.from_text(text, **options).setup()


def test_validation_in_a_file_that_is_the_text_in_memory_is_refused(tmp_path) -> None:
    (tmp_path / "val.txt").write_text(TALE, encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.val_source holds text that is trained on"):
        GPTDataModule.from_text(TALE, val_source=tmp_path / "val.txt", cache_dir=tmp_path / "cache").setup()


def test_a_store_is_compared_with_its_checksums_before_training_if_asked_for(tmp_path) -> None:
    store, text = tmp_path / "store", tmp_path / "a.txt"
    text.write_text(TALE, encoding="utf-8")
    prepare(text, store)
    assert windows(made(store, tokenizer="gpt2", check=True).train_dataloader()) == windows(
        made(store, tokenizer="gpt2").train_dataloader()
    )
    (shard,) = store.glob("tokens-*.bin")
    shard.write_bytes(bytes(shard.stat().st_size))
    made(store, tokenizer="gpt2")  # the size is right
    with pytest.raises(ValueError, match=f"{shard} is damaged: its CRC-32 is"):
        made(store, tokenizer="gpt2", check=True)
    np.arange(99, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    with pytest.raises(ValueError, match=r"data\.check reads the checksums of a store, and .*ids\.bin has none"):
        made(tmp_path / "ids.bin", tokenizer="gpt2", check=True)


def test_the_size_of_the_cache_is_in_gigabytes():
    assert GPTDataModule(cache_size=2.0)._cache.max_bytes == 2_000_000_000


@pytest.mark.parametrize(
    ("limit", "firsts"), [(2, [0, 4, 8, 12]), (None, [*range(0, 16, 2)]), (1.0, [*range(0, 16, 2)])]
)
def test_a_limited_validation_is_spread_evenly_over_the_text(words: Path, limit: Any, firsts: list[int]) -> None:
    """Eight windows of two tokens in the text for validation, two a batch."""
    (words.parent / "val.txt").write_text(" ".join(f"w{i:03}" for i in range(17)))
    data = GPTDataModule(words, "words", context_size=2, batch_size=2, val_source=words.parent / "val.txt")
    data.trainer = Trainer(logger=False, accelerator="cpu", limit_val_batches=limit, enable_checkpointing=False)
    data.prepare_data()
    data.setup("validate")
    assert [window[0].item() for batch in data.val_dataloader() for window in batch.input_ids] == firsts


def test_a_preview_shows_the_first_windows_of_training_and_changes_nothing(words: Path, capsys: Any) -> None:
    data, other = (GPTDataModule(words, "words", context_size=2, batch_size=4) for _ in range(2))
    data.preview(6)
    lines = capsys.readouterr().out.splitlines()
    other.setup("fit")
    batches = iter(other.train_dataloader())
    firsts = [int(first) for _ in range(2) for first in next(batches).input_ids[:, 0]][:6]
    shown = [[int(word) for word in re.findall(r"w(\d+)", line)] for line in lines]
    assert shown == [[first, first + 1, first + 2] for first in firsts]
    assert data.state_dict() == {}
