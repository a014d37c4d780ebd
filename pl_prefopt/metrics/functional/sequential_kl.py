"""Divergence of policy and reference over the tokens of a sequence.

Legend: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sequential_kl(policy_logits: Tensor, ref_logits: Tensor, mask: Tensor) -> Tensor:
    """Sum over positions of KL(ref || policy), TDPO's sequential KL (2404.11999).

    sum_t m_t sum_v p_ref (log p_ref - log p_policy), log-softmax in float32 (float64 for float64 input).

    Args:
        policy_logits: (B, T, V).
        ref_logits: (B, T, V).
        mask: (B, T) bool.

    Returns:
        (B,) nats, >= 0.

    Raises:
        ValueError: shapes that differ.
    """
    if policy_logits.dim() != 3 or ref_logits.shape != policy_logits.shape or mask.shape != policy_logits.shape[:2]:
        raise ValueError(
            "policy_logits and ref_logits must be (B, T, V) with a mask (B, T), got "
            f"{tuple(policy_logits.shape)}, {tuple(ref_logits.shape)} and {tuple(mask.shape)}"
        )
    dtype = torch.float64 if policy_logits.dtype == torch.float64 else torch.float32
    policy, ref = (x.to(dtype).log_softmax(-1) for x in (policy_logits, ref_logits))
    kl = torch.nn.functional.kl_div(policy, ref, reduction="none", log_target=True).sum(-1)
    return kl.masked_fill(~mask.bool(), 0.0).sum(-1)
