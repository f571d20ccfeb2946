"""texts in memory -> a token store in memory: for GPTDataModule.from_text, which writes no file."""

import io
from collections.abc import Sequence

import numpy as np

from gpt2_lit.errors import InvalidValue
from gpt2_lit.store.manifest import content_of
from gpt2_lit.store.plan import Recipe
from gpt2_lit.store.prepare import tell_kept_ends, tell_unused_separator
from gpt2_lit.store.store_writer import ShardWriter
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.store.workers import end_of_text, write_tokens
from gpt2_lit.text.readers import pieces_of_text


def store_of_texts(texts: Sequence[str], recipe: Recipe) -> TokenStore:
    """The tokens of the texts, with the end of text between documents, as a store on disk has them."""
    file, end = io.BytesIO(), end_of_text(recipe.tokenizer)
    writer = ShardWriter(file, end)
    pieces = (piece for text in texts for piece in pieces_of_text(text, recipe.options, recipe.tokenizer.cut_before))
    tell_kept_ends(recipe, write_tokens(pieces, recipe.tokenizer, writer, "a text in memory"))
    if not writer.ends:
        raise InvalidValue("there is no document in the texts in memory. Give at least one with text.")
    tell_unused_separator(recipe, len(writer.ends), len(texts))
    ids = np.frombuffer(file.getbuffer(), end.dtype)[:-1]  # the last end of text separates nothing
    return TokenStore.of_array(ids, np.array(writer.ends, np.int64), content_of([(writer.num_tokens, writer.checksum)]))
