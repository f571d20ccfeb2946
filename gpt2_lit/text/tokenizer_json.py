"""tokenizer.json -> ids, as Hugging Face's tokenizers library gives them."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt2_lit.errors import FileError, InvalidValue, MissingFile, MissingPackage
from gpt2_lit.text.bpe import GPT2_END_OF_TEXT

# The names of the token that ends a text, in the order in which they are looked for.
ENDS_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<|im_end|>", "[SEP]")

# Source: tiktoken_ext/openai_public.py, gpt2(): the sums of OpenAI's vocab.bpe and encoder.json.
_GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_GPT2_VOCAB_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


class TokenizerFile(NamedTuple):
    """A tokenizer.json, and the fingerprint of what was in it. Called, it gives the encoder; pickled, it is small."""

    path: str
    fingerprint: str

    def __call__(self, content: dict[str, Any] | None = None) -> "FileEncoder":
        if self not in _ENCODERS:
            if content is None:  # another process, or a later call
                content = read_tokenizer_json(self.path)
                if json_fingerprint(content) != self.fingerprint:
                    raise FileError(f"{self.path} has changed since it was first read. Start again.")
            _ENCODERS[self] = FileEncoder(self.path, content)
        return _ENCODERS[self]


_ENCODERS: dict[TokenizerFile, "FileEncoder"] = {}


def read_tokenizer_json(path: str) -> dict[str, Any]:
    """What is in a file.

    Raises:
        InvalidValue: If it is no tokenizer.json.
        FileError: If it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict) or "model" not in content:
            raise ValueError("it has no model")
    except FileNotFoundError:
        raise MissingFile(
            f"tokenizer: there is no file {path}. save_pretrained of a fast tokenizer writes one. Set data.tokenizer."
        ) from None
    except OSError as error:
        raise FileError(f"tokenizer: {path} cannot be read: {error.strerror}. Check its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"tokenizer: {path} is not a tokenizer.json: {error}. Set data.tokenizer.") from None
    return content


def json_fingerprint(content: dict[str, Any]) -> str:
    """16 hex digits, the same for the same content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class FileEncoder:
    """Encodes and decodes as a tokenizer.json says: nothing is added, and special tokens in a text stay text."""

    def __init__(self, path: str, content: dict[str, Any]) -> None:
        try:
            import tokenizers
        except ImportError:
            raise MissingPackage(
                f"tokenizer: to use {path} takes tokenizers, which is not installed. "
                "Install it by: pip install 'gpt2-lit[tokenizers]'"
            ) from None

        names = {token["content"] for token in content.get("added_tokens") or []}
        end_of_text = next((name for name in ENDS_OF_TEXT if name in names), None)
        model = {**content["model"], "dropout": None} if "dropout" in content["model"] else content["model"]
        content = {**content, "model": model, "truncation": None, "padding": None}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises no other
            raise InvalidValue(
                f"tokenizer: tokenizers {tokenizers.__version__} cannot read {path}: {error}. "
                "A newer version may: pip install -U tokenizers"
            ) from None
        self._tokenizer.encode_special_tokens = True
        self.eot_token = self._tokenizer.token_to_id(end_of_text) if end_of_text else None
        self.n_vocab = max(self._tokenizer.get_vocab().values()) + 1
        self.cut_before = _cut_before(content)

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        if not text.isascii():  # a lone surrogate is mended as by tiktoken
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        # Of all its ways to encode the only one that lets other threads work.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _splits_like_gpt2(content: dict[str, Any]) -> bool:
    split = content.get("pre_tokenizer") or {}
    return (
        split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space", True)
        and not content.get("normalizer")
    )


def _cut_before(content: dict[str, Any]) -> str:
    """Where a text may be cut, as in ``Tokenizer.cut_before``: known for GPT-2's split alone."""
    found_in_texts = [token for token in content.get("added_tokens") or [] if not token["special"]]
    reach_further = any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or token["content"].split() != [token["content"]]
        for token in found_in_texts
    )
    return " \r\n" if _splits_like_gpt2(content) and not reach_further else ""


def is_gpt2_json(content: dict[str, Any]) -> bool:
    """Whether it is GPT-2's own, in what decides about ids."""
    model, added = content["model"], content.get("added_tokens") or []
    different = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if model.get("type", "BPE") != "BPE" or any(model.get(name) for name in different):
        return False
    if [token["id"] for token in added] != [GPT2_END_OF_TEXT] or not _splits_like_gpt2(content):
        return False
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    sums = [_sha256("\n".join(["#version: 0.2", *merges, ""])), _sha256(json.dumps(vocab))]
    return sums == [_GPT2_MERGES_SHA256, _GPT2_VOCAB_SHA256]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
