import copy
import json
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bpe import TEXTS
from tiktoken_ext import openai_public
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2_lit import SimpleTokenizerV1, SimpleTokenizerV2, gpt2_tokenizer
from gpt2_lit.errors import FileError, InvalidValue, MissingFile, MissingPackage
from gpt2_lit.text import bpe
from gpt2_lit.text import tokenizer as tokenizer_module
from gpt2_lit.text.bpe import GPT2_FINGERPRINT
from gpt2_lit.text.sources import SHIPPED_TEXT
from gpt2_lit.text.tokenizer import make_tokenizer, token_array, tokenizer_hash

BYTES = {bytes([byte]): byte for byte in range(256)}
WORDS = SimpleTokenizerV2({"a": 0, "the": 1, "cat": 2, "<|endoftext|>": 3, "<unk>": 4})


def encoding(pat_str: str = r"\w+|\W", ranks: dict[bytes, int] = BYTES) -> tiktoken.Encoding:
    return tiktoken.Encoding("mine", pat_str=pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 70_000})


class Letters:
    """A tokenizer as somebody may have one: the number of each letter, and $ for the end of text."""

    n_vocab = 27
    eot_token = 26

    def encode(self, text: str) -> list[int]:
        return ["abcdefghijklmnopqrstuvwxyz$".index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(["abcdefghijklmnopqrstuvwxyz$"[token_id] for token_id in ids])


class NamedLetters(Letters):
    fingerprint = "letters, version 1"


def test_gpt2_is_known_without_being_loaded():
    code = "import sys; from gpt2_lit.text.tokenizer import make_tokenizer; print(make_tokenizer('gpt2')); "
    code += "print('tiktoken' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nFalse\n")


def test_gpt2_is_what_its_encoding_is():
    gpt2 = make_tokenizer("gpt2")
    given = make_tokenizer(gpt2_tokenizer())
    assert (gpt2.name, gpt2.n_vocab, gpt2.end_of_text, gpt2.fingerprint) == ("gpt2", 50257, 50256, "f93c0f8db173bb3d")
    for fact in ("name", "vocab_size", "end_of_text", "fingerprint", "cut_before", "releases_gil"):
        assert getattr(gpt2, fact) == getattr(given, fact)
    assert gpt2.encode("unbelievability") == given.encode("unbelievability") == [403, 6667, 11203, 1799]
    assert gpt2.decode(np.array([403, 6667], np.uint16)) == "unbel"
    assert make_tokenizer(gpt2) is gpt2


@pytest.mark.parametrize(("with_gigatoken", "releases_gil"), [(True, False), (False, True)])
def test_threads_pay_for_gpt2_where_tiktoken_encodes_it(monkeypatch, with_gigatoken, releases_gil):
    monkeypatch.setattr(tokenizer_module, "uses_gigatoken", lambda: with_gigatoken)
    assert make_tokenizer("gpt2").releases_gil is make_tokenizer(gpt2_tokenizer()).releases_gil is releases_gil
    assert make_tokenizer(encoding()).releases_gil
    assert not make_tokenizer("words", lambda: ["a"]).releases_gil, "Python's own code"


def test_words_are_those_of_all_texts():
    words = make_tokenizer("words", lambda: ["the hat, the", "cat"])
    assert words.load().vocab == {",": 0, "cat": 1, "hat": 2, "the": 3, "<|endoftext|>": 4, "<unk>": 5}
    assert (words.name, words.vocab_size, words.end_of_text, words.cut_before) == ("words", 6, 4, " \r\n")
    assert words.fingerprint == tokenizer_hash(words.load())
    assert words.encode("the dog") == [3, 5]
    assert words.decode([3, 1]) == "the cat"


def test_an_encoding_of_tiktoken_is_taken_as_it_is():
    mine = make_tokenizer(encoding())
    assert (mine.name, mine.vocab_size, mine.end_of_text) == ("mine", 70_001, 70_000)
    assert mine.fingerprint == tokenizer_hash(encoding())


def test_an_object_is_taken_with_what_it_says(caplog):
    letters = make_tokenizer(NamedLetters())
    assert (letters.name, letters.vocab_size, letters.end_of_text) == ("NamedLetters", 27, 26)
    assert letters.encode("cab") == [2, 0, 1]
    assert letters.decode([2, 0, 1]) == "cab"
    assert letters.cut_before == ""
    assert not caplog.records


