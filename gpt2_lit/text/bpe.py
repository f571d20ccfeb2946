"""text -> GPT-2 ids: byte-pair encoding, offline and in bulk. The only file that knows tiktoken and gigatoken."""

import base64
import hashlib
import importlib.metadata
import re
import sys
import textwrap
import warnings
from binascii import a2b_base64
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from gpt2_lit.errors import FileError, InvalidValue

if TYPE_CHECKING:
    import tiktoken

RANKS_FILE = Path(__file__).parents[1] / "assets" / "gpt2.tiktoken"
# Source: tiktoken_ext/openai_public.py gives this sum for r50k_base; GPT-2's ranks are the same table.
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

GPT2_VOCAB_SIZE = 50257  # 256 bytes + 50,000 merges + <|endoftext|>
GPT2_END_OF_TEXT = 50256  # stands between two documents
GPT2_FINGERPRINT = "f93c0f8db173bb3d"  # tokenizer_hash of it, known without loading it

# Split patterns, and the characters in front of which they always part a text that has no whitespace before them: a
# cut there keeps all ids, as no pre-token has such a character after non-whitespace. A cut anywhere else, even after a
# blank line, can change them. Nothing parts "\r\n", as "\r" is whitespace itself.
# Source: tiktoken_ext/openai_public.py 0.11 to 0.14 (GPT-2's own is also that of r50k_base, p50k_base and p50k_edit).
_CUT_BEFORE = {
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""": " \r\n",
    # cl100k_base and o200k_base put line ends after punctuation into its pre-token.
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"""
    r"""\s++$|\s*[\r\n]|\s+(?!\S)|\s""": " ",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
    r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""": " ",
}
SAFE_CUT = re.compile(r"(?<=\S)[ \r\n]")  # GPT-2's
_PIECE_CHARS = 1 << 16  # characters encoded at a time: bounds the extra memory to about 1 MB

_GIGATOKEN_TESTED = "0.10."  # the versions whose ids the tests have compared; as in pyproject.toml
# gigatoken keeps every different word that it has met, about 100 bytes each, and never forgets one. A fresh one every
# 256 million characters costs a tenth of a second, and holds real text to about 100 MB, random letters to about 2 GB.
_GIGATOKEN_CHARS = 1 << 28


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
        raise InvalidValue(
            f"{ranks_file} is damaged: its SHA-256 is {checksum}, and GPT-2's merge ranks have {RANKS_SHA256}. "
            "Install gpt2_lit anew."
        )
    ranks = {}
    for line in table.splitlines():
        token, rank = line.split()
        ranks[a2b_base64(token)] = int(rank)  # five times as fast as base64.b64decode
    encoding = tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=GPT2_VOCAB_SIZE,
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: GPT2_END_OF_TEXT},
    )
    _RANKS_SHA256[encoding] = checksum
    return encoding


def encoding_names() -> list[str]:
    """The names of the encodings that tiktoken has."""
    import tiktoken

    return tiktoken.list_encoding_names()


def named_encoding(name: str) -> "tiktoken.Encoding":
    """One of them, which tiktoken downloads at first use."""
    import tiktoken

    try:
        return tiktoken.get_encoding(name)
    except Exception as error:  # of the network, of the disk, or of a damaged download
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160)
        raise FileError(
            f"tokenizer {name} cannot be loaded: tiktoken downloads it at first use, and that failed ({reason}). Load "
            "it on a machine with a network and copy its TIKTOKEN_CACHE_DIR here, or set data.tokenizer to a file."
        ) from None


def encoding_ids(encoding: "tiktoken.Encoding", text: str) -> np.ndarray:
    """All token ids of a text, shape (N,), uint16, or uint32 where an id is 65,536 or more; text stays text.

    GPT-2's ids are made piece by piece, by gigatoken where it is installed and agrees with tiktoken.

    Example:
        >>> encoding_ids(gpt2_tokenizer(), "Once upon a time")
        array([7454, 2402,  257,  640], dtype=uint16)
    """
    if not is_gpt2(encoding):
        return compact(_tiktoken_ids(encoding, text))
    # One array, as concatenating would hold the tokens twice. At most one a byte; what is not written takes no memory.
    token_ids = np.empty(len(text) * (1 if text.isascii() else 4), dtype=np.uint16)
    fast, end = _gigatoken(), 0
    for piece in _pieces(text):
        ids = fast.encode(piece) if fast else None
        ids = _tiktoken_ids(encoding, piece) if ids is None else ids
        start, end = end, end + len(ids)
        token_ids[start:end] = ids
    token_ids.resize(end, refcheck=False)
    return token_ids


def cut_before(encoding: "tiktoken.Encoding") -> str:
    """The characters in front of which a text may be cut, after a character that is no whitespace; none if unknown."""
    return _CUT_BEFORE.get(encoding._pat_str, "")


def ranks_sha256(encoding: "tiktoken.Encoding") -> str:
    """The sum of the merge ranks, as tiktoken writes them to a file. Computed once for each encoding."""
    if encoding not in _RANKS_SHA256:
        ranks = sorted((rank, token) for token, rank in encoding._mergeable_ranks.items())
        table = b"".join(b"%b %d\n" % (base64.b64encode(token), rank) for rank, token in ranks)
        _RANKS_SHA256[encoding] = hashlib.sha256(table).hexdigest()
    return _RANKS_SHA256[encoding]


_RANKS_SHA256: "WeakKeyDictionary[tiktoken.Encoding, str]" = WeakKeyDictionary()


def compact(ids: np.ndarray) -> np.ndarray:
    """The ids in two bytes each where all of them fit, and in four elsewhere."""
    if ids.size and ids.min() < 0:
        raise InvalidValue(f"a token id must be 0 or more, and the tokenizer gave {ids.min()}.")
    return ids.astype(np.uint16 if not ids.size or ids.max() <= np.iinfo(np.uint16).max else np.uint32)


@lru_cache(maxsize=8)  # asked for each document
def is_gpt2(encoding: "tiktoken.Encoding") -> bool:
    """Whether an encoding splits and merges as GPT-2's: ours, ``tiktoken.get_encoding("gpt2")``, or a copy."""
    from tiktoken_ext.openai_public import r50k_pat_str

    return encoding._pat_str == r50k_pat_str and ranks_sha256(encoding) == RANKS_SHA256


def _pieces(text: str, size: int = _PIECE_CHARS) -> Iterator[str]:
    """Cut a text, where GPT-2 allows it, into pieces of about ``size`` characters."""
    start = 0
    while start < len(text):
        cut = SAFE_CUT.search(text, start + size)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def _tiktoken_ids(encoding: "tiktoken.Encoding", text: str) -> np.ndarray:
    try:
        return _plain_tiktoken_ids(encoding, text)
    except BaseException as error:
        if not (isinstance(error, ValueError) or type(error).__name__ == "PanicException"):  # of Rust
            raise
        run = max(_LONG_RUN.finditer(text), key=lambda run: run.end() - run.start(), default=None)
        if run and "\n" in cut_before(encoding):
            return _ids_around_runs(encoding, text)
        where = f"a run of {run.end() - run.start():,} characters of whitespace at {run.start():,}" if run else "it"
        reason = textwrap.shorten(str(error), 120)
        raise InvalidValue(
            f"tiktoken cannot encode a text of {len(text):,} characters ({reason}), possibly for {where}. Break "
            "it into lines of words."
        ) from None


# tiktoken's regular expressions keep a note for each character of such a run, up to a million. Its \s is Unicode's
# White_Space; Python's has four more characters.
_LONG_RUN = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{10000,}")


def _ids_around_runs(encoding: "tiktoken.Encoding", text: str) -> np.ndarray:
    r"""The ids of a text with long runs of whitespace, for GPT-2's pattern.

    Its ``\s+(?!\S)`` makes one pre-token of a run but for its last character, which goes with what follows.
    """
    ids, start = [], 0
    for run in _LONG_RUN.finditer(text):
        end = run.end() - (run.end() < len(text))
        ids.append(_plain_tiktoken_ids(encoding, text[start : run.start()]))
        ids.append(np.asarray(encoding._encode_single_piece(run[0][: end - run.start()]), dtype=np.uint32))
        start = end
    return np.concatenate([*ids, _plain_tiktoken_ids(encoding, text[start:])])


def _plain_tiktoken_ids(encoding: "tiktoken.Encoding", text: str) -> np.ndarray:
    if _numpy_leaves_text_alone():
        with suppress(UnicodeEncodeError):  # a lone surrogate, which encode_ordinary mends
            return encoding.encode_to_numpy(text, disallowed_special=())
    return np.asarray(encoding.encode_ordinary(text), dtype=np.uint32)


@cache
def _numpy_leaves_text_alone() -> bool:
    """Whether the text <s> stays text; in tiktoken 0.9 and 0.10 encode_to_numpy made it the special token."""
    import tiktoken

    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=".", mergeable_ranks=ranks, special_tokens={"<s>": 256})
    return 256 not in encoding.encode_to_numpy("<s>", disallowed_special=())


