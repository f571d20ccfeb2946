import math
import re
from html import unescape

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2_lit import gpt2_tokenizer
from gpt2_lit.data.windows import Batch, TokenWindows
from gpt2_lit.monitor.counts import (
    RUN_TOKENS,
    RUNS,
    Corpus,
    columns,
    labels_of_tokens,
    pieces,
    sample,
    spread,
    token_counts,
    token_label,
    unigram_perplexity,
    visible,
    windows_as_text,
)


@given(st.integers(1, 10**9), st.integers(1, 300))
def test_spread_takes_evenly_spaced_numbers_with_both_ends(num_things, at_most):
    numbers = spread(num_things, at_most)
    assert len(set(numbers)) == len(numbers) == min(num_things, at_most)
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    if len(numbers) > 1:
        assert numbers[-1] == num_things - 1
        gaps = np.diff(numbers)
        assert gaps.max() - gaps.min() <= 1


def test_of_a_large_corpus_a_bounded_part_is_counted_from_all_over_it():
    ids = (np.arange(10_000_000) // 1_000_000).astype(np.uint16)  # ten equal parts
    counts = token_counts(TokenWindows(ids, context_size=32, stride=32), vocab_size=12)
    assert counts.sum() == RUNS * RUN_TOKENS
    assert counts[:10].tolist() == pytest.approx(10 * [RUNS * RUN_TOKENS / 10], rel=0.01)
    assert counts[10:].tolist() == [0, 0]


@pytest.mark.parametrize("num_runs", [1.5, RUNS, RUNS + 0.25, 2 * RUNS])
def test_no_window_is_counted_twice_and_those_of_a_run_are_neighbours(num_runs):
    windows = TokenWindows(
        np.arange(int(num_runs * RUN_TOKENS) + 1), context_size=RUN_TOKENS // 4, stride=RUN_TOKENS // 4
    )
    firsts = [(batch.input_ids[:, 0] // windows.stride).tolist() for batch in sample(windows)]
    assert all(run == list(range(run[0], run[-1] + 1)) for run in firsts)
    numbers = [number for run in firsts for number in run]
    assert numbers == sorted(set(numbers))
    assert (numbers[0], numbers[-1]) == (0, len(windows) - 1)
    assert len(numbers) == min(len(windows), 4 * RUNS)


def test_an_id_beyond_the_vocabulary_is_told_not_counted():
    windows = TokenWindows(np.array([3, 9, 3]), context_size=2, stride=1)
    with pytest.raises(ValueError, match="the source holds the id 9, and the vocabulary ends at 8"):
        token_counts(windows, vocab_size=9)


@given(st.lists(st.integers(0, 4), max_size=20), st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_the_unigram_perplexity_is_that_of_add_one_shares(train, val):
    counts = [train.count(i) for i in range(5)]
    log_likelihood = sum(math.log((counts[i] + 1) / (len(train) + 5)) for i in val)
    perplexity = unigram_perplexity(np.array(counts), np.bincount(val, minlength=5))
    assert perplexity == pytest.approx(math.exp(-log_likelihood / len(val)))


def test_inputs_and_targets_are_counted_in_the_windows_as_training_has_them():
    windows = TokenWindows(np.array([1, 2, 3, 4, 0]), context_size=2, stride=1)
    assert token_counts(windows, 5).tolist() == [0, 1, 2, 2, 1]
    assert token_counts(windows, 5, "target_ids").tolist() == [1, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" the", "\u00b7the"),
        ("\n", r"\n"),
        ("\t", r"\t"),
        ("\u2028", r"\u2028"),
        ("\x00", r"\x00"),
        ("'", "'"),
        ('"', '"'),
        ("  ", "\u00b7\u00b7"),
        ("\u4e2d", "\u4e2d"),
        ("\ufffd", "id 7"),
        ("", "id 7"),
    ],
)
def test_a_label_makes_visible_what_the_token_is(text, label):
    assert token_label(lambda ids: text, 7) == label


def test_a_label_of_a_long_token_is_cut():
    assert token_label(lambda ids: "a" * 256, 7) == "a" * 256
    assert token_label(lambda ids: "a" * 10**6, 7) == "a" * 256 + "..."


HOSTILE = [
    *("<script>alert(1)</script>", "</code></pre><img src=x onerror=alert(1)>", "<!--", "-->", "<?php", "<div", "&lt;"),
    *("[x](javascript:alert(1))", "![i](http://host/x.png)", "[r]: http://host", "<https://host>", "`", "```", "~~~"),
    *("|", "a|b", "# a", "*b*", "\\", "\t", "\n", "\r", "\x1b[2J", "\x02wzxhzdk:0\x03", "\u202e", "\ud800"),
]


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")
def test_tensorboard_shows_a_hostile_corpus_as_the_text_that_it_is():
    from tensorboard.plugin_util import markdown_to_safe_html

    windows = TokenWindows(np.arange(len(HOSTILE)), context_size=len(HOSTILE) - 1, stride=1)
    text = windows_as_text(Corpus(lambda ids: "".join(HOSTILE[i] for i in ids), windows))
    html = markdown_to_safe_html(text)  # as TensorBoard's server does
    allowed = r"</?(p|strong|pre|code)>"
    assert "<" not in re.sub(allowed, "", html)
    shown = {line.strip() for line in unescape(re.sub(allowed, "", html)).splitlines()}
    assert {line.strip() for line in text.splitlines() if line.startswith("    ")} <= shown


def test_of_many_long_windows_five_are_shown_and_32_tokens_of_each():
    windows = TokenWindows(np.zeros(82, np.int64), context_size=40, stride=1)
    text = windows_as_text(Corpus(lambda ids: "x" * len(ids), windows))
    assert "5 of 42 training windows, the first 32 of 40 tokens of each" in text
    assert text.count("x") == 5 * 2 * 32, "inputs and targets"


def test_no_label_of_gpt2_breaks_a_line_or_a_column():
    for token_id in range(50257):
        label = token_label(gpt2_tokenizer().decode, token_id)
        assert label.split() == [label] or label == f"id {token_id}"


def test_text_made_visible_can_be_told_from_text_that_looks_like_it() -> None:
    assert visible("\n") == r"\n"
    assert visible(r"\n") == r"\\n"


class Padded:
    """Two rows: a prompt 1 2 with an answer 3 and an end of text 0, and one that is longer."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, rows: list[int]) -> Batch:
        inputs = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 2, 4, 4]])
        targets = torch.tensor([[-100, 3, 0, -100, -100], [-100, -100, 4, 4, 0]])
        return Batch(inputs[rows], targets[rows])


def test_padding_and_masked_targets_are_not_counted() -> None:
    assert token_counts(Padded(), 5).tolist() == [0, 2, 3, 1, 2]
    assert token_counts(Padded(), 5, "target_ids").tolist() == [2, 0, 0, 1, 2]


def test_below_a_masked_target_stands_nothing_in_the_windows_as_text() -> None:
    text = windows_as_text(Corpus(lambda ids: "abcde"[ids[0]], Padded()))
    assert "    input   b  c  d  a  a" in text
    assert "    target     d  a" in text


SCRIPTS = "\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002 \u4e2d\u6587 \U0001f600 ok "  # Japanese, Chinese, an emoji


def corpus_of_scripts(context_size: int = 64) -> Corpus:
    tokenizer = gpt2_tokenizer()
    tokens = np.array(tokenizer.encode(SCRIPTS * 20))
    return Corpus(tokenizer.decode, TokenWindows(tokens, context_size=context_size, stride=context_size))


@given(st.text())
@example(SCRIPTS)
@example("a\ufffdb\ufffd\ufffd")
def test_tokens_are_joined_until_they_are_text_and_none_is_lost(text: str) -> None:
    tokenizer = gpt2_tokenizer()
    token_ids = tokenizer.encode(text, disallowed_special=())
    found = pieces(tokenizer.decode, token_ids)
    assert [token_id for piece in found for token_id in piece] == token_ids
    if "\ufffd" not in text:
        assert "".join(tokenizer.decode(piece) for piece in found) == text


def test_windows_of_any_script_are_shown_by_characters_in_columns() -> None:
    text = windows_as_text(corpus_of_scripts())
    first = text[text.index("**window 0**") :].splitlines()[2:4]
    assert first[0].split()[1:9] == list("\u543e\u8f29\u306f\u732b\u3067\u3042\u308b\u3002")
    assert first[1].split()[1:9] == [*first[0].split()[2:10]], "each character has the next one below it"
    assert "\ufffd" not in text
    assert "\U0001f600" in text
    # A character of two columns and the two blanks after it, above and below.
    assert columns(first[0][: first[0].index("\u306f")]) == columns(first[1][: first[1].index("\u732b")])


def test_a_part_of_a_character_is_labelled_by_the_characters_that_the_corpus_has_it_in() -> None:
    corpus = corpus_of_scripts()
    encode = gpt2_tokenizer().encode
    cat, chinese = encode("\u732b"), encode("\u4e2d")
    labels = labels_of_tokens(corpus, [*cat, chinese[0], encode(" ok")[0], 50000])
    assert "part of \u732b" in labels[:3]
    assert all(label.startswith("part of ") and "\u732b" in label for label in labels[: len(cat)])
    assert labels[-2:] == ["\u00b7ok", token_label(corpus.decode, 50000)]


def test_a_part_of_a_character_that_the_corpus_does_not_have_is_its_id() -> None:
    windows = TokenWindows(np.array(gpt2_tokenizer().encode("one two three")), context_size=2, stride=1)
    assert labels_of_tokens(Corpus(gpt2_tokenizer().decode, windows), [163]) == ["id 163"]