def test_an_objects_fingerprint_is_that_of_its_class_and_what_it_says():
    class Others(NamedLetters):
        pass

    class Second(NamedLetters):
        fingerprint = "letters, version 2"

    Second.__name__ = "NamedLetters"
    fingerprints = [make_tokenizer(kind()).fingerprint for kind in (NamedLetters, NamedLetters, Others, Second)]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)


def test_an_object_without_a_fingerprint_has_none_and_says_so(caplog):
    assert make_tokenizer(Letters()).fingerprint is None
    [record] = caplog.records
    assert "Letters has no fingerprint, so its tokens are not kept" in record.message


@pytest.mark.parametrize("name", ["eot_token", "end_of_text", "eos_token_id"])
def test_an_objects_end_of_text_may_have_the_name_that_others_give_it(name):
    kind = type("Kind", (), {"n_vocab": 3, "encode": Letters.encode, "decode": Letters.decode, name: 2})
    assert make_tokenizer(kind()).end_of_text == 2


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            type("Endless", (Letters,), {"eot_token": None})(),
            "Endless has no end of text.*Give it an attribute eot_token",
        ),
        (SimpleTokenizerV1({"a": 0}), r"words has no end of text.*Give it the word <\|endoftext\|> in its vocabulary"),
        (
            tiktoken.Encoding("mine", pat_str=".", mergeable_ranks=BYTES, special_tokens={}),
            r"mine has no end of text.*Give it a special token <\|endoftext\|>",
        ),
        (object(), "the tokenizer object lacks encode, decode, n_vocab"),
        ("words", "words are those of a text, and there is none"),
        ("wordpiece", "tokenizer must be one of gpt2, words.*, got 'wordpiece'"),
    ],
)
def test_what_is_no_tokenizer_is_refused_with_the_way_out(choice, message):
    with pytest.raises(ValueError, match=message):
        make_tokenizer(choice)


class Named:
    """Takes the name of its end of text for it, as tokenizers with a vocabulary of whole words do."""

    n_vocab, eot_token, fingerprint = 6, 5, "1"

    def encode(self, text: str) -> list[int]:
        return [["a", "b", "c", "<", "|end|>", "<|end|>"].index(word) for word in re.findall(r"\w|<?\|end\|>|<", text)]

    def decode(self, ids: list[int]) -> str:
        return "".join(["a", "b", "c", "<", "|end|>", "<|end|>"][token_id] for token_id in ids)


class Ending(Letters):
    def encode(self, text: str) -> list[int]:
        return [*super().encode(text), 26]


@pytest.mark.parametrize(
    ("choice", "text", "ids"),
    [
        ("gpt2", "one<|endoftext|>two", [505, 27, 91, 437, 1659, 5239, 91, 29, 11545]),
        (encoding(), "a<|endoftext|>", list(b"a<|endoftext|>")),
        (Named(), "a<|end|>b", [0, 3, 4, 1]),
        (WORDS, "a <|endoftext|> cat <|endoftext|>", [0, 4, 2, 4]),
    ],
)
def test_the_end_of_text_in_a_text_stays_text(choice, text, ids):
    assert make_tokenizer(choice).encode(text) == ids


@pytest.mark.parametrize("kind", [Letters, Ending])
def test_a_tokenizer_that_cannot_leave_out_its_end_of_text_is_refused(kind):
    with pytest.raises(ValueError, match="gave 26, which is its end of text, for a text without one"):
        make_tokenizer(kind()).encode_to_array("a$b")


def test_an_id_outside_of_the_vocabulary_is_refused():
    small = type("Small", (Letters,), {"n_vocab": 2})()
    assert make_tokenizer(small).encode("ab") == [0, 1]
    with pytest.raises(ValueError, match=r"Small gave the id 2, and its vocabulary has 2\. Mend its n_vocab"):
        make_tokenizer(small).encode("abc")


