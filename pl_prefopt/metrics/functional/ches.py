"""Similarity of the two samples of a pair to the model: CHES.

Legend: B pairs, T and S positions of the two samples, D features.
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
    of a text are those that predict the tokens of the sample: from the last prompt token to the second-last token of
    the sample. Scores of different models are not comparable; use ranks.

    Args:
        chosen_hidden: (B, T, D).
        chosen_mask: (B, T) bool, at least one True per row.
        rejected_hidden: (B, S, D).
        rejected_mask: (B, S) bool, at least one True per row.
        normalize: divide by the counts of positions. The plain sum is for correlation studies, not for filtering.

    Returns:
        (B,) float32; sums are accumulated in float64, so 8k tokens of a bf16 model do not overflow.

    Raises:
        ValueError: shapes that do not agree, a row without positions.

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
    """(B,) numbers of positions, all > 0."""
    if hidden.dim() != 3 or mask.shape != hidden.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"{name}_hidden must be (B, T, D) with a bool mask (B, T), got {tuple(hidden.shape)} and {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    counts = mask.sum(-1)
    if bool((counts == 0).any()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"{name}_mask must have a position in every row, got rows {empty} without one")
    return counts


def _masked_sum(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, D) float64 sum over the masked positions."""
    return hidden.masked_fill(~mask[..., None], 0).sum(1, dtype=torch.float64)
