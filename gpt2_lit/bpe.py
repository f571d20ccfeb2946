"""text -> GPT-2 ids: byte-pair encoding, offline and in bulk. The only file that knows tiktoken."""

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import tiktoken

RANKS_FILE = Path(__file__).parent / "assets" / "gpt2.tiktoken"
# Source: tiktoken_ext/openai_public.py gives this sum for r50k_base; GPT-2's ranks are the same table.
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

GPT2_VOCAB_SIZE = 50257  # 256 bytes + 50,000 merges + <|endoftext|>
GPT2_END_OF_TEXT = 50256  # stands between two documents

# GPT-2's split pattern has no piece with whitespace behind non-whitespace, so a text that is cut in front of such a
# blank has the ids of the whole. A cut anywhere else, even at a blank line, can change them.
SAFE_CUT = re.compile(r"(?<=\S) ")
_PIECE_CHARS = 1 << 18  # characters encoded at a time: bounds the extra memory to about 1 MB


@runtime_checkable
class Encoder(Protocol):
    """What turns a text into token ids: tiktoken's encodings, our word tokenizers, your own."""

    def encode(self, text: str) -> list[int]: ...


@cache
def gpt2_tokenizer(ranks_file: Path = RANKS_FILE) -> "tiktoken.Encoding":
    """GPT-2's tokenizer, equal to ``tiktoken.get_encoding("gpt2")``, without a network; loaded once a process.

    Raises:
        ValueError: If the file of merge ranks is not, byte for byte, the one that OpenAI published.

    Example:
        >>> gpt2_tokenizer().encode("unbelievability")
        [403, 6667, 11203, 1799]
    """
    import tiktoken
    from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

    table = ranks_file.read_bytes()
    checksum = hashlib.sha256(table).hexdigest()
    if checksum != RANKS_SHA256:
        raise ValueError(
            f"{ranks_file} is damaged: its SHA-256 is {checksum}, and GPT-2's merge ranks have {RANKS_SHA256}. "
            "Install gpt2_lit anew."
        )
    ranks = {}
    for line in table.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=GPT2_VOCAB_SIZE,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: GPT2_END_OF_TEXT},
    )


def token_array(tokenizer: Encoder, text: str) -> np.ndarray:
    """All token ids of a text in one array, two bytes each where the ids allow it.

    The text is plain text: ``<|endoftext|>`` in it becomes the seven tokens of its characters, so that no text can
    inject the end of a document. GPT-2's encoding goes through the text in pieces and makes no Python integers.

    Args:
        tokenizer: Anything with ``encode(text) -> list[int]``.
        text: The text.

    Returns:
        Ids in reading order; shape (N,), uint16, or uint32 where an id is 65,536 or more.

    Raises:
        ValueError: If the tokenizer gives a negative id.

    Example:
        >>> token_array(gpt2_tokenizer(), "Once upon a time")
        array([7454, 2402,  257,  640], dtype=uint16)
    """
    import tiktoken

    if not isinstance(tokenizer, tiktoken.Encoding):
        return _compact(np.asarray(tokenizer.encode(text), dtype=np.int64))
    pieces = _pieces(text) if tokenizer.name == "gpt2" else iter([text])
    arrays = [_compact(_encode_piece(tokenizer, piece)) for piece in pieces]
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint16)


def _pieces(text: str, size: int = _PIECE_CHARS) -> Iterator[str]:
    """Cut a text, where GPT-2 allows it, into pieces of about ``size`` characters."""
    start = 0
    while start < len(text):
        cut = SAFE_CUT.search(text, start + size)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def _encode_piece(encoding: "tiktoken.Encoding", text: str) -> np.ndarray:
    try:
        return encoding.encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:  # a lone surrogate: encode_ordinary mends it, encode_to_numpy does not
        return np.asarray(encoding.encode_ordinary(text))


def _compact(ids: np.ndarray) -> np.ndarray:
    if ids.size and ids.min() < 0:
        raise ValueError(f"a token id must be 0 or more, and the tokenizer gave {ids.min()}.")
    return ids.astype(np.uint16 if not ids.size or ids.max() <= np.iinfo(np.uint16).max else np.uint32)
