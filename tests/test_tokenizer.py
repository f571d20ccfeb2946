import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bpe import TEXTS

from gpt2_lit import SimpleTokenizerV1, SimpleTokenizerV2, gpt2_tokenizer
from gpt2_lit.text import tokenizer as tokenizer_module
from gpt2_lit.text.bpe import GPT2_FINGERPRINT
from gpt2_lit.text.tokenizer import make_tokenizer, token_array, tokenizer_hash

BYTES = {bytes([byte]): byte for byte in range(256)}
WORDS = SimpleTokenizerV2({"a": 0, "the": 1, "cat": 2, "<|endoftext|>": 3, "<unk>": 4})


def encoding(pat_str: str = r"\w+|\W", ranks: dict[bytes, int] = BYTES) -> tiktoken.Encoding:
    return tiktoken.Encoding("mine", pat_str=pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 60_000})


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


def test_words_are_those_of_all_texts():
    words = make_tokenizer("words", lambda: ["the hat, the", "cat"])
    assert words.load().vocab == {",": 0, "cat": 1, "hat": 2, "the": 3, "<|endoftext|>": 4, "<unk>": 5}
    assert (words.name, words.vocab_size, words.end_of_text) == ("words", 6, 4)
    assert words.fingerprint == tokenizer_hash(words.load())
    assert words.encode("the dog") == [3, 5]
    assert words.decode([3, 1]) == "the cat"


def test_an_encoding_of_tiktoken_is_taken_as_it_is():
    mine = make_tokenizer(encoding())
    assert (mine.name, mine.vocab_size, mine.end_of_text) == ("mine", 60_001, 60_000)
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


@given(text=TEXTS, size=st.integers(1, 20))
@settings(deadline=None, max_examples=100)
@pytest.mark.parametrize("tokenizer", [make_tokenizer("gpt2"), make_tokenizer(WORDS)])
def test_a_text_cut_where_the_tokenizer_allows_it_has_the_ids_of_the_whole(tokenizer, text, size):
    pieces, start = [], 0
    for end in range(1, len(text)):
        if end - start >= size and text[end] in tokenizer.cut_before and not text[end - 1].isspace():
            pieces.append(text[start:end])
            start = end
    pieces.append(text[start:])
    assert [token_id for piece in pieces for token_id in tokenizer.encode(piece)] == tokenizer.encode(text)


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
