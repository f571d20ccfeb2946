import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lit import (
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    build_vocab,
    decode,
    encode,
    tokenize,
)

PETER_RABBIT = Path(__file__).parents[2] / "shared" / "data" / "Peter_Rabbit.txt"

# Half of the characters are such that a split may happen at them.
TEXTS = st.text(st.one_of(st.sampled_from(",.:;?_!\"()'- \n\r\t\x1c\u00a0\u2028"), st.characters()))


def textbook_tokenize(text: str) -> list[str]:
    pieces = re.split(r'([,.:;?_!"()\']|--|\s)', text)
    return [piece.strip() for piece in pieces if piece.strip()]


@given(TEXTS)
@settings(deadline=None, max_examples=300)
def test_words_are_those_of_the_textbook_for_any_text(text):
    assert tokenize(text) == textbook_tokenize(text)


@pytest.mark.parametrize("mark", [*",.:;?_!\"()'", "--"])
def test_a_punctuation_mark_splits_and_stays(mark):
    assert tokenize(f"one{mark}two") == ["one", mark, "two"]


@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\r\n", "\u00a0", "   \n "])
def test_a_blank_splits_and_is_dropped(blank):
    assert tokenize(f"{blank}one{blank}two{blank}") == ["one", "two"]


@pytest.mark.parametrize("word", ["wheel-barrow", "1/2", "a*b", "<unk>", "<|endoftext|>"])
def test_other_marks_stay_within_a_word(word):
    assert tokenize(word) == [word]


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_a_text_without_words_has_no_tokens(text):
    assert tokenize(text) == []
    assert build_vocab(text) == {}


def test_a_vocabulary_numbers_the_sorted_words_from_0():
    assert build_vocab("the hat, the Cat") == {",": 0, "Cat": 1, "hat": 2, "the": 3}


def test_special_words_stand_behind_the_sorted_ones_in_the_given_order():
    assert build_vocab("b a", special_words=["<unk>", "<end>"]) == {"a": 0, "b": 1, "<unk>": 2, "<end>": 3}


def test_a_special_word_that_the_text_has_is_numbered_once():
    assert build_vocab("b <unk> a", special_words=["<unk>"]) == {"<unk>": 0, "a": 1, "b": 2}


@given(TEXTS)
@settings(deadline=None, max_examples=100)
def test_decoded_ids_are_the_words_joined_by_blanks(text):
    vocab = build_vocab(text)
    assert sorted(vocab.values()) == list(range(len(set(tokenize(text)))))
    assert decode(vocab, encode(vocab, text)) == " ".join(tokenize(text))


@pytest.mark.parametrize("tokenizer_class", [SimpleTokenizerV1, SimpleTokenizerV2])
def test_a_tokenizer_encodes_and_decodes_as_the_functions_do(tokenizer_class):
    vocab = build_vocab("the cat, the hat", special_words=["<unk>"])
    tokenizer = tokenizer_class(vocab)
    assert tokenizer.encode("hat, cat") == encode(vocab, "hat, cat") == [2, 0, 1]
    assert tokenizer.vocab_inverse == {0: ",", 1: "cat", 2: "hat", 3: "the", 4: "<unk>"}
    assert tokenizer.decode([2, 0, 1]) == decode(vocab, [2, 0, 1]) == "hat , cat"
    assert tokenizer.n_vocab == 5


def test_n_vocab_counts_the_ids_up_to_the_largest_one():
    assert SimpleTokenizerV1({"a": 0, "b": 7}).n_vocab == 8
    assert SimpleTokenizerV1({}).n_vocab == 0


@pytest.mark.parametrize("encode_unknown", [lambda vocab, text: SimpleTokenizerV1(vocab).encode(text), encode])
def test_an_unknown_word_is_an_error_that_names_it_and_the_way_out(encode_unknown):
    with pytest.raises(KeyError, match=r"the word 'dog' is not in .* 2 words.*SimpleTokenizerV2"):
        encode_unknown(build_vocab("the cat"), "the dog")


@pytest.mark.parametrize("decode_unknown", [lambda vocab, ids: SimpleTokenizerV1(vocab).decode(ids), decode])
def test_an_unknown_id_is_an_error_that_names_it(decode_unknown):
    with pytest.raises(KeyError, match="the id 9 is not in the vocabulary of 2 words"):
        decode_unknown(build_vocab("the cat"), [0, 9])


def test_v2_maps_an_unknown_word_to_unk_and_decode_shows_it():
    tokenizer = SimpleTokenizerV2(build_vocab("the cat sat", special_words=["<unk>"]))
    assert tokenizer.encode("the dog sat") == [2, 3, 1]
    assert tokenizer.decode([2, 3, 1]) == "the <unk> sat"


def test_v2_refuses_a_vocabulary_without_unk_and_shows_how_to_make_one():
    with pytest.raises(ValueError, match=r"needs the word '<unk>'.*special_words=\['<unk>'\]"):
        SimpleTokenizerV2(build_vocab("the cat"))


@pytest.mark.parametrize("tokenizer_class", [SimpleTokenizerV1, SimpleTokenizerV2])
def test_a_dataset_takes_either_tokenizer(tokenizer_class):
    text = "a b, c d"
    tokenizer = tokenizer_class(build_vocab(text, special_words=["<unk>"]))
    dataset = GPTDatasetV1(text, tokenizer, context_size=2, stride=2)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in dataset] == [
        ([1, 2], [2, 0]),
        ([0, 3], [3, 4]),
    ]


@pytest.mark.skipif(not PETER_RABBIT.exists(), reason="the text is not committed")
def test_peter_rabbit_has_405_words():
    text = PETER_RABBIT.read_text(encoding="utf-8")
    vocab = build_vocab(text)
    assert len(vocab) == 405
    assert decode(vocab, encode(vocab, text)) == " ".join(textbook_tokenize(text))
