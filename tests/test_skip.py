"""What is left out, beside a list of the whole order from which it is taken by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run import flat, train

from gpt2_lit import GPTDataModule
from gpt2_lit.data.order import LeftOut, Position, WindowSampler
from gpt2_lit.data.skip import Skip, parse_skip
from gpt2_lit.data.split import Range
from gpt2_lit.data.windows import TokenWindows

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

W = 30
windows_left_out = st.lists(st.integers(0, W - 1), unique=True, max_size=20)
stretch = st.tuples(st.integers(0, 2), st.integers(0, W), st.integers(0, W)).map(lambda s: (s[0], *sorted(s[1:])))


def batches_by_hand(sampler: WindowSampler, left_out: LeftOut, epochs: int) -> list[tuple[int, int, list[int]]]:
    """For each global batch its epoch, the position after it, and its windows."""
    found = []
    for epoch in range(epochs):
        order = sampler.permute(np.arange(W), W, sampler.seed, epoch).tolist() if sampler.permute else list(range(W))
        kept = [
            (position, window)
            for position, window in enumerate(order)
            if window not in left_out.windows
            and not any(where == epoch and start <= position < stop for where, start, stop in left_out.stretches)
        ]
        for start in range(0, len(kept) - sampler.global_batch + 1, sampler.global_batch):
            batch = kept[start : start + sampler.global_batch]
            found.append((epoch, batch[-1][0] + 1, [window for _, window in batch]))
    return found


@given(windows_left_out, st.lists(stretch, max_size=3), st.sampled_from(["global", "block", False]), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_the_order_without_what_is_left_out_is_the_order_with_it_but_for_that(left_out, stretches, shuffle, batch_size):
    left_out = LeftOut(np.unique(np.array(left_out, np.int64)), tuple(stretches))
    sampler = WindowSampler(W, batch_size, seed=5, shuffle=shuffle)
    sampler.leave_out(left_out)
    expected = batches_by_hand(sampler, left_out, epochs=6)
    assert len(sampler) == (W - len(left_out.windows)) // batch_size
    if not expected:
        return
    for number in range(0, min(len(expected), 3 * len(sampler)), 2):
        epoch, _, windows = expected[number]
        position, found = sampler.next_batch(sampler.after(Position(0, 0), number))
        assert (position.epoch, found.tolist()) == (epoch, windows)
        assert sampler.after(Position(0, 0), number + 1) == expected[number][:2]
    sampler.position = lambda: sampler.after(Position(0, 0), 1)
    assert [batch.tolist() for batch in sampler] == [windows for *_, windows in expected[1 : 1 + len(sampler)]]


def skip(text: str, batch_size: int = 2, num_windows: int = W) -> Skip:
    windows = TokenWindows(np.arange(2 * num_windows + 1), context_size=2, stride=2)
    return Skip(parse_skip(text), windows, WindowSampler(num_windows, batch_size, seed=5))


START = Position(0, 0)


def batches(sampler: WindowSampler, number: int, start: Position = START) -> list[list[int]]:
    return [sampler.next_batch(sampler.after(start, n))[1].tolist() for n in range(number)]


def test_steps_that_are_left_out_are_those_that_the_entries_before_them_leave():
    whole = batches(skip("").sampler, 60)
    assert batches(skip("steps 3-4").sampler, 20) == whole[:3] + whole[5:22]
    # Step 6 is counted without the first two.
    assert batches(skip("steps 3-4, step 6").sampler, 20) == whole[:3] + whole[5:8] + whole[9:23]
    assert batches(skip("steps 13-16").sampler, 20) == whole[:13] + whole[17:24], "across an epoch"
    without_7 = batches(skip("window 7").sampler, 20)
    assert batches(skip("window 7, step 2").sampler, 10) == without_7[:2] + without_7[3:11]
    assert 7 not in flat(without_7)


def test_a_checkpoint_keeps_which_windows_its_steps_had():
    first = skip("steps 3-4", batch_size=2)
    resumed = skip("steps 3-4", batch_size=6)
    assert not resumed.restore(first.state(), Position(0, 6), 3)
    assert resumed.sampler.left_out.stretches == first.sampler.left_out.stretches == ((0, 6, 10),)
    whole = flat(batches(skip("").sampler, 15))
    assert batches(resumed.sampler, 2, Position(0, 6)) == [whole[10:16], whole[16:22]]


def test_steps_that_a_resumed_run_leaves_out_count_on_from_its_checkpoint():
    """Three batches of 2 windows, then batches of 6: step 4 has the windows from position 12 on."""
    resumed = skip("step 4", batch_size=6)
    assert resumed.restore("[]", Position(0, 6), 3)
    assert resumed.sampler.left_out.stretches == ((0, 12, 18),)


def test_a_step_before_the_checkpoint_is_counted_from_the_start():
    resumed = skip("step 4", batch_size=6)
    assert resumed.restore("[]", Position(1, 6), 6)
    assert resumed.sampler.left_out.stretches == ((0, 24, 30),)


@pytest.mark.parametrize("text", ["", "window 3", "steps 3-5", "steps 2-4, window 3"])
def test_a_checkpoint_that_left_out_more_is_refused(text):
    saved = skip("steps 3-4, window 3").state()
    with pytest.raises(ValueError, match=r"left out steps 3-4, window 3, and data.skip is .*Begin it with"):
        skip(text).restore(saved, Position(0, 6), 3)


@pytest.mark.parametrize("text", ["3", "tokens 3", "windows", "windows 5-3", "windows -3", "window 3,", "windows 3;4"])
def test_what_names_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"skip takes windows, documents and steps, like .* Set data.skip."):
        GPTDataModule(skip=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("windows 28-30", "windows 28-30, and the source has 30, counted"), ("document 0", "no documents that are known")],
)
def test_numbers_that_are_not_there_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        skip(text)


@given(st.integers(1, 6), st.integers(1, 8), st.lists(st.integers(0, 40), min_size=6, max_size=6, unique=True))
@settings(deadline=None, max_examples=50)
def test_windows_with_a_token_are_those_that_have_it_as_input_or_target(context_size, stride, borders):
    a, b, c, d, start, stop = (*sorted(borders[:4]), *sorted(borders[4:]))
    windows = TokenWindows(np.arange(40), context_size, stride, [Range(a, b), Range(c, d)])
    by_hand = [
        window
        for window in range(len(windows))
        if any(start <= token < stop for ids in windows[window] for token in ids.tolist())
    ]
    assert windows.with_tokens(start, stop).tolist() == by_hand


def test_a_document_that_is_left_out_is_in_no_window():
    texts = [" ".join(f"{name}{n}" for n in range(20)) for name in "abcd"]
    data = GPTDataModule.from_text(
        texts, tokenizer="words", context_size=4, batch_size=1, val_fraction=0.0, skip="documents 1-2"
    )
    data.setup("fit")
    seen = data.tokenizer.decode(torch.cat([batch.input_ids.flatten() for batch in data.train_dataloader()]).tolist())
    assert {word[0] for word in seen.split()} == {"a", "d"}
    left = [word for word in seen.split() if word[0] != "<"]
    assert len(left) == 36, "but for the windows that document 1 begins and document 2 ends in"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"w{i:03}" for i in range(181)))
    return path


SKIP = "windows 3 20-22, steps 5-6"


@pytest.mark.parametrize("then", [{}, {"num_workers": 2}], ids=str)
def test_a_run_that_leaves_something_out_resumes_exactly(tmp_path: Path, text: Path, then: dict[str, Any]) -> None:
    whole, weights = train(tmp_path / "whole", text, skip=SKIP)
    before, _ = train(tmp_path, text, skip=SKIP, break_in=16, every_n_steps=7)
    after, resumed_weights = train(tmp_path, text, tmp_path / "version_0/checkpoints/last.ckpt", skip=SKIP, **then)
    assert before[:14] + after == whole
    assert torch.equal(resumed_weights, weights)
    assert {4 * 3, 4 * 20, 4 * 21, 4 * 22}.isdisjoint(flat(whole))


def test_a_run_resumes_before_a_spike_and_leaves_it_out(tmp_path: Path, text: Path) -> None:
    whole, _ = train(tmp_path / "whole", text)
    train(tmp_path, text, break_in=9, every_n_steps=4)
    after, _ = train(tmp_path, text, tmp_path / "version_0/checkpoints/last.ckpt", skip="steps 9-10", max_epochs=2)
    assert after == [whole[8], *whole[11:22]], "steps 9 and 10 were the last of the first epoch"


def test_the_windows_of_a_step_are_those_that_a_run_had_before_and_after_it_was_resumed_otherwise(tmp_path, text):
    last, trained = tmp_path / "version_0/checkpoints/last.ckpt", []
    runs: list[dict[str, Any]] = [
        {"skip": "window 1", "break_in": 9},
        {"skip": "window 1", "batch_size": 2, "break_in": 10},
        {"skip": "window 1, steps 22-23, window 7", "batch_size": 3, "max_epochs": 2},
    ]
    for number, options in enumerate(runs):
        batches, _ = train(tmp_path, text, last if number else None, every_n_steps=4, **options)
        trained = [*trained[: 8 * number], *batches]
    data = GPTDataModule(text, "words", context_size=4, batch_size=3, val_fraction=0.0, skip=runs[-1]["skip"])
    data.setup("fit")
    state = torch.load(last, weights_only=True)["GPTDataModule"]
    assert [segment[0] for segment in json.loads(state["segments"])] == [0, 8, 16]
    found = [data.windows_of_step(step, state=state).windows for step in range(len(trained))]
    assert [(4 * windows).tolist() for windows in found] == trained
    of_two = [data.windows_of_step(9, rank, 2, state).windows for rank in range(2)]
    assert np.concatenate(of_two).tolist() == found[9].tolist()
    with pytest.raises(ValueError, match="the batches of step 20 had 3 windows, of which 2 processes"):
        data.windows_of_step(20, 0, 2, state)


def test_steps_on_other_data_are_refused(tmp_path, text):
    data = GPTDataModule(text, "words", context_size=4, val_fraction=0.0)
    data.setup("fit")
    train(tmp_path, text, max_epochs=1)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)["GPTDataModule"]
    state |= {"segments": "[[4, 0, 0, 4, 0]]"}
    with pytest.raises(ValueError, match="at step 3 this training was on other data: it continued with this at step 4"):
        data.windows_of_step(3, state=state)
