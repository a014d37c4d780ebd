"""Losses that look inside the token sum: TDPO and LD-DPO."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.utilities.checks import choice, positive, rows, within

VARIANTS = ("tdpo2", "tdpo1")


def tdpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    variant: str = "tdpo2",
) -> Tensor:
    """Token-level DPO (Zeng et al. 2024, 2404.11999).

    tdpo1: l(beta [z - (S_l - S_w)]); tdpo2: l(beta [z - alpha (S_l - sg[S_w])]), S = sum_t KL(ref || policy) and sg =
    stop-gradient, on the chosen side only. The official configuration selects tdpo1, its function defaults to tdpo2.

    Args:
        chosen: (B,) log-ratio.
        rejected: (B,) log-ratio.
        chosen_kl: (B,) sequential KL of the chosen response, nats, >= 0.
        rejected_kl: (B,) of the rejected one.
        beta: > 0.
        alpha: weight of the KL difference, >= 0; tdpo2 only.
        variant: "tdpo2" or "tdpo1".
    """
    rows(chosen=chosen, rejected=rejected, chosen_kl=chosen_kl, rejected_kl=rejected_kl)
    positive("beta", beta)
    within("alpha", alpha, 0.0, float("inf"), open_high=True)
    choice("variant", variant, VARIANTS)
    z, s_w, s_l = wide(chosen) - wide(rejected), wide(chosen_kl), wide(rejected_kl)
    gap = s_l - s_w if variant == "tdpo1" else alpha * (s_l - s_w.detach())
    return softplus(-beta * (z - gap))


def length_desensitized_sum(values: Tensor, mask: Tensor, shared_length: Tensor, *, alpha: float) -> Tensor:
    """LD-DPO's sum over tokens: full weight up to the common length, alpha beyond it (2409.06411).

    sum_{t <= l} v_t + alpha sum_{t > l} v_t, t counted inside the mask, l = min(n_w, n_l). Use it for policy and
    reference alike, else log-ratios are not zero at the first step. The paper has no official code.

    Args:
        values: (B, T) token log-probabilities.
        mask: (B, T) bool, True at response tokens, EOS included.
        shared_length: (B,) integer l.
        alpha: weight of the tail in [0, 1]; 1 is the plain sum, 0 truncates.

    Returns:
        (B,) weighted sum.
    """
    if values.dim() != 2 or mask.shape != values.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"values must be (B, T) with a bool mask of that shape, got {tuple(values.shape)}, {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    if shared_length.shape != values.shape[:1]:
        raise ValueError(f"shared_length must be ({values.shape[0]},), got {tuple(shared_length.shape)}")
    within("alpha", alpha, 0.0, 1.0)
    inside = wide(values).masked_fill(~mask, 0.0)
    return torch.where(mask.cumsum(-1) <= shared_length[:, None], inside, alpha * inside).sum(-1)