# Source: tiktoken_ext/openai_public.py, cl100k_base() and o200k_base().
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"""
    r"""\s+(?!\S)|\s"""
)
O200K = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
GPT2_RANKS = gpt2_tokenizer()._mergeable_ranks
# Any two bytes within one pre-token merge, so that the ids tell where it was split.
PAIRS = BYTES | {bytes([a, b]): 256 * a + b + 256 for a in range(256) for b in range(256)}
CUTTABLE = {
    "gpt2": "gpt2",
    "words": WORDS,
    "a tokenizer.json": None,
    **{
        f"the split of {name}, {len(ranks)} ranks": encoding(split, ranks)
        for name, split in {"GPT-2": r50k_pat_str, "cl100k_base": CL100K, "o200k_base": O200K}.items()
        for ranks in (GPT2_RANKS, PAIRS)
    },
}


@given(
    text=st.lists(st.one_of(TEXTS, st.sampled_from([".\n", "/\n ", "\r\n", "\n.", "s!\n "]))).map("".join),
    size=st.integers(1, 20),
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("tokenizer", CUTTABLE, indirect=True)
def test_a_text_cut_where_the_tokenizer_allows_it_has_the_ids_of_the_whole(tokenizer, text, size):
    pieces, start = [], 0
    for end in range(1, len(text)):
        if end - start >= size and text[end] in tokenizer.cut_before and not text[end - 1].isspace():
            pieces.append(text[start:end])
            start = end
    pieces.append(text[start:])
    assert [token_id for piece in pieces for token_id in tokenizer.encode(piece)] == tokenizer.encode(text)


@pytest.mark.parametrize("split", [CL100K, O200K])
def test_a_line_end_after_punctuation_is_no_place_to_cut_for_newer_encodings(split):
    mine = make_tokenizer(encoding(split, PAIRS))
    assert mine.cut_before == " "
    assert mine.encode("a!\nb") != mine.encode("a!") + mine.encode("\nb")


def test_an_unknown_split_is_cut_nowhere():
    assert make_tokenizer(encoding(CL100K + "|x")).cut_before == ""


@pytest.mark.parametrize("choice", ["gpt2", WORDS, encoding(), NamedLetters()])
def test_a_pickled_tokenizer_is_the_same_in_another_process_and_in_threads(choice):
    tokenizer = make_tokenizer(choice)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    with ThreadPoolExecutor(4) as pool:
        texts = ["a", "the", "cat"] * 10
        for ids, text in zip(pool.map(copy.encode, texts), texts, strict=True):
            assert ids == tokenizer.encode(text)


def test_gpt2_is_pickled_by_its_name():
    assert len(pickle.dumps(make_tokenizer("gpt2"))) < 300
    assert pickle.loads(pickle.dumps(make_tokenizer("gpt2"))) == make_tokenizer("gpt2")


def test_a_tokenizer_does_not_change():
    with pytest.raises(AttributeError):
        make_tokenizer("gpt2").name = "gpt3"


def test_the_fingerprint_of_gpt2_is_that_of_its_encoding():
    assert tokenizer_hash(gpt2_tokenizer()) == GPT2_FINGERPRINT == "f93c0f8db173bb3d"


# Encodings of tiktoken by their names.


@pytest.fixture
def downloads(monkeypatch):
    """What tiktoken downloads is the 256 bytes."""
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: BYTES)


@pytest.mark.parametrize(
    ("name", "vocab_size", "end_of_text", "cut_before"),
    [
        ("cl100k_base", 100_277, 100_257, " "),
        ("o200k_base", 200_019, 199_999, " "),
        ("o200k_harmony", 201_088, 199_999, " "),
        ("p50k_edit", 50_284, 50_256, " \r\n"),
    ],
)
def test_the_name_of_an_encoding_is_enough(downloads, name, vocab_size, end_of_text, cut_before):
    tokenizer = make_tokenizer(name)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.end_of_text) == (name, vocab_size, end_of_text)
    assert tokenizer.cut_before == cut_before
    assert tokenizer.encode("<|endoftext|>") == list(b"<|endoftext|>")
    assert tokenizer.encode_to_array("a").dtype == np.uint16
    assert tokenizer.fingerprint == tokenizer_hash(tiktoken.get_encoding(name))


def test_r50k_base_is_gpt2_and_needs_no_download():
    assert replace(make_tokenizer("r50k_base"), name="gpt2") == make_tokenizer("gpt2")


def test_an_encoding_that_cannot_be_downloaded_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(
        FileError, match=r"tokenizer cl100k_base cannot be loaded.*ProxyError.*TIKTOKEN_CACHE_DIR"
    ) as caught:
        make_tokenizer("cl100k_base")
    assert len(str(caught.value)) < 500


def test_text_stays_text_with_a_tiktoken_whose_arrays_have_special_tokens(monkeypatch):
    numbers = tiktoken.Encoding.encode_to_numpy  # of 0.10: whatever is allowed, it takes special tokens for such
    monkeypatch.setattr(
        tiktoken.Encoding, "encode_to_numpy", lambda self, text, **_: numbers(self, text, allowed_special="all")
    )
    monkeypatch.setattr(bpe, "_numpy_leaves_text_alone", bpe._numpy_leaves_text_alone.__wrapped__)
    assert make_tokenizer(encoding()).encode("<|endoftext|>") == list(b"<|endoftext|>")


# tokenizer.json


@cache
def gpt2_json() -> dict[str, Any]:
    """GPT-2's own tokenizer.json, of the ranks."""
    letters = bytes_as_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in GPT2_RANKS.items()}
    merges = []
    for token, rank in sorted(GPT2_RANKS.items(), key=lambda item: item[1])[256:]:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            _, i = min((GPT2_RANKS.get(a + b, rank), i) for i, (a, b) in enumerate(pairwise(parts)))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        merges.append(" ".join("".join(letters[byte] for byte in part) for part in parts))
    end = {"id": 50256, "content": "<|endoftext|>", "special": True, "normalized": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "single_word": False, "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "dropout": None,
            "unk_token": "",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": {**vocab, "<|endoftext|>": 50256},
            "merges": merges,
        },
    }


