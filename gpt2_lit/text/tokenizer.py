"""a name, a file or an object -> Tokenizer, the value that all others work with."""

import hashlib
import json
import logging
import os
import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from gpt2_lit.errors import InvalidType, InvalidValue, UserError
from gpt2_lit.text.bpe import (
    GPT2_END_OF_TEXT,
    GPT2_FINGERPRINT,
    GPT2_VOCAB_SIZE,
    compact,
    cut_before,
    encoding_ids,
    encoding_names,
    gpt2_tokenizer,
    is_gpt2,
    named_encoding,
    ranks_sha256,
    uses_gigatoken,
)
from gpt2_lit.text.tokenizer_json import (
    ENDS_OF_TEXT,
    TokenizerFile,
    is_gpt2_json,
    json_fingerprint,
    read_tokenizer_json,
)
from gpt2_lit.text.word_tokenizer import WORD_SPLIT, SimpleTokenizerV1, SimpleTokenizerV2, build_vocab, tokenize

END_OF_TEXT = "<|endoftext|>"
WHITESPACE = " \r\n"  # of Tokenizer.cut_before, for GPT-2 and words
_END_ATTRIBUTES = ("eot_token", "end_of_text", "eos_token_id")  # of tiktoken, of Tokenizer, of transformers

logger = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """What turns a text into token ids: tiktoken's encodings, our word tokenizers, your own."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and what others must know of it: a value that can be pickled. :func:`make_tokenizer` makes it.

    Example:
        >>> make_tokenizer("gpt2").encode_to_array("Once upon a time")
        array([7454, 2402,  257,  640], dtype=uint16)
    """

    name: str  # what the user calls it
    vocab_size: int  # V; every id is below it
    end_of_text: int  # the id after each document; no text has it
    fingerprint: str | None  # 16 hex digits, others for other ids; None: not known, so that nothing may be kept
    load: Callable[[], Any]  # gives what encodes and decodes, in any process
    cut_before: str = ""  # a text may be cut in front of these characters, after one that is no whitespace
    releases_gil: bool = False  # whether several threads encode faster than one

    @property
    def n_vocab(self) -> int:
        """``vocab_size``, as tiktoken names it."""
        return self.vocab_size

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.encode_to_array(text).tolist()

    def encode_to_array(self, text: str) -> np.ndarray:
        """The ids of a text, shape (N,), uint16, or uint32 where an id is 65,536 or more.

        Raises:
            InvalidValue: If the tokenizer gives an id that is not in its vocabulary, or ends the text by itself.
        """
        ids = token_array(self.load(), text)
        if (ids == self.end_of_text).any():
            ids = self._as_text(text, ids)
        if ids.size and ids.max() >= self.vocab_size:
            raise InvalidValue(
                f"the tokenizer {self.name} gave the id {ids.max()}, and its vocabulary has {self.vocab_size}. "
                "Mend its n_vocab."
            )
        return ids

    def decode(self, ids: Iterable[Any]) -> str:
        """The text of ids."""
        return self.load().decode([int(token_id) for token_id in ids])

    def decode_bytes(self, ids: Iterable[Any]) -> bytes:
        """The text of ids in UTF-8; exact also where a character is cut, if the tokenizer knows its tokens' bytes."""
        encoder, ids = self.load(), [int(token_id) for token_id in ids]
        return encoder.decode_bytes(ids) if hasattr(encoder, "decode_bytes") else encoder.decode(ids).encode()

    @cached_property
    def end_of_text_name(self) -> str:
        """How the end of text is written."""
        return self.decode([self.end_of_text])

    def _as_text(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The ids of a text in which the name of the end of text was taken for it."""
        encoder, name = self.load(), self.end_of_text_name
        if isinstance(encoder, SimpleTokenizerV2):  # a word, that no text has
            ids[ids == self.end_of_text] = encoder.vocab[encoder.UNKNOWN]
        elif len(name) > 1:  # cut in two it is no id
            inside = f"(?<={re.escape(name[:1])})(?={re.escape(name[1:])})"
            parts = re.split(inside, text, flags=re.IGNORECASE)
            ids = np.concatenate([token_array(encoder, part) for part in parts])
        if (ids == self.end_of_text).any():
            raise InvalidValue(
                f"the tokenizer {self.name} gave {self.end_of_text}, which is its end of text, for a text without one. "
                "Make an encode that adds no tokens of its own."
            )
        return ids


class _Loaded(NamedTuple):
    """Gives what is there already."""

    encoder: Any

    def __call__(self) -> Any:
        return self.encoder


def make_tokenizer(choice: Any, texts: Callable[[], Iterable[str]] | None = None) -> Tokenizer:
    """The one place that makes a tokenizer of what the user chose: a name, a path or an object.

    Args:
        choice: That of GPTDataModule; a Tokenizer is returned as it is.
        texts: Gives the texts of which ``words`` makes a vocabulary.

    Raises:
        UserError: If it is none of these, has no end of text, or cannot be loaded.

    Example:
        >>> make_tokenizer("words", lambda: ["the cat", "sat"]).encode("the cat sat")
        [2, 0, 1]
    """
    if isinstance(choice, Tokenizer):
        return choice
    if isinstance(choice, os.PathLike):
        return _of_file(os.fspath(choice))
    if not isinstance(choice, str):
        return _of_object(choice)
    if choice in ("gpt2", "r50k_base"):  # one and the same, which ships with the package
        return _gpt2(choice)
    if choice == "words":
        return _of_words(texts)
    return _of_name(choice)


def unknown_tokenizer(vocab_size: int) -> Tokenizer:
    """That of ids which are not from a tokenizer that is known: they are shown as numbers."""
    return Tokenizer("unknown tokenizer", vocab_size, end_of_text=-1, fingerprint=None, load=_Numbers)


class _Numbers:
    def encode(self, text: str) -> list[int]:
        raise InvalidValue("data.vocab_size is for .bin files, and the source is text. Leave it out.")

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))


def token_array(tokenizer: Encoder, text: str) -> np.ndarray:
    """The ids of a text, as :meth:`Tokenizer.encode_to_array` gives them, by anything with ``encode(text)``.

    Raises:
        InvalidValue: If the tokenizer gives a negative id.
    """
    import tiktoken

    if not isinstance(text, str):
        raise InvalidType(f"the text must be a str, got {reprlib.repr(text)}. Read a file by Path(name).read_text().")
    if isinstance(tokenizer, str) or not hasattr(tokenizer, "encode"):
        raise InvalidType(f"a tokenizer must have encode(text), got {tokenizer!r}. For one give gpt2_tokenizer().")
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode_to_array(text)
    if isinstance(tokenizer, tiktoken.Encoding):
        return encoding_ids(tokenizer, text)
    return compact(np.asarray(tokenizer.encode(text), dtype=np.int64))


def tokenizer_hash(tokenizer: Encoder) -> str:
    """The fingerprint of tiktoken's encodings and our word tokenizers: 16 hex digits that say what they do.

    What a tokenizer of another class does hangs on code that cannot be seen from here, so it has none.

    Raises:
        InvalidValue: If the tokenizer is of another class, also one that is derived from these.

    Example:
        >>> tokenizer_hash(gpt2_tokenizer())
        'f93c0f8db173bb3d'
    """
    import tiktoken

    if type(tokenizer) is tiktoken.Encoding:
        special_tokens = sorted(tokenizer._special_tokens.items())
        return _digest(["tiktoken", tokenizer._pat_str, special_tokens, ranks_sha256(tokenizer)])
    if type(tokenizer) is SimpleTokenizerV1 or type(tokenizer) is SimpleTokenizerV2:
        vocabulary = json.dumps(sorted(tokenizer.vocab.items())).encode()
        return _digest([type(tokenizer).__name__, WORD_SPLIT.pattern, hashlib.sha256(vocabulary).hexdigest()])
    raise InvalidValue(
        f"tokenizer_hash knows tiktoken.Encoding, SimpleTokenizerV1 and SimpleTokenizerV2, got a "
        f"{type(tokenizer).__qualname__}: nothing tells two of these apart safely, so keep their tokens apart."
    )


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _gpt2(name: str) -> Tokenizer:
    return Tokenizer(
        name,
        GPT2_VOCAB_SIZE,
        GPT2_END_OF_TEXT,
        GPT2_FINGERPRINT,
        load=gpt2_tokenizer,
        cut_before=WHITESPACE,
        releases_gil=not uses_gigatoken(),
    )


def _of_name(name: str) -> Tokenizer:
    """An encoding of tiktoken, or a tokenizer.json."""
    names = encoding_names()
    if name in names:
        return _of_object(named_encoding(name))
    if os.sep in name or name.endswith(".json") or os.path.exists(os.path.expanduser(name)):
        return _of_file(name)
    choices = ", ".join(dict.fromkeys(["gpt2", "words", *names]))
    raise InvalidValue(
        f"tokenizer must be one of {choices}, or the path of a tokenizer.json, got {name!r}. Set data.tokenizer."
    )


def _of_words(texts: Callable[[], Iterable[str]] | None) -> Tokenizer:
    if not texts:
        raise InvalidValue("tokenizer words are those of a text, and there is none. Give one, or another tokenizer.")
    words = {word for text in texts() for word in tokenize(text)}
    return _of_object(SimpleTokenizerV2(build_vocab("\n".join(words), [END_OF_TEXT, SimpleTokenizerV2.UNKNOWN])))


def _of_file(name: str) -> Tokenizer:
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(path):
        path = os.path.join(path, "tokenizer.json")
    content = read_tokenizer_json(path)
    file = TokenizerFile(path, json_fingerprint(content))
    try:
        if is_gpt2_json(content):
            return _gpt2(name)
        encoder = file(content)
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of a field that has another form
        raise InvalidValue(f"tokenizer: {path} is not a tokenizer.json: {error}. Set data.tokenizer.") from None
    return Tokenizer(
        name,
        encoder.n_vocab,
        _end_of_text(name, encoder.eot_token, f"one of {', '.join(ENDS_OF_TEXT)} among its added tokens"),
        file.fingerprint,
        load=file,
        cut_before=encoder.cut_before,
        releases_gil=True,
    )


def _of_object(encoder: Any) -> Tokenizer:
    import tiktoken

    kind = type(encoder)
    if kind is tiktoken.Encoding:
        return Tokenizer(
            encoder.name,
            encoder.n_vocab,
            _end_of_text(encoder.name, encoder._special_tokens.get(END_OF_TEXT), f"a special token {END_OF_TEXT}"),
            tokenizer_hash(encoder),
            load=_Loaded(encoder),
            cut_before=cut_before(encoder),
            releases_gil=not (is_gpt2(encoder) and uses_gigatoken()),
        )
    if kind is SimpleTokenizerV1 or kind is SimpleTokenizerV2:
        return Tokenizer(
            "words",
            encoder.n_vocab,
            _end_of_text("words", encoder.vocab.get(END_OF_TEXT), f"the word {END_OF_TEXT} in its vocabulary"),
            tokenizer_hash(encoder),
            load=_Loaded(encoder),
            cut_before=WHITESPACE,
        )
    name = kind.__name__
    if missing := [attribute for attribute in ("encode", "decode", "n_vocab") if not hasattr(encoder, attribute)]:
        raise InvalidValue(
            f"the tokenizer {name} lacks {', '.join(missing)}, which a tokenizer must have. Of one of Hugging Face's "
            "give the directory that save_pretrained wrote."
        )
    ends = (getattr(encoder, attribute, None) for attribute in _END_ATTRIBUTES)
    end_of_text = next((end for end in ends if end is not None), None)
    fingerprint = getattr(encoder, "fingerprint", None)
    if fingerprint is None:
        logger.warning(
            f"the tokenizer {name} has no fingerprint, so its tokens are not kept: each run encodes the texts. "
            "Give it an attribute fingerprint, a string that changes with its ids."
        )
    return Tokenizer(
        name,
        int(encoder.n_vocab),
        _end_of_text(name, end_of_text, "an attribute eot_token"),
        None if fingerprint is None else _digest([name, str(fingerprint)]),
        load=_Loaded(encoder),
    )


def _end_of_text(name: str, token_id: Any, what: str) -> int:
    if token_id is None:
        raise InvalidValue(
            f"the tokenizer {name} has no end of text, the id that stands after each document. Give it {what}."
        )
    return int(token_id)