@cache
def uses_gigatoken() -> bool:
    """Whether gigatoken encodes GPT-2's ids: it is installed, in a version that was tested."""
    try:
        version = importlib.metadata.version("gigatoken")
    except importlib.metadata.PackageNotFoundError:
        return False
    if not version.startswith(_GIGATOKEN_TESTED):
        warnings.warn(
            f"gigatoken {version} is not used, because gpt2_lit was tested with {_GIGATOKEN_TESTED}x: texts are "
            "encoded by tiktoken, to the same ids, but slower. pip install 'gpt2-lit[fast]' installs the one tested.",
            stacklevel=2,
        )
        return False
    return True


@cache
def _gigatoken() -> "_Gigatoken | None":
    """gigatoken, loaded once a process, or None."""
    return _Gigatoken() if uses_gigatoken() else None


class _Gigatoken:
    """GPT-2's encoding by gigatoken, for the texts to which it gives the ids of tiktoken.

    The two differ around a character that is a letter or a number to the one and a symbol to the other, because their
    tables are of different versions of Unicode. Neither says of which. So both are asked: a character is trusted when
    they have given the same ids to its neighbourhoods, and a text when all of its characters are.
    """

    # A symbol takes the apostrophe along and leaves the s alone; whitespace makes one token of two line ends; a letter
    # could merge with the a, a number with the 1.
    NEIGHBOURHOODS = "a{0}1{0}'s\n\n{0}\n"

    def __init__(self) -> None:
        self._trusted = np.zeros(sys.maxunicode + 1, dtype=bool)
        self._distrusted: set[int] = set()
        self._load()

    def _load(self) -> None:
        import gigatoken

        # Without its special tokens: the text <|endoftext|> shall stay text.
        self._tokenizer = gigatoken.Tokenizer.from_tiktoken(RANKS_FILE, pretokenizer="gpt2", special_tokens={})
        self._num_chars = 0

    def encode(self, text: str) -> np.ndarray | None:
        """The ids of a text, shape (N,), uint32; None where they could differ from tiktoken's."""
        if not (text.isascii() or self.trusts(text)):
            return None
        if self._num_chars > _GIGATOKEN_CHARS:
            self._load()
        self._num_chars += len(text)
        return self._tokenizer.encode(text)

    def trusts(self, text: str) -> bool:
        """Whether all characters of a text have been found to be encoded as by tiktoken."""
        try:
            codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        except UnicodeEncodeError:  # a lone surrogate, which tiktoken mends
            return False
        trusted = self._trusted.take(codes, mode="clip")  # none is out of bounds: clip only spares the check
        if trusted.all():
            return True
        strangers = set(codes[~trusted].tolist())
        if strangers.isdisjoint(self._distrusted):
            self._ask_about(list(strangers))
        return strangers.isdisjoint(self._distrusted)

    def _ask_about(self, codes: list[int]) -> None:
        if self._agrees_on("".join([self.NEIGHBOURHOODS.format(chr(code)) for code in codes])):
            self._trusted[codes] = True
        elif len(codes) == 1:
            self._distrusted.update(codes)
        else:
            half = len(codes) // 2
            self._ask_about(codes[:half])
            self._ask_about(codes[half:])

    def _agrees_on(self, text: str) -> bool:
        return np.array_equal(self._tokenizer.encode(text), _tiktoken_ids(gpt2_tokenizer(), text))
