"""`Objective`: hyper-parameters of a loss, and what the loss needs from a module."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, positive
from pl_prefopt.utilities.configurable import Configurable


class Objective(Configurable):
    """Maps the scores of a batch to one loss per pair or list.

    `needs` says what a module must provide: "reference", "rejected", "logps" and "lengths" (token sums and counts),
    "kl" (full distributions of policy and reference), "collision" (WPO), "list", and the data columns
    "preference_prob", "margins", "relevance", "ranks".
    """

    needs: frozenset[str] = frozenset({"reference", "rejected"})
    """What a module must provide."""
    beta: float = 1.0
    reads_logratios: bool = True
    """False where the loss brings its own token reduction (SFT, SimPO, ORPO): it can join any mixture."""

    @abstractmethod
    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss, unreduced."""

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Reduce token log-probabilities to one number per sample; the same for policy and reference.

        Args:
            values: (B, K, T), zero outside the mask.
            mask: (B, K, T) bool.
            weights: (B, K, T) the data column `token_weights`; None weighs all tokens by 1.

        Returns:
            (B, K); by default the weighted sum.
        """
        return token_sum(values, weights)

    def rewards(self, scores: PairScores) -> Tensor:
        """(B, K) implicit reward, without gradient, for accuracy and margin. Default: beta * log-ratio."""
        return self.beta * scores.logratios.detach()


def token_sum(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """(B, K, T) -> (B, K) weighted sum over the tokens of each sample."""
    return (values if weights is None else values * weights).sum(-1)


def token_mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """(B, K, T) -> (B, K) weighted mean over the tokens of each sample."""
    if weights is None:
        return values.sum(-1) / mask.sum(-1).clamp(min=1)
    total = (mask * weights).sum(-1)
    return (values * weights).sum(-1) / torch.where(total > 0, total, torch.ones_like(total))


def reduce_by(average: str, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted sum or weighted mean over tokens."""
    return token_mean(values, mask, weights) if average == "mean" else token_sum(values, weights)


def check_average(average: str) -> str:
    """Return "sum" or "mean", refuse anything else."""
    choice("average", average, ("sum", "mean"))
    return average


def check_beta(beta: float) -> float:
    """Return beta > 0, refuse anything else."""
    positive("beta", beta)
    return beta


def column(scores: PairScores, name: str, who: Objective) -> Tensor:
    """A data column that the objective cannot do without.

    Raises:
        ValueError: the batch has no such column; says what to add.
    """
    value = scores.columns.get(name)
    if value is None:
        have = ", ".join(sorted(scores.columns)) or "none"
        raise ValueError(
            f"{type(who).__name__} needs the data column {name!r}, which this batch does not have (its columns: "
            f"{have}); add it to every row, or choose another objective"
        )
    return value


def output(scores: PairScores, name: str, who: Objective) -> Tensor:
    """A further tensor of the module that the objective cannot do without.

    Raises:
        ValueError: the module does not give it.
    """
    value = scores.outputs.get(name)
    if value is None:
        have = ", ".join(sorted(scores.outputs)) or "none"
        raise ValueError(
            f"{type(who).__name__} needs scores.outputs[{name!r}], which this module does not give; its outputs: {have}"
        )
    return value


def given(scores: PairScores, name: str, who: Objective) -> Tensor:
    """An optional part of the scores that the objective cannot do without.

    Raises:
        ValueError: the module did not fill it in.
    """
    value = getattr(scores, name)
    if value is None:
        raise ValueError(
            f"{type(who).__name__} needs scores.{name}, which is None; a module fills in what "
            "`objective.needs` names, if its modality has it"
        )
    return value


def policy_sums(scores: PairScores, who: Objective) -> Tensor:
    """(B, K) plain token sums of the policy's log-probabilities."""
    return given(scores, "logps", who) if scores.sum_logps is None else scores.sum_logps


def policy_means(scores: PairScores, who: Objective) -> Tensor:
    """(B, K) policy log-probability per token."""
    return policy_sums(scores, who) / given(scores, "lengths", who).clamp(min=1)
