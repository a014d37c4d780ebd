"""Target distributions over the items of a list, from their rewards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.utilities.checks import choice, finite, positive


def list_targets(rewards: Tensor, mask: Tensor, *, kind: str, beta_r: float) -> Tensor:
    """Target distributions over each list's real items, as `ADPO` describes them.

    Args:
        rewards: (B, K), higher is better, finite at real items.
        mask: (B, K) bool, False at padding.
        kind: softmax, zscore, hard or kde.
        beta_r: temperature, > 0; without effect on hard.

    Returns:
        (B, K) float64, 0 at padding, rows sum to 1.

    Raises:
        ValueError: an unknown kind, beta_r <= 0, rewards that are not finite.
    """
    choice("kind", kind, tuple(TARGETS))
    positive("beta_r", beta_r)
    finite("rewards", rewards[mask])
    values = TARGETS[kind](rewards.double().masked_fill(~mask, 0.0), mask)
    temperature = 1.0 if kind == "hard" else beta_r
    return (values / temperature).masked_fill(~mask, float("-inf")).softmax(-1)


def _moments(rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    count = mask.sum(-1, keepdim=True)
    mean = (rewards * mask).sum(-1, keepdim=True) / count
    variance = ((rewards - mean).square() * mask).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return mean, variance.sqrt()


def _zscore(rewards: Tensor, mask: Tensor) -> Tensor:
    mean, std = _moments(rewards, mask)
    return (rewards - mean) / (std + 1e-8)


def _hard(rewards: Tensor, mask: Tensor) -> Tensor:
    best = rewards.masked_fill(~mask, float("-inf")).amax(-1, keepdim=True)
    return torch.where(rewards == best, 0.0, float("-inf")).to(rewards.dtype)


def _kde(rewards: Tensor, mask: Tensor) -> Tensor:
    _, std = _moments(rewards, mask)
    spread = rewards.masked_fill(~mask, float("nan")).nanquantile(torch.tensor([0.25, 0.75]).to(rewards), dim=-1)
    robust = ((spread[1] - spread[0]) / 1.34)[:, None]
    width = torch.where(robust > 0, torch.minimum(std, robust), std).clamp(min=1e-8)
    width = 0.9 * width * mask.sum(-1, keepdim=True).double().pow(-0.2)
    steps = (rewards[:, :, None] - rewards[:, None, :]) / width[..., None]
    cdf = 0.5 * (1 + torch.erf(steps / math.sqrt(2)))
    return (cdf * mask[:, None, :]).sum(-1) / mask.sum(-1, keepdim=True)


TARGETS = {"softmax": lambda rewards, mask: rewards, "zscore": _zscore, "hard": _hard, "kde": _kde}
