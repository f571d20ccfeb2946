import base64
import importlib.metadata
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2_lit import gpt2_tokenizer
from gpt2_lit.text import bpe
from gpt2_lit.text.bpe import GPT2_END_OF_TEXT, RANKS_FILE
from gpt2_lit.text.sources import SHIPPED_TEXT
from gpt2_lit.text.tokenizer import token_array

DATA = Path(__file__).parents[2] / "shared" / "data"

# Half of it where GPT-2's split has its rules: blanks, contractions, numbers, the end of text; lone surrogates; and
# letters and numbers that are new in Unicode 17, which one library knows and the other may not.
BLANKS = [" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u2028", "\x1c"]
WORDS = ["a", "The", "'s", "'ll", "12", "e\u0301", "\u4e2d", "\U0001f407", "'", "--", "!?", "<|endoftext|>", "<|endof"]
ODD = ["\ud83d", "\udc07", "\ufeff", "\x00"]
NEW = ["\u088f", "\u0c5c", "\ua7d2", "\U00010940", "\U00011de0", "\U00018d80", "\U000323b0", "\U00033479"]
PARTS = st.sampled_from([*BLANKS, *WORDS, *ODD, *NEW])
TEXTS = st.lists(st.one_of(PARTS, st.text(st.characters(), max_size=5)), max_size=30).map("".join)

ALL_CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
NEEDS_GIGATOKEN = pytest.mark.skipif(
    not importlib.util.find_spec("gigatoken"), reason="gigatoken is not installed: pip install 'gpt2-lit[fast]'"
)


@pytest.fixture(params=[pytest.param("gigatoken", marks=NEEDS_GIGATOKEN), "tiktoken"])
def library(request, monkeypatch):
    """Encodes with gigatoken, and as where it is absent."""
    if request.param == "tiktoken":
        monkeypatch.setattr(bpe, "_gigatoken", lambda: None)
    return request.param


@pytest.fixture(scope="module")
def fast():
    """gigatoken, asked about every character."""
    fast = bpe._Gigatoken()
    for start in range(0, len(ALL_CHARACTERS), 256):
        fast.trusts("".join(ALL_CHARACTERS[start : start + 256]))
    return fast


@pytest.fixture(scope="module")
def trusted(fast):
    """The characters with which gigatoken is trusted."""
    return [character for character in ALL_CHARACTERS if fast._trusted[ord(character)]]


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


@given(text=TEXTS)
@example(text="")
@example(text="\ud83d\udc07 \ud83d")
@example(text="\u088f's")
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_token_array_has_the_ids_of_encode_ordinary_for_any_text(library, text):
    ids = token_array(gpt2_tokenizer(), text)
    assert ids.tolist() == gpt2_tokenizer().encode_ordinary(text)
    assert ids.dtype == np.uint16


@NEEDS_GIGATOKEN
@given(text=TEXTS, shift=st.integers(0, 63))
@settings(deadline=None, max_examples=300)
def test_gigatoken_has_the_ids_of_tiktoken_wherever_its_blocks_of_64_bytes_begin(fast, text, shift):
    text = "x" * shift + "".join(character for character in text if fast.trusts(character)) * 5
    assert fast.encode(text).tolist() == gpt2_tokenizer().encode_ordinary(text)