def bytes_as_letters() -> dict[int, str]:
    """The letter that stands for each byte. Source: openai/gpt-2, src/encoder.py, bytes_to_unicode."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + n) for n, byte in enumerate(hidden)}}


def small_json(**changes: Any) -> dict[str, Any]:
    """As GPT-2's, with a vocabulary of bytes, "an" and "the"."""
    vocab = {letter: byte for byte, letter in bytes_as_letters().items()} | {"th": 256, "the": 257, "an": 258}
    model = {**gpt2_json()["model"], "vocab": {**vocab, "<|endoftext|>": 259}, "merges": ["t h", "th e", "a n"]}
    return {**gpt2_json(), "model": model, "added_tokens": [added("<|endoftext|>", 259)], **changes}


def pairs_json() -> dict[str, Any]:
    """Any two of some bytes within one pre-token merge."""
    letters = bytes_as_letters()
    pairs = [(letters[a], letters[b]) for a in b"a1!/'s \r\n" for b in b"a1!/'s \r\n"]
    vocab = {letter: byte for byte, letter in letters.items()}
    vocab |= {a + b: 256 + number for number, (a, b) in enumerate(pairs)}
    model = {**gpt2_json()["model"], "vocab": vocab, "merges": [f"{a} {b}" for a, b in pairs]}
    return small_json(model=model, added_tokens=[added("<|endoftext|>", len(vocab))])


def added(content: str, token_id: int, special: bool = True, **changes: Any) -> dict[str, Any]:
    return {**gpt2_json()["added_tokens"][0], "content": content, "id": token_id, "special": special, **changes}


@pytest.fixture
def save(tmp_path):
    def save(content: dict[str, Any], directory: str = "mine") -> Path:
        (tmp_path / directory).mkdir(exist_ok=True)
        (tmp_path / directory / "tokenizer.json").write_text(json.dumps(content))
        return tmp_path / directory

    return save


@pytest.fixture
def tokenizer(request, save):
    choice = CUTTABLE[request.param]
    return make_tokenizer(choice or save(pairs_json()))


def test_a_tokenizer_json_is_taken_with_what_it_says(save):
    directory = save(small_json(), "mine")
    mine = make_tokenizer(str(directory))
    assert (mine.name, mine.vocab_size, mine.end_of_text) == (str(directory), 260, 259)
    assert mine.encode("the an e") == [257, 32, 258, 32, 101]
    assert mine.decode(mine.encode("the \u4e2d\n")) == "the \u4e2d\n"
    assert mine.decode([257, 259]) == "the<|endoftext|>"
    assert mine.cut_before == " \r\n"
    assert mine.releases_gil
    for path in (directory, directory / "tokenizer.json"):
        assert make_tokenizer(path) == replace(mine, name=str(path))


def test_the_same_content_has_the_same_fingerprint_wherever_it_lies(save):
    here, there = save(small_json(), "here"), save(dict(reversed(small_json().items())), "there")
    other = small_json()
    other["model"]["merges"] = ["a n", "t h", "th e"]
    fingerprints = [make_tokenizer(path).fingerprint for path in (here, there, save(other, "other"))]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_in_a_text_stay_text(save, special):
    content = small_json(added_tokens=[added("<|endoftext|>", 259, special), added("[MASK]", 260)])
    mine = make_tokenizer(save(content))
    assert mine.encode("a<|endoftext|>[MASK]") == list(b"a<|endoftext|>[MASK]")
    assert make_tokenizer(save(small_json(added_tokens=[*content["added_tokens"], added("cat", 261, False)]))).encode(
        "a cat"
    ) == [97, 32, 261]


