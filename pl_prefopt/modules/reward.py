"""`RewardModule`: an explicit reward, trained on the pairs and lists that `TextPreferenceModule` trains policies on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_prefopt.logprobs.causal import hidden_states
from pl_prefopt.logprobs.layout import Rows, read_tokens, separate_rows
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.evaluation import Batch
from pl_prefopt.objectives import DPO, Objective
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.policies.reward_head import reward_of
from pl_prefopt.references import NoReference
from pl_prefopt.scores import PairScores, data_columns


@dataclass(frozen=True)
class RewardInputs:
    """Rows of prompt + completion, (B, K) of them, with what the batch brought beside."""

    rows: Rows
    shape: torch.Size
    columns: dict[str, Tensor]
    list_mask: Tensor | None


class RewardModule(PreferenceModule[RewardInputs, Tensor]):
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

    def prepare(self, batch: Batch) -> RewardInputs:
        """Prompt and completion in one row each."""
        tokens = read_tokens(batch)
        return RewardInputs(separate_rows(tokens), tokens.length.shape, data_columns(batch), batch.get("list_mask"))

    def last_states(self, inputs: RewardInputs) -> Tensor:
        """(B, K, H) hidden states of the last token of each completion."""
        hidden = hidden_states(self.policy, inputs.rows)
        last = (inputs.rows.attention_mask.sum(1) - 1).clamp(min=0)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].view(*inputs.shape, -1)

    def measure(self, network: nn.Module, inputs: RewardInputs, reference: Tensor | None = None) -> Tensor:
        """(B, K) rewards."""
        return reward_of(network, self.last_states(inputs))

    def assemble(self, inputs: RewardInputs, policy: Tensor, reference: Tensor | None) -> PairScores:
        """Rewards in the place of log-ratios."""
        return PairScores(logratios=policy, mask=inputs.list_mask, columns=inputs.columns)

    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The states that the reward is read from: one position each."""
        hidden = self.last_states(self.prepare(batch))
        mask = torch.ones(len(hidden), 1, dtype=torch.bool, device=hidden.device)
        return hidden[:, :1], mask, hidden[:, 1:2], mask

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Row ids and rewards (B, K)."""
        return {"index": batch["index"], "rewards": self.score(batch).logratios}
