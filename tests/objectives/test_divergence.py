"""f-DPO compares the rewards that it reports."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt import losses
from pl_prefopt.losses.divergence import DIVERGENCES
from pl_prefopt.objectives import FDPO
from tests.objectives.scores import R, S, W

torch.set_num_threads(1)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_loss_is_the_logistic_loss_of_the_rewards(divergence: str) -> None:
    objective = FDPO(0.3, divergence, 0.4)
    reward = objective.rewards(S)
    want = losses.f_dpo_loss(W, R, beta=0.3, divergence=divergence, alpha=0.4)
    torch.testing.assert_close(objective(S), want)
    torch.testing.assert_close(torch.nn.functional.softplus(reward[:, 1] - reward[:, 0]), want)
