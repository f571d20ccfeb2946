"""ids -> vectors: token embedding + learned absolute position embedding; and back, vectors -> scores and loss."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from gpt2_lit.embedding.pretrained import read_tables

# Source: openai/gpt-2, src/model.py: wte has a standard deviation of 0.02, wpe of 0.01. nanoGPT takes 0.02 for both.
TOKEN_INIT_STD = 0.02
POSITION_INIT_STD = 0.01


class EmbeddingModule(nn.Module):
    """The first layer of GPT-2, a vector for each token plus a vector for its place, and its last, a score for each.

    ``token_embedding`` is a table of V vectors and ``position_embedding`` one of T vectors, both learned. The vectors
    of the places 0 .. T-1, shape (T, D), are added to those of the tokens, (B, T, D), by broadcasting: every sequence
    of the batch gets the same.

    GPT-2 looks up and scores with one and the same table ("tied head"): :meth:`logits` compares what comes out of the
    model with every token's vector, and :meth:`next_token_loss` says how well.

    Args:
        vocab_size: Number of token ids, V.
        embed_dim: Length of a vector, D.
        context_size: The longest sequence, in tokens.
        dropout: Share of the numbers set to zero in training, from 0 to below 1. GPT-2 was trained with 0.1.
        init: gpt2 (normal with a standard deviation of 0.02 for tokens and 0.01 for positions), or normal (PyTorch's
            default for an embedding, a standard deviation of 1).
        pad_vocab_to_multiple_of: The token table gets rows without a token until their number is a multiple of this:
            with 128, 50,304 rows for 50,257 ids, which suits GPUs. Their ids are refused, and they get no score.

    Raises:
        ValueError: If a size is below 1, ``dropout`` outside [0, 1) or ``init`` unknown.

    Example:
        >>> embedding = EmbeddingModule(vocab_size=10, embed_dim=4, context_size=5)
        >>> vectors = embedding(torch.tensor([[1, 2, 3], [3, 2, 1]]))
        >>> vectors.shape
        torch.Size([2, 3, 4])
        >>> embedding(torch.tensor([1, 2, 3])).shape
        torch.Size([3, 4])
        >>> embedding.logits(vectors).shape
        torch.Size([2, 3, 10])
    """

    def __init__(
        self,
        vocab_size: int = 50257,
        embed_dim: int = 768,
        context_size: int = 1024,
        dropout: float = 0.0,
        init: Literal["gpt2", "normal"] = "gpt2",
        pad_vocab_to_multiple_of: int = 1,
    ) -> None:
        super().__init__()
        for name, size in (
            ("vocab_size", vocab_size),
            ("embed_dim", embed_dim),
            ("context_size", context_size),
            ("pad_vocab_to_multiple_of", pad_vocab_to_multiple_of),
        ):
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
        num_rows = -(-vocab_size // pad_vocab_to_multiple_of) * pad_vocab_to_multiple_of
        # nn.Embedding(V, D) would fill the tables once, and reset_parameters() again.
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(num_rows, embed_dim), freeze=False)
        self.position_embedding = nn.Embedding.from_pretrained(torch.empty(context_size, embed_dim), freeze=False)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill both tables with new random numbers, as ``init`` says."""
        token_std, position_std = (TOKEN_INIT_STD, POSITION_INIT_STD) if self.init == "gpt2" else (1.0, 1.0)
        nn.init.normal_(self.token_embedding.weight, std=token_std)
        nn.init.normal_(self.position_embedding.weight, std=position_std)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        vocab_size: int | None = None,
        context_size: int | None = None,
        interpolate_positions: bool = False,
        dropout: float = 0.0,
        pad_vocab_to_multiple_of: int = 1,
    ) -> "EmbeddingModule":
        """An embedding with the tables of a trained GPT-2, whose shapes give the sizes.

        Args:
            source: A safetensors file; a checkpoint of PyTorch or Lightning; a folder with model.safetensors; or a
                repository on Hugging Face: openai-community/gpt2, or gpt2-medium, gpt2-large, gpt2-xl there.
            vocab_size: Number of token ids. None is that of the table. If it is less, the first vectors are taken; if
                more, the new ones are initialised as GPT-2's were.
            context_size: The longest sequence, in tokens. None is that of the table. If it is less, the first places
                are taken.
            interpolate_positions: Stretch or shrink the places of the table to ``context_size``, linearly: the first
                and the last one keep their vectors.
            dropout: Share of the numbers set to zero in training, from 0 to below 1.
            pad_vocab_to_multiple_of: As for a new module.

        Raises:
            FileNotFoundError: If there is no such file, or it cannot be downloaded.
            ImportError: If a package of the extra ``pretrained`` is missing.
            ValueError: If it holds no such tables; or if ``context_size`` is more than it has places, and they are not
                to be interpolated.
        """
        tokens, positions = read_tables(source)
        if context_size is not None and context_size > len(positions) and not interpolate_positions:
            raise ValueError(
                f"context_size can be at most the {len(positions)} places that {source} has vectors for, got "
                f"{context_size}. Lower it, or set interpolate_positions=True."
            )
        embedding = cls(
            vocab_size=len(tokens) if vocab_size is None else vocab_size,
            embed_dim=tokens.shape[1],
            context_size=len(positions) if context_size is None else context_size,
            dropout=dropout,
            pad_vocab_to_multiple_of=pad_vocab_to_multiple_of,
        )
        if interpolate_positions:
            columns = positions.T[None]
            positions = F.interpolate(columns, embedding.context_size, mode="linear", align_corners=True)[0].T
        num_known = min(len(tokens), embedding.vocab_size)
        with torch.no_grad():
            embedding.token_embedding.weight[:num_known] = tokens[:num_known]
            embedding.position_embedding.weight.copy_(positions[: embedding.context_size])
        return embedding

    def forward(
        self,
        input_ids: Shaped[Tensor, "*B T"],
        start_position: int = 0,
        position_ids: Shaped[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*B T D"]:
        """The vectors of a batch of sequences, or of a single one.

        Args:
            input_ids: Token ids below ``vocab_size``; int64 or int32, shape (B, T) or (T,).
            start_position: The place of the first token: 0, or the number of tokens that went before when a text is
                generated one token at a time.
            position_ids: The place of each token where they do not simply follow each other, as in a window of several
                documents, each of which starts at 0 again; int64 or int32, shape (B, T) or (T,).

        Returns:
            Shape (B, T, D) or (T, D).

        Raises:
            TypeError: If ids are not int64 or int32.
            ValueError: If the sequences do not fit into ``context_size``, have more than two dimensions, or another
                shape than their ``position_ids``; or if these come with a ``start_position``.
            IndexError: If an id is not in the vocabulary, or a place not below ``context_size``. On a GPU, where asking
                would hold up the queue, the check is queued too: the message is printed there, and a later call fails.
        """
        self._check_shapes(input_ids, start_position, position_ids)
        has_padding = len(self.token_embedding.weight) > self.vocab_size
        if (input_ids.is_cuda or has_padding) and not torch.compiler.is_compiling():
            self._check_ranges(input_ids, position_ids)
        try:
            vectors = self.token_embedding(input_ids)
            if position_ids is None:
                positions = self.position_embedding.weight[start_position : start_position + input_ids.shape[-1]]
            else:
                positions = self.position_embedding(position_ids)
        except IndexError:  # On the CPU a lookup checks its ids itself, at no cost, but does not say which and why.
            self._check_ranges(input_ids, position_ids)
            raise
        if self.token_embedding._forward_hooks:  # one of which may have kept the vectors
            vectors = vectors + positions
        else:
            vectors += positions  # in place: the sum needs no memory of its own
        return self.dropout(vectors) if self.dropout.p else vectors

    def logits(self, hidden: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T V"]:
        """For each vector, a score for each token: its product with the token's vector.

        Softmax over the last dimension makes them the probabilities of the next token.
        """
        return F.linear(hidden, self.token_embedding.weight)[..., : self.vocab_size]

    def next_token_loss(self, hidden: Float[Tensor, "*B T D"], target_ids: Shaped[Tensor, "..."]) -> Float[Tensor, ""]:
        """The mean cross-entropy of the next tokens, in nats, without ever holding all their scores.

        The same number as ``F.cross_entropy(logits(hidden).flatten(0, 1), target_ids.flatten())``, for which PyTorch
        holds three times the scores: 5 GB for 8 x 1024 tokens of GPT-2 small. Here the scores are made, and used up
        for the gradient, a chunk of the tokens at a time. Such a loss has no second derivative.

        Args:
            hidden: What came out of the model, shape (B, T, D) or (T, D).
            target_ids: The tokens that came next; int64 or int32, shape (B, T) or (T,).

        Raises:
            TypeError: If the ids are not int64 or int32.
            ValueError: If there is not one target for each vector.
            IndexError: If an id is not in the vocabulary; on a GPU as in :meth:`forward`.

        Example:
            >>> embedding = EmbeddingModule(vocab_size=10, embed_dim=4, context_size=5)
            >>> hidden, target_ids = torch.randn(2, 3, 4), torch.tensor([[1, 2, 3], [3, 2, 1]])
            >>> loss = embedding.next_token_loss(hidden, target_ids)
            >>> plain = F.cross_entropy(embedding.logits(hidden).flatten(0, 1), target_ids.flatten())
            >>> torch.allclose(loss, plain)
            True
        """
        _check_type("target_ids", target_ids)
        if target_ids.shape != hidden.shape[:-1]:
            raise ValueError(
                f"target_ids must have the shape of hidden without its last dimension, {tuple(hidden.shape[:-1])}, "
                f"got {tuple(target_ids.shape)}."
            )
        if not torch.compiler.is_compiling():
            _check_range("target_ids", target_ids, "vocab_size", self.vocab_size)
        table = self.token_embedding.weight
        args = (hidden.flatten(0, -2), table, target_ids.flatten().long(), self.vocab_size)
        if torch.is_grad_enabled():
            summed_loss = _SummedLoss.apply(*args)
        else:
            summed_loss, _, _ = _loss_and_gradients(*args)
        return summed_loss / target_ids.numel()

    def _check_shapes(self, input_ids: Tensor, start_position: int, position_ids: Tensor | None) -> None:
        _check_type("input_ids", input_ids)
        if input_ids.ndim not in (1, 2):
            raise ValueError(f"input_ids must have shape (B, T) or (T,), got {tuple(input_ids.shape)}.")
        if start_position < 0:
            raise ValueError(f"start_position must be at least 0, got {start_position}.")
        num_tokens = input_ids.shape[-1]
        if position_ids is None:
            if start_position + num_tokens > self.context_size:
                raise ValueError(
                    f"a sequence can have context_size = {self.context_size} tokens, got {num_tokens} from position "
                    f"{start_position} on. Cut the input, or make the module with a larger context_size."
                )
            return
        _check_type("position_ids", position_ids)
        if start_position:
            raise ValueError(f"give start_position or position_ids, not both, got start_position {start_position}.")
        if position_ids.shape not in (input_ids.shape, input_ids.shape[-1:]):
            raise ValueError(
                f"position_ids must have the shape of input_ids, {tuple(input_ids.shape)}, or ({num_tokens},), "
                f"got {tuple(position_ids.shape)}."
            )

    def _check_ranges(self, input_ids: Tensor, position_ids: Tensor | None) -> None:
        _check_range("input_ids", input_ids, "vocab_size", self.vocab_size)
        if position_ids is not None:
            _check_range("position_ids", position_ids, "context_size", self.context_size)

    def extra_repr(self) -> str:
        return f"init={self.init}"


def _check_type(name: str, ids: Tensor) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {ids.dtype}. Convert them with .long().")


def _check_range(name: str, ids: Tensor, size_name: str, size: int) -> None:
    """Raise an IndexError if an id is not from 0 to below ``size``; on a GPU later, without waiting for the queue."""
    rule = f"{name} must be from 0 to {size_name} - 1 = {size - 1}"
    way_out = f"Make the module with a larger {size_name}"
    if size_name == "vocab_size":
        way_out = f"Use the tokenizer that the vocabulary belongs to, or m{way_out[1:]}"
    if ids.is_cuda:
        torch._assert_async(((ids >= 0) & (ids < size)).all(), f"{rule}, got another. {way_out}.")
    elif ids.numel():
        low, high = (int(limit) for limit in ids.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{rule}, got ids from {low} to {high}. {way_out}.")


# Scores of a chunk, where the table has fewer numbers: 16 MB in float32.
CHUNK_SCORES = 2**22


class _SummedLoss(torch.autograd.Function):
    """The sum of the cross-entropies of the next tokens; its gradients are computed beside it, in the same pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, target_ids: Tensor, vocab_size: int) -> Tensor:
        loss, *gradients = _loss_and_gradients(hidden, table, target_ids, vocab_size, *ctx.needs_input_grad[:2])
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(
                "next_token_loss has no second derivative, which create_graph=True asks for. Take "
                "F.cross_entropy(embedding.logits(hidden).flatten(0, 1), target_ids.flatten()) instead."
            )
        hidden_grad, table_grad = (grad if grad is None else grad * loss_grad for grad in ctx.saved_tensors)
        return hidden_grad, table_grad, None, None


def _loss_and_gradients(
    hidden: Float[Tensor, "N D"],
    table: Float[Tensor, "R D"],
    target_ids: Int64[Tensor, " N"],
    vocab_size: int,
    hidden_needs_grad: bool = False,
    table_needs_grad: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, "N D"] | None, Float[Tensor, "R D"] | None]:
    """The sum of the cross-entropies, and its gradients where they are asked for, a chunk of the tokens at a time."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    exact = torch.promote_types(dtype, torch.float32)  # for softmax and sums, as autocast has it
    weight = table.to(dtype)
    loss = hidden.new_zeros((), dtype=exact)
    hidden_grads = []
    table_grad = torch.zeros_like(table, dtype=exact) if table_needs_grad else None

    # At least as many scores as the table has numbers, because each chunk goes over the whole gradient of the table.
    most = max(hidden.shape[-1], CHUNK_SCORES // len(table))
    num_chunks = max(1, math.ceil(len(hidden) / most))
    chunk_size = max(1, math.ceil(len(hidden) / num_chunks))
    memory = hidden.new_empty(chunk_size, len(table), dtype=dtype)  # one for all chunks: new memory would be slow
    for vectors, targets in zip(hidden.split(chunk_size), target_ids[:, None].split(chunk_size), strict=True):
        vectors = vectors.to(dtype)
        scores = torch.mm(vectors, weight.T, out=memory[: len(vectors)]).to(exact)
        scores[:, vocab_size:] = -torch.inf
        scores -= scores.amax(dim=-1, keepdim=True)
        target_scores = scores.gather(-1, targets)
        sums = scores.exp_().sum(dim=-1, keepdim=True)
        loss += (sums.log() - target_scores).sum()
        if not (hidden_needs_grad or table_needs_grad):
            continue
        # The gradient of the loss by the scores: the probability of each token, less 1 for the target.
        scores /= sums
        scores.scatter_(-1, targets, scores.gather(-1, targets) - 1)
        scores_grad = scores.to(dtype)
        if hidden_needs_grad:
            hidden_grads.append(scores_grad @ weight)
        if table_grad is not None and dtype == exact:
            table_grad.addmm_(scores_grad.T, vectors)
        elif table_grad is not None:
            table_grad += scores_grad.T @ vectors
    return (
        loss,
        torch.cat(hidden_grads).to(hidden.dtype) if hidden_needs_grad else None,
        table_grad.to(table.dtype) if table_grad is not None else None,
    )
