"""ids -> vectors: token embedding + learned absolute position embedding; and back, vectors -> logits and loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from gpt2_lit.embedding.loss import summed_cross_entropy
from gpt2_lit.embedding.pretrained import names_of_pairs, read_tables
from gpt2_lit.errors import InvalidIndex, InvalidType, InvalidValue, real_number, whole_number
from gpt2_lit.lightning_private import has_forward_hooks


class InitStd(NamedTuple):
    """The standard deviations of the two tables at the start."""

    token: float
    position: float


# Source: openai/gpt-2, src/model.py: wte has a standard deviation of 0.02, wpe of 0.01. nanoGPT takes 0.02 for both.
INIT_STD = {"gpt2": InitStd(0.02, 0.01), "normal": InitStd(1.0, 1.0)}


class EmbeddingModule(nn.Module):
    """The first layer of GPT-2, token + position vectors, and its last, logits from the same token table ("tied head").

    Args:
        vocab_size: Number of token ids, V.
        embed_dim: Length of a vector, D.
        context_size: The longest sequence, in tokens.
        dropout: Share of the numbers set to zero in training, from 0 to below 1. GPT-2 was trained with 0.1.
        init: gpt2 (normal with standard deviations of 0.02 for tokens and 0.01 for positions), or normal (of 1).
        pad_vocab_to_multiple_of: The token table gets rows without a token, up to a multiple of this: 128 makes 50,304
            rows for 50,257 ids, which suits GPUs. Their ids are refused, and they get no logit.

    Example:
        >>> embedding = EmbeddingModule(vocab_size=10, embed_dim=4, context_size=5)
        >>> vectors = embedding(torch.tensor([[1, 2, 3], [3, 2, 1]]))
        >>> vectors.shape, embedding.logits(vectors).shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 10]))
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
        _check_settings(vocab_size, embed_dim, context_size, dropout, init, pad_vocab_to_multiple_of)
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim
        self.context_size = context_size
        self.init = init
        num_rows = -(-vocab_size // pad_vocab_to_multiple_of) * pad_vocab_to_multiple_of
        # nn.Embedding(V, D) would fill the tables once, and reset_parameters() again.
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(num_rows, embed_dim), freeze=False)
        self.position_embedding = nn.Embedding.from_pretrained(torch.empty(context_size, embed_dim), freeze=False)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.register_load_state_dict_pre_hook(_rename_tables)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill both tables with new random numbers, as ``init`` says."""
        nn.init.normal_(self.token_embedding.weight, std=self.init_std.token)
        nn.init.normal_(self.position_embedding.weight, std=self.init_std.position)

    @property
    def init_std(self) -> InitStd:
        """The standard deviations that the tables start with."""
        return INIT_STD[self.init]

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Mapping[str, Any],
        *,
        vocab_size: int | None = None,
        context_size: int | None = None,
        interpolate_positions: bool = False,
        dropout: float = 0.0,
        pad_vocab_to_multiple_of: int = 1,
    ) -> "EmbeddingModule":
        """An embedding with the tables of a trained GPT-2, whose shapes give the sizes.

        Args:
            source: A safetensors file; a checkpoint of PyTorch or Lightning; a directory with model.safetensors; a
                repository on Hugging Face: openai-community/gpt2, or gpt2-medium, gpt2-large, gpt2-xl there; or
                tensors or arrays by their names: a state dict, or {"wte": ..., "wpe": ...}.
            vocab_size: Number of token ids. None is that of the table. If it is less, the first vectors are taken; if
                more, the new ones are initialised as GPT-2's were.
            context_size: The longest sequence, in tokens. None is that of the table. If it is less, the first
                positions are taken.
            interpolate_positions: Whether to stretch or shrink the position table to ``context_size``, linearly: the
                first and the last position keep their vectors.
            dropout: Share of the numbers set to zero in training, from 0 to below 1.
            pad_vocab_to_multiple_of: As for a new module.

        Raises:
            FileNotFoundError: If there is no such file, or it cannot be downloaded.
            ImportError: If a package of the extra ``pretrained`` is missing.
            ValueError: If it holds no such tables, or fewer positions than ``context_size`` and they are not to be
                interpolated.
        """
        tokens, positions = read_tables(source)
        if context_size is not None and context_size > len(positions) and not interpolate_positions:
            raise InvalidValue(
                f"context_size can be at most the {len(positions)} positions that "
                f"{'the mapping' if isinstance(source, Mapping) else source} has vectors for, got "
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
        """The vectors of a batch of sequences, shape (B, T, D), or of a single one, (T, D).

        Args:
            input_ids: Token ids below ``vocab_size``; int64 or int32, shape (B, T) or (T,).
            start_position: Position of the first token, when a text is generated one token at a time.
            position_ids: Or the position of each token, as where each document of a window starts at 0.

        Raises:
            TypeError, ValueError: If the ids have another type or shape, or do not fit into ``context_size``.
            IndexError: If an id or a position is out of its range; on a GPU a later call fails, with the message.
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
        except IndexError:  # on the CPU a lookup checks its ids at no cost, but does not say which is wrong
            self._check_ranges(input_ids, position_ids)
            raise
        if has_forward_hooks(self.token_embedding):  # one of which may have kept the vectors
            vectors = vectors + positions
        else:
            vectors += positions  # in place: the sum needs no memory of its own
        return self.dropout(vectors) if self.dropout.p else vectors

    def logits(self, hidden: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T V"]:
        """For each vector, the logits of the next token: its products with the vectors of all tokens."""
        return F.linear(hidden, self.token_embedding.weight)[..., : self.vocab_size]

    def next_token_loss(
        self, hidden: Float[Tensor, "*B T D"], target_ids: Shaped[Tensor, "..."], ignore_index: int = -100
    ) -> Float[Tensor, ""]:
        """The mean cross-entropy of the next tokens, in nats, without holding all logits at a time.

        It is ``F.cross_entropy(logits(hidden).flatten(0, 1), target_ids.flatten())``, which takes 5 GB for 8 x 1024
        tokens of GPT-2 small. It raises what :meth:`forward` does.

        Args:
            hidden: What came out of the model, shape (B, T, D) or (T, D).
            target_ids: The tokens that came next; int64 or int32, shape (B, T) or (T,).
            ignore_index: Targets of this value are left out of the mean: padding, and the prompts of instructions.
                Without any other the loss is 0, with gradients of 0.
        """
        _check_type("target_ids", target_ids)
        is_kept = (target_ids != ignore_index).flatten()
        targets = target_ids.flatten().long().masked_fill(~is_kept, 0)
        self._check_targets(hidden, target_ids, targets)
        hidden, num_kept = hidden.flatten(0, -2), is_kept.sum().clamp(min=1)
        # Not on a GPU, which would have to be waited for, and where sizes are to stay the same.
        if hidden.device.type == "cpu" and not torch.compiler.is_compiling() and not is_kept.all():
            hidden, targets, is_kept = hidden[is_kept], targets[is_kept], is_kept[is_kept]
        return summed_cross_entropy(hidden, self.token_embedding.weight, targets, is_kept, self.vocab_size) / num_kept

    def _check_targets(self, hidden: Tensor, target_ids: Tensor, targets: Tensor) -> None:
        if target_ids.shape != hidden.shape[:-1]:
            raise InvalidValue(
                f"target_ids must have the shape of hidden without its last dimension, {tuple(hidden.shape[:-1])}, "
                f"got {tuple(target_ids.shape)}."
            )
        if not torch.compiler.is_compiling():
            _check_range("target_ids", targets, "vocab_size", self.vocab_size)

    def _check_shapes(self, input_ids: Tensor, start_position: int, position_ids: Tensor | None) -> None:
        _check_type("input_ids", input_ids)
        if input_ids.ndim not in (1, 2):
            raise InvalidValue(f"input_ids must have shape (B, T) or (T,), got {tuple(input_ids.shape)}.")
        if start_position < 0:
            raise InvalidValue(f"start_position must be at least 0, got {start_position}.")
        num_tokens = input_ids.shape[-1]
        if position_ids is None:
            if start_position + num_tokens > self.context_size:
                raise InvalidValue(
                    f"a sequence can have context_size = {self.context_size} tokens, got {num_tokens} from position "
                    f"{start_position} on. Cut the input, or make the module with a larger context_size."
                )
            return
        _check_type("position_ids", position_ids)
        if start_position:
            raise InvalidValue(f"give start_position or position_ids, not both, got start_position {start_position}.")
        if position_ids.shape not in (input_ids.shape, input_ids.shape[-1:]):
            raise InvalidValue(
                f"position_ids must have the shape of input_ids, {tuple(input_ids.shape)}, or ({num_tokens},), "
                f"got {tuple(position_ids.shape)}."
            )

    def _check_ranges(self, input_ids: Tensor, position_ids: Tensor | None) -> None:
        _check_range("input_ids", input_ids, "vocab_size", self.vocab_size)
        if position_ids is not None:
            _check_range("position_ids", position_ids, "context_size", self.context_size)

    def extra_repr(self) -> str:
        return f"init={self.init}"


def _rename_tables(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let ``load_state_dict`` take the tables by the names that others give them, as tok_emb.weight."""
    names = (f"{prefix}token_embedding.weight", f"{prefix}position_embedding.weight")
    if names[0] in state_dict or names[1] in state_dict:
        return
    for theirs in names_of_pairs(prefix):
        if theirs[0] in state_dict and theirs[1] in state_dict:
            for name, other in zip(names, theirs, strict=True):
                state_dict[name] = state_dict.pop(other)
            return


def _check_settings(
    vocab_size: int, embed_dim: int, context_size: int, dropout: float, init: str, pad_vocab_to_multiple_of: int
) -> None:
    for name, size in (
        ("vocab_size", vocab_size),
        ("embed_dim", embed_dim),
        ("context_size", context_size),
        ("pad_vocab_to_multiple_of", pad_vocab_to_multiple_of),
    ):
        whole_number(name, size, of="model.")
    if not 0 <= real_number("dropout", dropout, of="model.") < 1:
        raise InvalidValue(f"dropout must be at least 0 and below 1, got {dropout}. Set model.dropout.")
    if init not in INIT_STD:
        raise InvalidValue(f"init must be one of {', '.join(INIT_STD)}, got {init!r}. Set model.init.")


def _check_type(name: str, ids: Any) -> None:
    if not isinstance(ids, Tensor):
        raise InvalidType(f"{name} must be a tensor of ids, got a {type(ids).__name__}. Make one by torch.tensor(...).")
    if ids.dtype not in (torch.int64, torch.int32):
        raise InvalidType(f"{name} must be int64 or int32, got {ids.dtype}. Convert them with .long().")


def _check_range(name: str, ids: Tensor, size_name: str, size: int) -> None:
    """Raise an IndexError if an id is not from 0 to below ``size``; on a GPU later, without waiting for the queue."""
    if ids.is_cuda:
        torch._assert_async(((ids >= 0) & (ids < size)).all(), _out_of_range(name, "another", size_name, size))
    elif ids.numel() and not ids.is_meta:  # without values there is nothing to check
        low, high = (int(limit) for limit in ids.aminmax())
        if low < 0 or high >= size:
            raise InvalidIndex(_out_of_range(name, f"ids from {low} to {high}", size_name, size))


def _out_of_range(name: str, got: str, size_name: str, size: int) -> str:
    way_out = f"Make the module with a larger {size_name}"
    if size_name == "vocab_size":
        way_out = f"Use the tokenizer that the vocabulary belongs to, or m{way_out[1:]}"
    return f"{name} must be from 0 to {size_name} - 1 = {size - 1}, got {got}. {way_out}."