@NEEDS_GIGATOKEN
def test_the_trusted_characters_are_those_that_both_libraries_put_into_the_same_class(trusted, tmp_path):
    import gigatoken

    # GPT-2's split knows letters, numbers, whitespace and all others. Here a character's last byte merges with an a, a
    # 1, a line end or a ! that the split leaves together with it, so that the ids tell its class.
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes([last, ord(behind)]) for last in range(0x80, 0xC0) for behind in "a1\n!"]
    path = tmp_path / "classes.tiktoken"
    path.write_bytes(b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    slow = tiktoken.Encoding("classes", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    quick = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2", special_tokens={})

    def classes_differ(characters):
        text = "".join([f"{character}a {character}1 {character}! {character}\n\n." for character in characters])
        return not np.array_equal(quick.encode(text), slow.encode_to_numpy(text))

    assert slow.encode("\u00e9a 1") == [0xC3, tokens.index(b"\xa9a"), ord(" "), ord("1")]
    assert not classes_differ(trusted)
    assert all(map(classes_differ, set(ALL_CHARACTERS) - set(trusted)))
    # 4,657 letters and numbers are new in Unicode 17.
    assert len(trusted) > len(ALL_CHARACTERS) - 10_000


@NEEDS_GIGATOKEN
@pytest.mark.parametrize("neighbourhood", ["{}", " {} ", "a{}e", "1{}2", "'{}'t", "\u4e2d{}\u4e2d"])
def test_every_trusted_character_has_tiktokens_ids_in_any_neighbourhood(fast, trusted, neighbourhood):
    text = "".join(map(neighbourhood.format, trusted))
    assert np.array_equal(fast.encode(text), gpt2_tokenizer().encode_to_numpy(text, disallowed_special=()))


@NEEDS_GIGATOKEN
def test_a_text_with_a_character_that_is_not_trusted_is_left_to_tiktoken(fast, trusted):
    for character in ["\ud83d", "\udc07", *(set(ALL_CHARACTERS) - set(trusted))]:
        text = f"one {character}'s"
        assert fast.encode(text) is None
        assert token_array(gpt2_tokenizer(), text).tolist() == gpt2_tokenizer().encode_ordinary(text)


@NEEDS_GIGATOKEN
def test_the_text_of_trusted_characters_is_left_to_gigatoken(monkeypatch):
    text = "Na\u00efve \u4e2d\u6587 \U0001f407"
    before = token_array(gpt2_tokenizer(), text)  # asks about the characters
    monkeypatch.delattr(bpe, "_tiktoken_ids")
    assert np.array_equal(token_array(gpt2_tokenizer(), text), before)


@NEEDS_GIGATOKEN
def test_gigatoken_is_loaded_anew_before_it_has_met_too_many_words(monkeypatch):
    monkeypatch.setattr(bpe, "_GIGATOKEN_CHARS", 10)
    fast = bpe._Gigatoken()
    loaded = []
    for _ in range(5):
        assert fast.encode("some six ").tolist() == gpt2_tokenizer().encode_ordinary("some six ")
        loaded.append(fast._tokenizer)
    assert [a is b for a, b in pairwise(loaded)] == [True, False, True, False]


def test_another_version_of_gigatoken_is_left_unused_and_says_so(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"gigatoken": "0.11.2"}.__getitem__)
    with pytest.warns(UserWarning, match=r"gigatoken 0\.11\.2 is not used, because gpt2_lit was tested with 0\.10\.x"):
        assert bpe.uses_gigatoken.__wrapped__() is False


def test_where_gigatoken_is_absent_nothing_is_said(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert bpe.uses_gigatoken.__wrapped__() is False


@given(TEXTS, st.integers(min_value=1, max_value=20))
@settings(deadline=None, max_examples=300)
def test_a_text_cut_into_pieces_has_the_ids_of_the_whole(text, size):
    pieces = list(bpe._pieces(text, size))
    assert "".join(pieces) == text
    encoded = [token_id for piece in pieces for token_id in gpt2_tokenizer().encode_ordinary(piece)]
    assert encoded == gpt2_tokenizer().encode_ordinary(text)


def test_pieces_end_at_the_first_safe_cut_behind_their_size():
    assert list(bpe._pieces("ab cd  ef\n\n gh ij", 3)) == ["ab cd", "  ef", "\n\n gh", " ij"]


def test_a_text_of_several_pieces_has_the_ids_of_encode_ordinary(library):
    text = SHIPPED_TEXT.read_text(encoding="utf-8") * 15
    assert len(list(bpe._pieces(text))) > 3
    assert token_array(gpt2_tokenizer(), text).tolist() == gpt2_tokenizer().encode_ordinary(text)


def test_end_of_text_in_a_text_stays_text(library):
    ids = token_array(gpt2_tokenizer(), "one<|endoftext|>two").tolist()
    assert ids == [505, 27, 91, 437, 1659, 5239, 91, 29, 11545]
    assert gpt2_tokenizer().decode(ids) == "one<|endoftext|>two"


def test_an_encodingis_gpt2s_by_what_it_does_and_not_by_its_name():
    copy = pickle.loads(pickle.dumps(gpt2_tokenizer()))
    assert copy is not gpt2_tokenizer()
    assert bpe.is_gpt2(copy)
    bytewise = tiktoken.Encoding(
        "gpt2", pat_str=r"(?s).+", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={"<s>": 70_000}
    )
    assert token_array(bytewise, "a <s>").tolist() == [97, 32, 60, 115, 62]


def test_a_tiktoken_whose_arrays_have_special_tokens_is_found_out_once_and_not_used(monkeypatch):
    numbers, texts = tiktoken.Encoding.encode_to_numpy, []

    def as_in_0_10(self, text, **_):
        texts.append(text)
        return numbers(self, text, allowed_special="all")

    monkeypatch.setattr(tiktoken.Encoding, "encode_to_numpy", as_in_0_10)
    monkeypatch.setattr(bpe, "_gigatoken", lambda: None)
    bpe._numpy_leaves_text_alone.cache_clear()
    try:
        for _ in range(2):
            assert 50256 not in token_array(gpt2_tokenizer(), "one<|endoftext|>two")
    finally:
        bpe._numpy_leaves_text_alone.cache_clear()
    assert texts == ["<s>"]


@pytest.mark.skipif(not (DATA / "Peter_Rabbit.txt").exists(), reason="the text is not committed")
def test_peter_rabbit_begins_with_the_known_ids():
    ids = token_array(gpt2_tokenizer(), (DATA / "Peter_Rabbit.txt").read_text(encoding="utf-8"))
    assert ids[:15].tolist() == [7454, 2402, 257, 640, 612, 547, 1440, 1310, 22502, 896, 11, 290, 511, 3891, 198]
    assert len(ids) == 1547


RUNS = st.lists(st.sampled_from([" ", "\n", "\t", "\xa0", "\x1c", "a", "1", ".", "'s", "\u3000"]), max_size=12).map(
    "".join
)


@given(st.lists(RUNS, max_size=5))
def test_ids_around_runs_of_whitespace_are_those_of_tiktoken(texts):
    text = "   ".join(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_LONG_RUN", re.compile(bpe._LONG_RUN.pattern.replace("10000", "3")))
        found = bpe._ids_around_runs(gpt2_tokenizer(), text)
    assert found.tolist() == gpt2_tokenizer().encode_ordinary(text)


@pytest.mark.parametrize("blank", [" ", "\n", "\t"])
def test_a_million_blanks_before_a_letter_are_encoded(monkeypatch, blank):
    monkeypatch.setattr(bpe, "_gigatoken", lambda: None)
    text = "begin" + 1_200_000 * blank + "end"
    short = "begin" + 48 * blank + "end"  # more of the same stand in the middle of the long one
    ids, few = (bpe.encoding_ids(gpt2_tokenizer(), each).tolist() for each in (text, short))
    assert gpt2_tokenizer().decode(ids) == text
    assert (ids[0], ids[-1]) == (few[0], few[-1])


def test_what_tiktoken_cannot_encode_is_an_error_that_names_the_place():
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {bytes([byte]): byte for byte in range(256)}
    other = tiktoken.Encoding("bytes", pat_str=r50k_pat_str + "|never", mergeable_ranks=ranks, special_tokens={})
    text = "begin" + 1_200_000 * " " + "end"
    with pytest.raises(ValueError, match=r"a run of 1,200,000 characters of whitespace at 5. Break it"):
        bpe.encoding_ids(other, text)


def test_a_long_run_at_the_end_of_a_text_is_one_pre_token():
    ids = bpe._ids_around_runs(gpt2_tokenizer(), "a" + 10_000 * "\n").tolist()
    assert ids == [64, *5_000 * [628]]  # 628 is two line ends; 4,999 of it and two single ones would be other ids
