"""`Objective`: hyper-parameters of a loss, and what the loss needs from a module."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.configurable import Configurable

AVERAGES = ("sum", "mean")
"""Ways to reduce the token log-probabilities of a sample to one number."""


class Objective(Configurable):
    """Maps the scores of a batch to one loss per pair or list.

    `needs` names what a module must provide: "reference", "rejected", "logps" and "lengths" (token sums and counts),
    "kl" (full distributions of policy and reference), "collision" (WPO), "errors" (denoising errors), "list", and the
    data columns "preference_prob", "margins", "relevance", "ranks".
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
    """Weighted sum or weighted mean over tokens, as `average` says (one of `AVERAGES`)."""
    return token_mean(values, mask, weights) if average == "mean" else token_sum(values, weights)


def data_column(scores: PairScores, name: str, objective: Objective) -> Tensor:
    """A data column that the objective cannot do without.

    Raises:
        ValueError: the batch has no such column; the message says what to add.
    """
    value = scores.columns.get(name)
    if value is None:
        present = ", ".join(sorted(scores.columns)) or "none"
        raise ValueError(
            f"{type(objective).__name__} needs the data column {name!r}, which this batch does not have (its columns: "
            f"{present}); add it to every row, or choose another objective"
        )
    return value


def module_output(scores: PairScores, name: str, objective: Objective) -> Tensor:
    """A field or an entry of `outputs` of the scores that the objective cannot do without.

    Raises:
        ValueError: the module did not fill it in.
    """
    is_field = name in PairScores.__dataclass_fields__
    value: Tensor | None = getattr(scores, name) if is_field else scores.outputs.get(name)
    if value is None:
        missing = f"scores.{name}, which is None" if is_field else f"scores.outputs[{name!r}], which is missing"
        raise ValueError(
            f"{type(objective).__name__} needs {missing}; a module fills in what `objective.needs` names, if its "
            "modality has it"
        )
    return value


def policy_sums(scores: PairScores, objective: Objective) -> Tensor:
    """(B, K) plain token sums of the policy's log-probabilities."""
    return module_output(scores, "logps", objective) if scores.sum_logps is None else scores.sum_logps


def policy_means(scores: PairScores, objective: Objective) -> Tensor:
    """(B, K) policy log-probability per token."""
    return policy_sums(scores, objective) / module_output(scores, "lengths", objective).clamp(min=1)
