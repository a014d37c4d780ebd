"""Objectives made of objectives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.objectives.base import Objective, module_output
from pl_prefopt.scores import PairScores


@dataclass
class Mixture(Objective):
    """sum_i w_i objective_i, e.g. DPO + SFT; rewards are those of the first objective.

    Parts that read log-ratios share one forward pass, so they must reduce tokens alike (IPO(average="mean") beside
    NormalizedDPO, not beside DPO). Parts that bring their own reduction (SFT, SimPO, ORPO) join any mixture.

    Args:
        objectives: the parts, the first of which names the reward.
        weights: one finite number >= 0 per part, not all 0; None weighs all by 1.

    Raises:
        ValueError: no part, weights of another count or below zero, parts that reduce tokens in different ways.
    """

    objectives: list[Objective]
    weights: list[float] | None = None

    def __post_init__(self) -> None:
        parts, weights = self.objectives, self.weights
        if not parts:
            raise ValueError("objectives must hold at least one objective, got []")
        if weights is not None and (len(weights) != len(parts) or not all(0 <= w < math.inf for w in weights)):
            raise ValueError(f"weights must be {len(parts)} finite numbers >= 0, one per objective, got {weights}")
        if weights is not None and not any(weights):
            raise ValueError(f"weights must not all be 0, got {weights}")
        self._leading = _common_reduction(parts)
        self.reads_logratios = self._leading.reads_logratios
        self.needs = frozenset[str]().union(*(part.needs for part in parts))

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """As the parts that read log-ratios do."""
        return self._leading.reduce_tokens(values, mask, weights)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) weighted sum; a part of weight 0 is not computed."""
        weights = self.weights or [1.0] * len(self.objectives)
        return torch.stack([w * part(scores) for w, part in zip(weights, self.objectives, strict=True) if w]).sum(0)

    def rewards(self, scores: PairScores) -> Tensor:
        """Those of the first part."""
        return self.objectives[0].rewards(scores)


@dataclass
class WPO(Objective):
    """Another objective, each pair weighted by how likely its tokens are under the policy (WPO, 2406.11827).

    weight = sg[w_w w_l], w = exp(mean_t(log p_t - log sum_v p_v^2)). w can exceed 1 (1.98 for p = [.5, ...]); TRL
    clamped the product at 1 until 0.28. Wrap one part of a mixture to leave its other parts unweighted.

    Args:
        objective: what is weighted.
        clamp: upper bound of the product, > 0; None leaves it unbounded.
    """

    objective: Objective
    clamp: float | None = None

    def __post_init__(self) -> None:
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp must be a number > 0 or None, got {self.clamp}")
        self.reads_logratios = self.objective.reads_logratios
        self.needs = self.objective.needs | {"rejected", "collision"}

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """As the inner objective does."""
        return self.objective.reduce_tokens(values, mask, weights)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        weight = module_output(scores, "collision", self).detach().sum(-1).exp()
        weight = weight if self.clamp is None else weight.clamp(max=self.clamp)
        return weight * self.objective(scores)

    def rewards(self, scores: PairScores) -> Tensor:
        """Those of the inner objective."""
        return self.objective.rewards(scores)


def _common_reduction(objectives: list[Objective]) -> Objective:
    """The first part that reads log-ratios, after checking on an example that all such parts reduce tokens alike."""
    readers = [o for o in objectives if o.reads_logratios] or objectives[:1]
    # Samples of different lengths and prime values: sums, means and length-dependent weights all give other numbers.
    values = torch.tensor([[[2.0, 3.0, 5.0, 7.0], [11.0, 13.0, 0.0, 0.0]]])
    first = readers[0].reduce_tokens(values, values > 0)
    for other in readers[1:]:
        if not torch.allclose(other.reduce_tokens(values, values > 0), first):
            raise ValueError(
                f"objectives: {readers[0]!r} and {other!r} reduce token log-probabilities in different ways, so they "
                "cannot share one forward pass; give both the same `average`, or train with one of them"
            )
    return readers[0]
