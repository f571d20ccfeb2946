"""vectors and the tokens that came next -> loss: cross-entropy through the token table, never all logits at once."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

# Logits in a chunk, where the table has fewer numbers: 16 MB in float32.
CHUNK_LOGITS = 2**22


def summed_cross_entropy(
    hidden: Float[Tensor, "N D"],
    table: Float[Tensor, "R D"],
    target_ids: Int64[Tensor, " N"],
    is_kept: Bool[Tensor, " N"],
    vocab_size: int,
) -> Float[Tensor, ""]:
    """The sum of the cross-entropies, in nats, of logits ``hidden @ table.T``, of which the first V count.

    It has gradients for ``hidden`` and ``table``, and no second derivative. Tokens that are not kept add nothing; their
    target may be any id.
    """
    if torch.is_grad_enabled():
        return _SummedCrossEntropy.apply(hidden, table, target_ids, is_kept, vocab_size)
    return _loss_and_gradients(hidden, table, target_ids, is_kept, vocab_size)[0]


class _SummedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the same pass as the loss."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, target_ids: Tensor, is_kept: Tensor, vocab_size: int
    ) -> Tensor:
        needs_grad = ctx.needs_input_grad[:2]
        loss, *gradients = _loss_and_gradients(hidden, table, target_ids, is_kept, vocab_size, *needs_grad)
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
        return hidden_grad, table_grad, None, None, None


def _loss_and_gradients(
    hidden: Float[Tensor, "N D"],
    table: Float[Tensor, "R D"],
    target_ids: Int64[Tensor, " N"],
    is_kept: Bool[Tensor, " N"],
    vocab_size: int,
    hidden_needs_grad: bool = False,
    table_needs_grad: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, "N D"] | None, Float[Tensor, "R D"] | None]:
    """The sum of the cross-entropies, and its gradients where they are asked for, a chunk of the tokens at a time."""
    device = hidden.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on meta tensors
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    exact = torch.promote_types(dtype, torch.float32)  # for softmax and sums, as autocast has it
    weight = table.to(dtype)
    loss = hidden.new_zeros((), dtype=exact)
    hidden_grads = []
    table_grad = torch.zeros_like(table, dtype=exact) if table_needs_grad else None

    # At least as many logits as the table has numbers, because each chunk goes over the whole gradient of the table.
    most = max(hidden.shape[-1], CHUNK_LOGITS // len(table))
    num_chunks = max(1, math.ceil(len(hidden) / most))
    chunk_size = max(1, math.ceil(len(hidden) / num_chunks))
    memory = hidden.new_empty(chunk_size, len(table), dtype=dtype)  # one for all chunks: new memory would be slow
    chunks = (hidden, target_ids[:, None], is_kept[:, None])
    for vectors, targets, kept in zip(*(tensor.split(chunk_size) for tensor in chunks), strict=True):
        vectors = vectors.to(dtype)
        logits = torch.mm(vectors, weight.T, out=memory[: len(vectors)]).to(exact)
        logits[:, vocab_size:] = -torch.inf
        logits -= logits.amax(dim=-1, keepdim=True)
        target_logits = logits.gather(-1, targets)
        exps = logits.exp_()
        sums = exps.sum(dim=-1, keepdim=True)
        loss += (sums.log() - target_logits).masked_fill(~kept, 0).sum()
        if not (hidden_needs_grad or table_needs_grad):
            continue
        # The gradient of the loss by the logits: the probability of each token, less 1 for the target.
        # Of a token that is not kept it is 0: divided by infinity, less 0.
        probabilities = exps.div_(sums.masked_fill_(~kept, torch.inf))
        gradient = probabilities.scatter_(-1, targets, probabilities.gather(-1, targets) - kept.to(exact)).to(dtype)
        if hidden_needs_grad:
            hidden_grads.append(gradient @ weight)
        if table_grad is not None and dtype == exact:
            torch.addmm(table_grad, gradient.T, vectors, out=table_grad)  # FLOP counters do not know addmm_
        elif table_grad is not None:
            table_grad += gradient.T @ vectors
    return (
        loss,
        torch.cat(hidden_grads).to(hidden.dtype) if hidden_needs_grad else None,
        table_grad.to(table.dtype) if table_grad is not None else None,
    )
