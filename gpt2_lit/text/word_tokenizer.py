"""text -> words -> ids: the simplest tokenizer, which knows only the words it has seen."""

import re
from collections.abc import Iterable, Mapping

from gpt2_lit.errors import InvalidValue

# A split keeps what a group catches: each punctuation mark, the dash `--`, each whitespace character.
WORD_SPLIT = re.compile(r"""([,.:;?_!"()']|--|\s)""")


def tokenize(text: str) -> list[str]:
    """Cut a text into words and punctuation marks, without the whitespace.

    Example:
        >>> tokenize("Peter--who was naughty--ran, didn't he?")
        ['Peter', '--', 'who', 'was', 'naughty', '--', 'ran', ',', 'didn', "'", 't', 'he', '?']
    """
    return [word for word in WORD_SPLIT.split(text) if word and not word.isspace()]


def build_vocab(text: str, special_words: Iterable[str] = ()) -> dict[str, int]:
    """Number the different words of a text from 0, in sorted order.

    Args:
        text: The text that the vocabulary shall know.
        special_words: Words to add after the sorted ones, such as ``"<unk>"``.

    Example:
        >>> build_vocab("the cat, the hat", special_words=["<unk>"])
        {',': 0, 'cat': 1, 'hat': 2, 'the': 3, '<unk>': 4}
    """
    words = sorted(set(tokenize(text)))
    words += [word for word in special_words if word not in words]
    return {word: token_id for token_id, word in enumerate(words)}


def encode(vocab: Mapping[str, int], text: str) -> list[int]:
    """The id of each word of a text.

    Raises:
        KeyError: If a word is not in the vocabulary; it names the word.

    Example:
        >>> encode({"cat": 0, "the": 1}, "the cat")
        [1, 0]
    """
    try:
        return [vocab[word] for word in tokenize(text)]
    except KeyError as error:
        raise KeyError(
            f"the word {error.args[0]!r} is not in the vocabulary of {len(vocab)} words. "
            "SimpleTokenizerV2 maps unknown words to '<unk>'."
        ) from None


def decode(vocab: Mapping[str, int], ids: Iterable[int]) -> str:
    """The words of the ids, joined by spaces.

    Raises:
        KeyError: If an id is not in the vocabulary; it names the id.

    Example:
        >>> decode({"cat": 0, "the": 1}, [1, 0])
        'the cat'
    """
    return _join(_words_by_id(vocab), ids)


class SimpleTokenizerV1:
    """Words to ids and back; an unknown word is an error.

    Args:
        vocab: The id of each word, as from :func:`build_vocab`.

    Example:
        >>> tokenizer = SimpleTokenizerV1(build_vocab("the cat sat"))
        >>> tokenizer.encode("the cat")
        [2, 0]
        >>> tokenizer.decode([2, 0])
        'the cat'
    """

    def __init__(self, vocab: Mapping[str, int]) -> None:
        self.vocab = dict(vocab)
        self._word_of = _words_by_id(self.vocab)

    @property
    def n_vocab(self) -> int:
        """The number of ids that an embedding table needs, named as in tiktoken."""
        return max(self._word_of, default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The id of each word of ``text``; a ``KeyError`` names the first unknown one."""
        return encode(self.vocab, text)

    def decode(self, ids: Iterable[int]) -> str:
        """The words of ``ids``, joined by spaces."""
        return _join(self._word_of, ids)


class SimpleTokenizerV2(SimpleTokenizerV1):
    """Words to ids and back; every unknown word becomes ``<unk>``.

    Args:
        vocab: The id of each word, ``<unk>`` among them:
            ``build_vocab(text, special_words=["<unk>"])``.

    Raises:
        ValueError: If the vocabulary has no ``<unk>``.

    Example:
        >>> tokenizer = SimpleTokenizerV2(build_vocab("the cat sat", special_words=["<unk>"]))
        >>> tokenizer.decode(tokenizer.encode("the dog sat"))
        'the <unk> sat'
    """

    UNKNOWN = "<unk>"

    def __init__(self, vocab: Mapping[str, int]) -> None:
        if self.UNKNOWN not in vocab:
            raise InvalidValue(
                f"SimpleTokenizerV2 needs the word {self.UNKNOWN!r} in its vocabulary, and this one of {len(vocab)} "
                f"words has none. Make it with build_vocab(text, special_words=[{self.UNKNOWN!r}])."
            )
        super().__init__(vocab)

    def encode(self, text: str) -> list[int]:
        """The id of each word of ``text``, that of ``<unk>`` where the word is unknown."""
        unknown = self.vocab[self.UNKNOWN]
        return [self.vocab.get(word, unknown) for word in tokenize(text)]


def _words_by_id(vocab: Mapping[str, int]) -> dict[int, str]:
    return {token_id: word for word, token_id in vocab.items()}


def _join(word_of: Mapping[int, str], ids: Iterable[int]) -> str:
    try:
        return " ".join([word_of[int(token_id)] for token_id in ids])
    except KeyError as error:
        raise KeyError(f"the id {error.args[0]} is not in the vocabulary of {len(word_of)} words.") from None
