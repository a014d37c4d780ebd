"""`RewardModule`: an explicit reward, trained on the pairs and lists that `TextPreferenceModule` trains policies on."""

from __future__ import annotations

from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from pl_prefopt.logprobs.causal import hidden_states
from pl_prefopt.logprobs.layout import read_tokens, separate_rows
from pl_prefopt.modules.base import Batch, PreferenceModule
from pl_prefopt.objectives import DPO, Objective
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.policies.reward_head import reward_of
from pl_prefopt.references import NoReference
from pl_prefopt.scores import PairScores, data_columns


class RewardModule(PreferenceModule):
    """A scalar reward of prompt and completion: s(x, y), read at the last token.

    It stands where other modules have log-ratios, so DPO(beta=1) is the Bradley-Terry loss -log sigmoid(s_w - s_l),
    with label smoothing, margins and soft labels as there, and `SoftmaxDPO` or `PlackettLuce` train it on lists. There
    is no reference. In metrics `chosen_logratio` is the reward of the chosen sample, `margin` beta times the gap.

    Args:
        policy: a `RewardHead`.
        objective: any objective of differences; None: DPO(beta=1.0).
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, stepped per optimizer step.
        seed: keys the random numbers of training.

    Raises:
        ValueError: an objective that needs log-probabilities, or any of the base class.
    """

    provides: ClassVar[frozenset[str]] = PreferenceModule.provides | {"relevance", "ranks"}

    def __init__(
        self,
        policy: PolicyBuilder,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, objective or DPO(beta=1.0), NoReference(), optimizer, lr_scheduler, seed)

    def last_states(self, batch: Batch) -> Tensor:
        """(B, K, H) hidden states of the last token of each completion."""
        tokens = read_tokens(batch)
        rows = separate_rows(tokens)
        hidden = hidden_states(self.policy, rows)
        last = (rows.attention_mask.sum(1) - 1).clamp(min=0)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].view(*tokens.length.shape, -1)

    def score(self, batch: Batch) -> PairScores:
        """Rewards in the place of log-ratios."""
        rewards = reward_of(self.policy, self.last_states(batch))
        return PairScores(logratios=rewards, mask=batch.get("list_mask"), columns=data_columns(batch))

    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The states that the reward is read from: one position each."""
        hidden = self.last_states(batch)
        mask = torch.ones(len(hidden), 1, dtype=torch.bool, device=hidden.device)
        return hidden[:, :1], mask, hidden[:, 1:2], mask

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Row ids and rewards (B, K)."""
        return {"index": batch["index"], "rewards": self.score(batch).logratios}
