"""ids -> vectors: token embedding + learned absolute position embedding."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

# Source: openai/gpt-2, src/model.py: wte has a standard deviation of 0.02, wpe of 0.01. nanoGPT takes 0.02 for both.
TOKEN_INIT_STD = 0.02
POSITION_INIT_STD = 0.01


class EmbeddingModule(nn.Module):
    """The first layer of GPT-2: a vector for each token, plus a vector for its place.

    ``token_embedding`` is a table of V vectors and ``position_embedding`` one of T vectors, both learned. The vectors
    of the places 0 .. T-1, shape (T, D), are added to those of the tokens, (B, T, D), by broadcasting: every sequence
    of the batch gets the same.

    Args:
        vocab_size: Number of token ids, V.
        embed_dim: Length of a vector, D.
        context_size: The longest sequence, in tokens.
        dropout: Share of the numbers set to zero in training, from 0 to below 1. GPT-2 was trained with 0.1.
        init: gpt2 (normal with a standard deviation of 0.02 for tokens and 0.01 for positions), or normal (PyTorch's
            default for an embedding, a standard deviation of 1).

    Raises:
        ValueError: If a size is below 1, ``dropout`` outside [0, 1) or ``init`` unknown.

    Example:
        >>> embedding = EmbeddingModule(vocab_size=10, embed_dim=4, context_size=5)
        >>> embedding(torch.tensor([[1, 2, 3], [3, 2, 1]])).shape
        torch.Size([2, 3, 4])
        >>> embedding(torch.tensor([1, 2, 3])).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        vocab_size: int = 50257,
        embed_dim: int = 768,
        context_size: int = 1024,
        dropout: float = 0.0,
        init: Literal["gpt2", "normal"] = "gpt2",
    ) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("embed_dim", embed_dim), ("context_size", context_size)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}. Set model.dropout.")
        if init not in ("gpt2", "normal"):
            raise ValueError(f"init must be gpt2 or normal, got {init!r}. Set model.init.")
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim
        self.context_size = context_size
        self.init = init
        # nn.Embedding(V, D) would fill the tables once, and reset_parameters() again.
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(vocab_size, embed_dim), freeze=False)
        self.position_embedding = nn.Embedding.from_pretrained(torch.empty(context_size, embed_dim), freeze=False)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill both tables with new random numbers, as ``init`` says."""
        token_std, position_std = (TOKEN_INIT_STD, POSITION_INIT_STD) if self.init == "gpt2" else (1.0, 1.0)
        nn.init.normal_(self.token_embedding.weight, std=token_std)
        nn.init.normal_(self.position_embedding.weight, std=position_std)

    def forward(self, input_ids: Shaped[Tensor, "*B T"], start_position: int = 0) -> Float[Tensor, "*B T D"]:
        """The vectors of a batch of sequences, or of a single one.

        Args:
            input_ids: Token ids below ``vocab_size``; int64 or int32, shape (B, T) or (T,).
            start_position: The place of the first token: 0, or the number of tokens that went before when a text is
                generated one token at a time.

        Returns:
            Shape (B, T, D) or (T, D).

        Raises:
            TypeError: If the ids are not int64 or int32.
            ValueError: If the sequences do not fit into ``context_size``, or have more than two dimensions.
            IndexError: If an id is not in the vocabulary. On a GPU, where asking would hold up the queue, the check is
                queued too: the message is printed there, and a later call fails.
        """
        self._check(input_ids, start_position)
        try:
            vectors = self.token_embedding(input_ids)
        except IndexError:
            raise IndexError(self._id_error(f"got ids from {input_ids.min()} to {input_ids.max()}")) from None
        stop_position = start_position + input_ids.shape[-1]
        # In place: the sum needs no memory of its own, and no gradient needs the vectors as they were before.
        vectors += self.position_embedding.weight[start_position:stop_position]
        return self.dropout(vectors) if self.dropout.p else vectors

    def _check(self, input_ids: Tensor, start_position: int) -> None:
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"input_ids must be int64 or int32, got {input_ids.dtype}. Convert them with .long().")
        if input_ids.ndim not in (1, 2):
            raise ValueError(f"input_ids must have shape (B, T) or (T,), got {tuple(input_ids.shape)}.")
        if start_position < 0:
            raise ValueError(f"start_position must be at least 0, got {start_position}.")
        num_tokens = input_ids.shape[-1]
        if start_position + num_tokens > self.context_size:
            raise ValueError(
                f"a sequence can have context_size = {self.context_size} tokens, got {num_tokens} from position "
                f"{start_position} on. Cut the input, or make the module with a larger context_size."
            )
        if input_ids.is_cuda and not torch.compiler.is_compiling():
            in_vocabulary = (input_ids >= 0) & (input_ids < self.vocab_size)
            torch._assert_async(in_vocabulary.all(), self._id_error("got another"))

    def _id_error(self, found: str) -> str:
        return (
            f"input_ids must be from 0 to vocab_size - 1 = {self.vocab_size - 1}, {found}. "
            "Use the tokenizer that the vocabulary belongs to, or make the module with a larger vocab_size."
        )

    def extra_repr(self) -> str:
        return f"init={self.init}"
