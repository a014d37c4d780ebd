"""The reward of the sentiment world as a judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pl_prefopt.demo.text.world import SentimentWorld
from pl_prefopt.judges.base import Judge


class SentimentJudge(Judge):
    """Exact sentiment of continuations, in [-3, 3]; the topic is read from the prompt.

    Args:
        length_bias: added per word, a spurious preference for length that the reward does not have.
    """

    def __init__(self, length_bias: float = 0.0) -> None:
        self.length_bias = length_bias
        self._world = SentimentWorld()

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) rewards."""
        rewards = [self._world.reward(c, s) for c, s in zip(conditions, samples, strict=True)]
        return torch.tensor(rewards) + self.length_bias * torch.tensor([len(s.split()) for s in samples])