def test_the_end_of_text_stays_text_with_a_model_whose_vocabulary_has_it(save):
    vocab = [["<unk>", 0.0], ["</s>", 0.0], *([letter, -1.0] for letter in "a</s>")]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    mine = make_tokenizer(
        save(small_json(model=model, pre_tokenizer=None, decoder=None, added_tokens=[added("</s>", 1)]))
    )
    assert mine.end_of_text == 1
    assert mine.encode("a</s>a</s>") == [2, 3, 4, 5, 6, 2, 3, 4, 5, 6]


def test_nothing_is_added_cut_off_or_left_to_chance(save):
    content = small_json(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
        | {"pad_to_multiple_of": None},
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [259], "tokens": ["<|endoftext|>"]}},
        },
    )
    content["model"]["dropout"] = 0.9
    mine = make_tokenizer(save(content))
    assert mine.encode("the an " * 20) == [257, 32, 258, 32] * 20
    assert mine.encode("a") == [97]


def test_a_lone_surrogate_is_mended_as_by_tiktoken(save):
    assert make_tokenizer(save(small_json())).encode("a\ud83d\udc07 \ud83d") == list("a\U0001f407 \ufffd".encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"added_tokens": [added("<|endoftext|>", 259), added("a b", 260, False)]},
        {"added_tokens": [added("<|endoftext|>", 259), added("ab", 260, False, rstrip=True)]},
        {"added_tokens": [added("<|endoftext|>", 259), added("ab", 260, False, lstrip=True)]},
        {"added_tokens": [added("<|endoftext|>", 259), added("ab", 260, False, single_word=True)]},
    ],
)
def test_a_file_that_may_split_otherwise_than_gpt2_is_cut_nowhere(save, changes):
    assert make_tokenizer(save(small_json(**changes))).cut_before == ""


def test_gpt2s_own_file_is_encoded_as_gpt2(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # which it does not take
    directory = save(gpt2_json())
    assert replace(make_tokenizer(directory), name="gpt2") == make_tokenizer("gpt2")
    as_pairs = {
        **gpt2_json()["model"],
        "type": "BPE",
        "merges": [pair.split() for pair in gpt2_json()["model"]["merges"]],
    }
    assert replace(make_tokenizer(save({**gpt2_json(), "model": as_pairs})), name="gpt2") == make_tokenizer("gpt2")


def test_gpt2s_own_file_has_the_ids_of_gpt2(tmp_path):
    reference = tokenizers.Tokenizer.from_str(json.dumps(gpt2_json()))
    reference.encode_special_tokens = True
    text = SHIPPED_TEXT.read_text(encoding="utf-8") + "<|endoftext|>  1234's \u4e2d\u6587\n\n \t"
    assert reference.encode(text).ids == make_tokenizer("gpt2").encode(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["merges"].reverse(),
        lambda content: content["model"]["vocab"].update({"a": 65, "b": 64}),
        lambda content: content["model"].update(ignore_merges=True),
        lambda content: content["added_tokens"].append(added("<pad>", 50257)),
        lambda content: content.update(normalizer={"type": "Lowercase"}),
        lambda content: content["pre_tokenizer"].update(add_prefix_space=True),
    ],
)
def test_a_file_that_differs_from_gpt2s_is_not_taken_for_it(save, change):
    content = copy.deepcopy(gpt2_json())
    change(content)
    assert make_tokenizer(save(content)).fingerprint != GPT2_FINGERPRINT


def test_a_tokenizer_json_is_pickled_by_its_path_and_refused_when_it_has_changed(save):
    directory = save(small_json())
    pickled = pickle.dumps(make_tokenizer(directory))
    assert len(pickled) < 500
    code = f"import pickle; print(pickle.loads({pickled!r}).encode('the an'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[257, 32, 258]\n"
    save(small_json(normalizer={"type": "Lowercase"}))
    done = subprocess.run(command, capture_output=True, text=True)
    assert "tokenizer.json has changed since it was first read. Start again." in done.stderr


