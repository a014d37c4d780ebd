"""Losses of the policy's mean token log-probabilities, without a reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.utilities.checks import positive, rows, within


def simpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, beta: float = 2.0, gamma: float = 0.5
) -> Tensor:
    """SimPO: l(beta (m_w - m_l) - gamma), m = log pi(y|x) / |y| (Meng et al. 2024, 2405.14734).

    Args:
        chosen_mean_logps: (B,) nats per token, <= 0.
        rejected_mean_logps: (B,).
        beta: 2 to 2.5 in the paper (unverified).
        gamma: target margin in units of reward, .3 to 1.6 in the paper (unverified); TRL's gamma is the same number.
    """
    rows(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    positive("beta", beta)
    within("gamma", gamma, 0.0, math.inf, open_high=True)
    return softplus(gamma - beta * (wide(chosen_mean_logps) - wide(rejected_mean_logps)))


def orpo_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """ORPO: -m_w + beta l(o_w - o_l), o = m - log(1 - e^m), m = log pi(y|x) / |y| (Hong et al. 2024, 2403.07691).

    The likelihood term covers the response only (TRL's covers prompt and response; unverified).

    Args:
        chosen_mean_logps: (B,) nats per token, <= 0.
        rejected_mean_logps: (B,).
        beta: the paper's lambda, > 0.
    """
    rows(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    positive("beta", beta)
    m_w, m_l = wide(chosen_mean_logps), wide(rejected_mean_logps)
    highest = max(float(m.detach().amax()) for m in (m_w, m_l)) if m_w.numel() else 0.0
    if highest > 1e-3:
        raise ValueError(f"orpo_loss takes mean log-probabilities, which are <= 0, got {highest}")
    return -m_w + beta * softplus(_log_odds(m_l) - _log_odds(m_w))


def _log_odds(mean_logps: Tensor) -> Tensor:
    """Log p - log(1 - p) with p = e^m < 1, from whichever form of log(1 - p) keeps its digits."""
    m = mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).eps)
    near = m > -math.log(2)
    safe_near, safe_far = torch.where(near, m, -1.0), torch.where(near, -1.0, m)
    return m - torch.where(near, torch.log(-torch.expm1(safe_near)), torch.log1p(-torch.exp(safe_far)))
