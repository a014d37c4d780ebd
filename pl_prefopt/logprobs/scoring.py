"""Token log-probabilities from hidden states, without ever holding the logits of a whole batch.

What is removed from the textbook form: logits of prompt and padding positions (no loss reads them), the float32 copy of
all logits, and the second log-softmax buffer that autograd keeps.

Shapes: N scored positions, H hidden, V vocabulary; B rows, T positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pl_prefopt.logprobs.chunked_head import Head, HeadFunction, Plan

__all__ = ["Head", "TokenScores", "score_tokens", "token_log_probs"]


class TokenScores(NamedTuple):
    """Zero outside the mask: `logps`, `kl` = KL(ref || policy), `collision` = log p - log sum_v p_v^2."""

    logps: Tensor
    kl: Tensor | None
    collision: Tensor | None


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    chunk_size: int = 1024,
    vocab_chunk_size: int | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Log-probability of every label under the output layer, at the masked positions only.

    log p_t = z_t[label_t] - logsumexp_v z_t[v], z_t = h_t W^T (+ bias, scale, cap). Label t is predicted from hidden t:
    the caller has already shifted. The head is applied to `mask.sum()` positions in blocks of `chunk_size`, so memory
    is O(chunk_size * V); gradients are exact and accumulate in float32 (float64 for float64 input).

    Args:
        hidden: (B, T, H) input of the output layer.
        weight: (V, H).
        labels: (B, T) int64 in [0, V); ignored outside the mask.
        mask: (B, T) bool, True where a log-probability is wanted.
        chunk_size: positions per block, >= 1.
        vocab_chunk_size: vocabulary entries per block; None takes all at once.
        bias: (V,) of the output layer.
        scale: factor of the logits.
        softcap: tanh bound of the logits, > 0.

    Returns:
        (B, T) float32 (float64 for float64 input), zero outside the mask.

    Raises:
        ValueError: shapes that do not fit, a label outside the vocabulary, a block size below one.

    Example:
        >>> import torch
        >>> h, w = torch.zeros(1, 2, 3), torch.randn(4, 3)
        >>> out = token_log_probs(h, w, torch.tensor([[1, 2]]), torch.tensor([[True, False]]))
        >>> [round(v, 4) for v in out[0].tolist()]
        [-1.3863, 0.0]
    """
    head = Head(weight, bias, scale, softcap)
    return score_tokens(hidden, head, labels, mask, chunk_size=chunk_size, vocab_chunk_size=vocab_chunk_size).logps


def score_tokens(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    mask: Tensor,
    *,
    ref_hidden: Tensor | None = None,
    ref_head: Head | None = None,
    collision: bool = False,
    chunk_size: int = 1024,
    vocab_chunk_size: int | None = None,
) -> TokenScores:
    """`token_log_probs` with, on request, two more quantities of the full distribution from the same pass.

    Args:
        hidden: (B, T, H).
        head: the policy's output layer.
        labels: (B, T).
        mask: (B, T) bool.
        ref_hidden: (B, T, H') of the reference; with `ref_head`, KL(ref || policy) per position is returned, with
            gradient to the policy only (TDPO, 2404.11999).
        ref_head: the reference's output layer; same vocabulary.
        collision: also return log p_t - log sum_v p_v^2, without gradient (WPO).
        chunk_size: positions per block.
        vocab_chunk_size: vocabulary entries per block; None takes all at once.
    """
    _check(hidden, head, labels, mask, chunk_size, vocab_chunk_size, ref_head)
    where = mask.reshape(-1).nonzero().squeeze(1)
    rows = hidden.flatten(0, 1).index_select(0, where)
    picked = labels.reshape(-1).index_select(0, where)
    if picked.numel() and not 0 <= int(picked.min()) <= int(picked.max()) < head.weight.shape[0]:
        raise ValueError(
            f"labels must lie in [0, {head.weight.shape[0]}), the vocabulary of the output layer; got "
            f"{int(picked.min())} to {int(picked.max())}. Does the tokenizer belong to this model?"
        )
    ref_rows = None
    if ref_hidden is not None:
        ref_rows = ref_hidden.detach().flatten(0, 1).index_select(0, where)
    plan = Plan(chunk_size, vocab_chunk_size or head.weight.shape[0], collision, _autocast_dtype(hidden))
    outs = HeadFunction.apply(rows, head.weight, head.bias, head, picked, ref_rows, ref_head, plan)

    def spread(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return values.new_zeros(mask.numel()).index_copy(0, where, values).view(mask.shape)

    logps, kl, coll = (spread(v) for v in outs)
    assert logps is not None
    return TokenScores(logps, kl, coll)


def _check(
    hidden: Tensor, head: Head, labels: Tensor, mask: Tensor, chunk: int, vocab: int | None, ref_head: Head | None
) -> None:
    if hidden.dim() != 3 or labels.shape != hidden.shape[:2] or mask.shape != hidden.shape[:2]:
        raise ValueError(
            "hidden must be (B, T, H) with labels and mask (B, T); got "
            f"hidden {tuple(hidden.shape)}, labels {tuple(labels.shape)}, mask {tuple(mask.shape)}"
        )
    if head.weight.dim() != 2 or head.weight.shape[1] != hidden.shape[2]:
        raise ValueError(f"weight must be (V, {hidden.shape[2]}), got {tuple(head.weight.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    if chunk < 1 or (vocab is not None and vocab < 1):
        raise ValueError(f"chunk_size and vocab_chunk_size must be >= 1, got {chunk} and {vocab}")
    if ref_head is not None and ref_head.weight.shape[0] != head.weight.shape[0]:
        raise ValueError(
            f"policy and reference must share a vocabulary, got {head.weight.shape[0]} and {ref_head.weight.shape[0]}"
        )


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    kind = tensor.device.type
    on_cpu_or_off = kind == "cpu" or not torch.is_autocast_enabled(kind)
    return None if on_cpu_or_off else torch.get_autocast_dtype(kind)