def test_the_end_of_text_is_the_first_known_name_of_the_added_tokens(save):
    tokens = [added(name, 260 + number) for number, name in enumerate(["[SEP]", "</s>", "<eos>"])]
    assert make_tokenizer(save(small_json(added_tokens=tokens))).end_of_text == 261
    assert make_tokenizer(save(small_json(added_tokens=[added("[SEP]", 260)]))).end_of_text == 260


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, MissingFile, r"there is no file .*tokenizer\.json. save_pretrained .* writes one"),
        ("{", InvalidValue, r"tokenizer\.json is not a tokenizer\.json: Expecting"),
        ("[]", InvalidValue, "is not a tokenizer.json: it has no model"),
        ('{"model": {"type": "Odd"}}', InvalidValue, r"tokenizers [\d.]+ cannot read .*pip install -U tokenizers"),
        (
            json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}),
            InvalidValue,
            r"has no end of text.*Give it one of <\|endoftext\|>, </s>, .* among its added tokens",
        ),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused_with_the_way_out(tmp_path, content, kind, message):
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(kind, match=message):
        make_tokenizer(tmp_path)


def test_without_the_library_a_tokenizer_json_says_what_to_install(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'gpt2-lit\[tokenizers\]'"):
        make_tokenizer(save(small_json(version="1.1")))


def test_a_name_that_is_a_path_is_taken_for_a_file():
    for name in ("nowhere/mine", "mine.json"):
        with pytest.raises(MissingFile, match=f"there is no file .*{name}"):
            make_tokenizer(name)


def test_a_hash_is_the_same_for_an_equal_tokenizer_in_another_process():
    code = """
from gpt2_lit import SimpleTokenizerV2, gpt2_tokenizer
from gpt2_lit.text.tokenizer import tokenizer_hash
print(tokenizer_hash(gpt2_tokenizer()), tokenizer_hash(SimpleTokenizerV2({"<unk>": 1, "caf\u00e9": 0})))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "12"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    words = SimpleTokenizerV2({"caf\u00e9": 0, "<unk>": 1})
    assert done.stdout.split() == [tokenizer_hash(gpt2_tokenizer()), tokenizer_hash(words)]
    # A copy does not know that its table is the one that was checked.
    assert tokenizer_hash(pickle.loads(pickle.dumps(gpt2_tokenizer()))) == tokenizer_hash(gpt2_tokenizer())


def test_tokenizers_that_do_other_things_have_other_hashes():
    def encoding(pat_str=r"\w+|\W", swapped=False, special_tokens=()):
        ranks = {bytes([byte]): byte for byte in range(256)}
        if swapped:
            ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
        return tiktoken.Encoding(
            "any", pat_str=pat_str, mergeable_ranks=ranks, special_tokens={word: 256 for word in special_tokens}
        )

    tokenizers = [
        gpt2_tokenizer(),
        encoding(),
        encoding(pat_str=r"\w+|\W+"),
        encoding(swapped=True),
        encoding(special_tokens=["<s>"]),
        encoding(special_tokens=["</s>"]),
        SimpleTokenizerV1({"a": 0, "<unk>": 1}),
        SimpleTokenizerV2({"a": 0, "<unk>": 1}),
        SimpleTokenizerV2({"a": 1, "<unk>": 0}),
        SimpleTokenizerV2({"b": 0, "<unk>": 1}),
    ]
    assert len({tokenizer_hash(tokenizer) for tokenizer in tokenizers}) == len(tokenizers)
    assert tokenizer_hash(encoding()) == tokenizer_hash(encoding())


def test_a_hash_does_not_depend_on_the_order_of_the_special_tokens():
    ranks = {bytes([byte]): byte for byte in range(256)}
    special_tokens = {"<s>": 256, "</s>": 257}
    hashes = {
        tokenizer_hash(tiktoken.Encoding("any", pat_str=".", mergeable_ranks=ranks, special_tokens=dict(items)))
        for items in (special_tokens.items(), reversed(special_tokens.items()))
    }
    assert len(hashes) == 1


def test_a_tokenizer_of_another_class_has_no_hash():
    class Lower(SimpleTokenizerV1):
        def encode(self, text):
            return super().encode(text.lower())

    for tokenizer in [Lower({"a": 0}), LetterTokenizer(a=0)]:
        with pytest.raises(ValueError, match=r"tokenizer_hash knows .*, got a .*(Lower|LetterTokenizer)"):
            tokenizer_hash(tokenizer)


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


@pytest.mark.parametrize(
    "content",
    [
        '{"model": 5}',
        '{"model": {"type": "BPE", "vocab": 5, "merges": 3}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [5]}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [{"id": 50256}]}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        "[" * 100_000,
    ],
)
def test_a_tokenizer_json_of_another_form_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidValue, match=r"tokenizer: .*tokenizer\.json"):
        make_tokenizer(str(tmp_path / "tokenizer.json"))
