import base64
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2_lit import bpe, gpt2_tokenizer
from gpt2_lit.bpe import GPT2_END_OF_TEXT, RANKS_FILE, token_array
from gpt2_lit.corpus import SHIPPED_TEXT

DATA = Path(__file__).parents[2] / "shared" / "data"

# Half of it where GPT-2's split has its rules: blanks, contractions, numbers, the end of text; and lone surrogates.
BLANKS = [" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u2028", "\x1c"]
WORDS = ["a", "The", "'s", "'ll", "12", "e\u0301", "\u4e2d", "\U0001f407", "'", "--", "!?", "<|endoftext|>", "<|endof"]
ODD = ["\ud83d", "\udc07", "\ufeff", "\x00"]
PARTS = st.sampled_from([*BLANKS, *WORDS, *ODD])
TEXTS = st.lists(st.one_of(PARTS, st.text(st.characters(), max_size=5)), max_size=30).map("".join)


def rank_of() -> dict[bytes, int]:
    lines = RANKS_FILE.read_text().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}


def test_known_words_have_the_ids_of_gpt2():
    assert gpt2_tokenizer().encode("unbelievability") == [403, 6667, 11203, 1799]
    assert gpt2_tokenizer().encode("<|endoftext|>", allowed_special="all") == [50256]
    assert gpt2_tokenizer().n_vocab == 50257


def test_every_id_stands_for_the_bytes_of_the_published_table():
    tokenizer, ranks = gpt2_tokenizer(), rank_of()
    assert sorted(ranks.values()) == list(range(50256))
    assert all(tokenizer.decode_single_token_bytes(rank) == token for token, rank in ranks.items())
    assert all(tokenizer.encode_single_token(token) == rank for token, rank in ranks.items())
    assert tokenizer.decode_single_token_bytes(GPT2_END_OF_TEXT) == b"<|endoftext|>"


@pytest.mark.skipif(not (DATA / "gpt2.tiktoken").exists(), reason="the table is not there to compare with")
def test_the_shipped_table_is_the_published_one():
    assert RANKS_FILE.read_bytes() == (DATA / "gpt2.tiktoken").read_bytes()


def textbook_encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding as OpenAI's encoder.py has it: merge the pair of the lowest rank, until none has one."""
    split = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    ids = []
    for word in split.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def test_ids_are_those_of_a_textbook_encoder_for_any_text():
    ranks = rank_of()

    # Up to U+07FF, where all versions of Unicode agree on what is a letter.
    @given(st.text(st.one_of(st.sampled_from(" \n'sdtlvem12"), st.characters(max_codepoint=0x7FF)), max_size=60))
    @settings(deadline=None, max_examples=200)
    def compare(text):
        assert gpt2_tokenizer().encode_ordinary(text) == textbook_encode(text, ranks)

    compare()


def test_the_tokenizer_is_loaded_once():
    assert gpt2_tokenizer() is gpt2_tokenizer()


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table[:400_000] + bytes([table[400_000] ^ 1]) + table[400_001:],
        lambda table: table[:-1],
        lambda table: table[: len(table) // 2],
        lambda table: b"",
    ],
    ids=["one bit flipped", "last byte gone", "half of it", "empty"],
)
def test_a_damaged_table_is_refused(tmp_path, damage):
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(damage(RANKS_FILE.read_bytes()))
    with pytest.raises(ValueError, match=r"gpt2\.tiktoken is damaged: its SHA-256 is [0-9a-f]{64}.*306cd27f"):
        gpt2_tokenizer(path)


def test_it_works_without_a_network_and_without_a_cache(tmp_path):
    nowhere = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
    caches = {"TIKTOKEN_CACHE_DIR": str(tmp_path), "DATA_GYM_CACHE_DIR": str(tmp_path)}
    code = "from gpt2_lit import gpt2_tokenizer; print(gpt2_tokenizer().encode('unbelievability'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **nowhere, **caches}, capture_output=True, text=True
    )
    assert done.stdout == "[403, 6667, 11203, 1799]\n", done.stderr
    assert not list(tmp_path.iterdir())


@given(TEXTS)
@example("")
@example("\ud83d\udc07 \ud83d")
@settings(deadline=None, max_examples=300)
def test_token_array_has_the_ids_of_encode_ordinary_for_any_text(text):
    ids = token_array(gpt2_tokenizer(), text)
    assert ids.tolist() == gpt2_tokenizer().encode_ordinary(text)
    assert ids.dtype == np.uint16


@given(TEXTS, st.integers(min_value=1, max_value=20))
@settings(deadline=None, max_examples=300)
def test_a_text_cut_into_pieces_has_the_ids_of_the_whole(text, size):
    pieces = list(bpe._pieces(text, size))
    assert "".join(pieces) == text
    encoded = [token_id for piece in pieces for token_id in gpt2_tokenizer().encode_ordinary(piece)]
    assert encoded == gpt2_tokenizer().encode_ordinary(text)


def test_pieces_end_at_the_first_blank_behind_their_size():
    assert list(bpe._pieces("ab cd  ef\n gh ij", 3)) == ["ab cd", "  ef\n gh", " ij"]


def test_a_text_of_several_pieces_has_the_ids_of_encode_ordinary():
    text = SHIPPED_TEXT.read_text(encoding="utf-8") * 60
    assert len(list(bpe._pieces(text))) == 4
    assert token_array(gpt2_tokenizer(), text).tolist() == gpt2_tokenizer().encode_ordinary(text)


def test_end_of_text_in_a_text_stays_text():
    ids = token_array(gpt2_tokenizer(), "one<|endoftext|>two").tolist()
    assert ids == [505, 27, 91, 437, 1659, 5239, 91, 29, 11545]
    assert gpt2_tokenizer().decode(ids) == "one<|endoftext|>two"


class LetterTokenizer:
    """The id of a letter is given."""

    def __init__(self, **id_of: int) -> None:
        self.id_of = id_of

    def encode(self, text: str) -> list[int]:
        return [self.id_of[letter] for letter in text]


@pytest.mark.parametrize(
    ("text", "ids", "dtype"),
    [
        ("", [], np.uint16),
        ("ab", [0, 65_535], np.uint16),
        ("abc", [0, 65_535, 65_536], np.uint32),
        ("ad", [0, 4_294_967_295], np.uint32),
    ],
)
def test_an_id_takes_two_bytes_where_all_ids_fit_and_four_elsewhere(text, ids, dtype):
    array = token_array(LetterTokenizer(a=0, b=65_535, c=65_536, d=4_294_967_295), text)
    assert array.tolist() == ids
    assert array.dtype == dtype


def test_a_negative_id_is_refused():
    with pytest.raises(ValueError, match="must be 0 or more, and the tokenizer gave -1"):
        token_array(LetterTokenizer(a=5, b=-1), "aba")


@pytest.mark.skipif(not (DATA / "Peter_Rabbit.txt").exists(), reason="the text is not committed")
def test_peter_rabbit_begins_with_the_known_ids():
    ids = token_array(gpt2_tokenizer(), (DATA / "Peter_Rabbit.txt").read_text(encoding="utf-8"))
    assert ids[:15].tolist() == [7454, 2402, 257, 640, 612, 547, 1440, 1310, 22502, 896, 11, 290, 511, 3891, 198]
    assert len(ids) == 1547
