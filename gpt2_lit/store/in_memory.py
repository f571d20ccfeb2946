"""texts in memory -> a token store in memory: for GPTDataModule.from_text, which writes no file."""

import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from gpt2_lit.errors import InvalidValue
from gpt2_lit.store.manifest import content_of, token_dtype
from gpt2_lit.store.plan import Recipe
from gpt2_lit.store.prepare import tell_kept_ends
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.readers import pieces_of_text


def store_of_texts(texts: Iterable[str], recipe: Recipe) -> TokenStore:
    """The tokens of the texts, with the end of text between documents, as a store on disk has them."""
    tokenizer = recipe.tokenizer
    documents = list(_documents(texts, recipe))
    if not documents:
        raise InvalidValue("there is no document in the texts in memory. Give at least one with text.")
    if name := tokenizer.end_of_text_name:
        tell_kept_ends(recipe, sum(document.count(name) for document in documents))
    parts = [tokenizer.encode_to_array(document) for document in documents]
    end_of_text = np.array([tokenizer.end_of_text]).astype(token_dtype(tokenizer.vocab_size))
    ids = np.concatenate([ids for part in parts for ids in (part, end_of_text)])
    ends = np.cumsum([len(part) + 1 for part in parts])
    content = content_of([(len(ids), zlib.crc32(ids.data))])
    return TokenStore.of_array(ids[:-1], ends, content)  # the last end of text separates nothing


def _documents(texts: Iterable[str], recipe: Recipe) -> Iterator[str]:
    parts: list[str] = []
    for text in texts:
        for piece in pieces_of_text(text, recipe.options, recipe.tokenizer.cut_before):
            parts.append(piece.text)
            if piece.ends_document:
                yield "".join(parts)
                parts.clear()
