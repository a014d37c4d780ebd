"""Quantities of pairs: similarity, divergence, accuracy.

Shapes: B pairs, T and S tokens of the two samples, D features, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ches_score(
    chosen_hidden: Tensor,
    chosen_mask: Tensor,
    rejected_hidden: Tensor,
    rejected_mask: Tensor,
    *,
    normalize: bool = True,
) -> Tensor:
    """Centred hidden embedding similarity of a pair (Razin et al. 2024, 2410.08847, definition 2).

    <S+, S-> - ||S+||^2, S = sum over the masked positions of the features that feed the output layer; normalised:
    <S+, S-> / (n+ n-) - ||S+||^2 / n+^2. Higher means more similar samples and more likelihood displacement. Positions
    are those that predict the sample's tokens: from the last prompt token to the second-last token. Scores of different
    models are not comparable; use ranks.

    Args:
        chosen_hidden: (B, T, D).
        chosen_mask: (B, T) bool, at least one True a row.
        rejected_hidden: (B, S, D).
        rejected_mask: (B, S) bool, likewise.
        normalize: divide by the token counts. The plain sum is for correlation studies, not for filtering.

    Returns:
        (B,) float32; sums are accumulated in float64, so 8k tokens of a bf16 model do not overflow.

    Raises:
        ValueError: shapes that do not fit, a row without positions.

    Example:
        >>> import torch
        >>> h = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> m = torch.ones(1, 2, dtype=torch.bool)
        >>> ches_score(h, m, -h, m, normalize=False)
        tensor([-4.])
    """
    n_w, n_l = _counts("chosen", chosen_hidden, chosen_mask), _counts("rejected", rejected_hidden, rejected_mask)
    if chosen_hidden.shape[0] != rejected_hidden.shape[0] or chosen_hidden.shape[2] != rejected_hidden.shape[2]:
        raise ValueError(
            f"chosen_hidden {tuple(chosen_hidden.shape)} and rejected_hidden {tuple(rejected_hidden.shape)} must agree "
            "in batch and features"
        )
    s_w, s_l = _masked_sum(chosen_hidden, chosen_mask), _masked_sum(rejected_hidden, rejected_mask)
    if normalize:
        s_w, s_l = s_w / n_w[:, None], s_l / n_l[:, None]
    return ((s_w * s_l).sum(-1) - s_w.square().sum(-1)).float()


def _counts(name: str, hidden: Tensor, mask: Tensor) -> Tensor:
    if hidden.dim() != 3 or mask.shape != hidden.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"{name}_hidden must be (B, T, D) with a bool mask (B, T), got {tuple(hidden.shape)} and {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    counts = mask.sum(-1)
    if bool((counts == 0).any()):
        raise ValueError(f"{name}_mask: rows {(counts == 0).nonzero().flatten().tolist()} have no position")
    return counts


def _masked_sum(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, D) float64 sum over the masked positions."""
    return hidden.masked_fill(~mask[..., None], 0).sum(1, dtype=torch.float64)


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


def pairwise_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Share of pairs whose chosen sample scores higher; a tie counts one half.

    Args:
        chosen: (B,) any score.
        rejected: (B,).

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: shapes that differ, an empty batch, or NaN.

    Example:
        >>> import torch
        >>> pairwise_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.7500)
    """
    if chosen.dim() != 1 or chosen.shape != rejected.shape or not len(chosen):
        raise ValueError(f"chosen and rejected must be (B,), B > 0; got {tuple(chosen.shape)}, {tuple(rejected.shape)}")
    if bool(torch.isnan(chosen).any() or torch.isnan(rejected).any()):
        raise ValueError("chosen and rejected must not hold NaN")
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean()
