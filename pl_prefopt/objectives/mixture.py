"""Likelihood of the chosen sample, and weighted sums of objectives."""

from __future__ import annotations

from torch import Tensor

from pl_prefopt.objectives.base import Objective, check_average
from pl_prefopt.scores import PairScores


class SFT(Objective):
    """Negative log-likelihood of the chosen sample alone; training reads neither the rejected one nor a reference.

    -log pi(y_w|x), as a mean over the tokens of each pair or as their sum; then the mean over pairs. So eight batches
    of one equal one batch of eight, unlike a mean over all tokens of a micro-batch (TRL).

    Args:
        average: "mean" or "sum" over tokens.
    """

    needs = frozenset({"logps", "lengths"})

    def __init__(self, average: str = "mean") -> None:
        self.average = check_average(average)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        assert scores.sum_logps is not None
        assert scores.lengths is not None
        total = -scores.sum_logps[:, 0]
        return total / scores.lengths[:, 0].clamp(min=1) if self.average == "mean" else total

    def rewards(self, scores: PairScores) -> Tensor:
        """Log-probability per token."""
        assert scores.sum_logps is not None
        assert scores.lengths is not None
        return scores.sum_logps.detach() / scores.lengths.clamp(min=1)


class Mixture(Objective):
    """sum_i w_i objective_i, e.g. DPO + SFT; rewards are those of the first objective.

    Args:
        objectives: the parts, the first of which names the reward.
        weights: one finite number >= 0 per part; None weighs all by 1.

    Raises:
        ValueError: no part, weights of another count or below zero, or parts that reduce tokens in different ways (a
            likelihood term next to them is fine: it brings its own).
    """

    def __init__(self, objectives: list[Objective], weights: list[float] | None = None) -> None:
        if not objectives:
            raise ValueError("objectives must hold at least one objective")
        if weights is not None and (len(weights) != len(objectives) or not all(0 <= w < float("inf") for w in weights)):
            raise ValueError(f"weights must be {len(objectives)} finite numbers >= 0, got {weights}")
        self.objectives = objectives
        self.weights = weights
        ratios = [o for o in objectives if not isinstance(o, SFT)]
        for other in ratios[1:]:
            if other.reduction != ratios[0].reduction:
                raise ValueError(
                    f"{type(ratios[0]).__name__} and {type(other).__name__} reduce token log-probabilities in "
                    f"different ways ({ratios[0].reduction}, {other.reduction}), so they cannot share one forward pass"
                )
        self._leading = (ratios or objectives)[0]
        self.beta = self._leading.beta
        self.needs = frozenset().union(*(o.needs for o in objectives))

    @property
    def reduction(self) -> str:
        """That of the parts that use log-ratios."""
        return self._leading.reduction

    def reduce_tokens(self, values: Tensor, mask: Tensor) -> Tensor:
        """As the parts that use log-ratios do."""
        return self._leading.reduce_tokens(values, mask)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) weighted sum."""
        weights = self.weights or [1.0] * len(self.objectives)
        total = weights[0] * self.objectives[0](scores)
        for weight, objective in zip(weights[1:], self.objectives[1:], strict=True):
            total = total + weight * objective(scores)
        return total

    def rewards(self, scores: PairScores) -> Tensor:
        """Those of the first part."""
        return self.objectives[0].rewards(scores)


class WPO(Objective):
    """Another objective, each pair weighted by how likely its tokens are under the policy (WPO, 2406.11827).

    weight = sg[w_w w_l], w = exp(mean_t(log p_t - log sum_v p_v^2)). TRL clamped the product at 1 until 0.28.

    Args:
        objective: what is weighted.
        clamp: upper bound of the product; None leaves it unbounded (1.98 per side was seen for p = [.5, ...]).
    """

    def __init__(self, objective: Objective, clamp: float | None = None) -> None:
        if clamp is not None and not clamp > 0:
            raise ValueError(f"clamp must be > 0 or None, got {clamp}")
        self.objective = objective
        self.clamp = clamp
        self.beta = objective.beta
        self.needs = objective.needs | {"collision"}

    @property
    def reduction(self) -> str:
        """That of the inner objective."""
        return self.objective.reduction

    def reduce_tokens(self, values: Tensor, mask: Tensor) -> Tensor:
        """As the inner objective does."""
        return self.objective.reduce_tokens(values, mask)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        assert scores.collision is not None
        weight = scores.collision.detach().sum(-1).exp()
        weight = weight if self.clamp is None else weight.clamp(max=self.clamp)
        return weight * self.objective(scores)

    def rewards(self, scores: PairScores) -> Tensor:
        """Those of the inner objective."""
        return self.objective.rewards(scores)
