"""TDPO and LD-DPO: what they read of the tokens."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt import losses
from pl_prefopt.objectives import LDDPO, TDPO
from tests.objectives.scores import R, S, W

torch.set_num_threads(1)


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_tdpo_reads_the_sequential_kl_of_both_samples(variant: str) -> None:
    assert S.kl is not None
    objective = TDPO(0.3, 0.7, variant)
    assert "kl" in objective.needs
    want = losses.tdpo_loss(W, R, S.kl[:, 0], S.kl[:, 1], beta=0.3, alpha=0.7, variant=variant)
    torch.testing.assert_close(objective(S), want)
    torch.testing.assert_close(objective.rewards(S), 0.3 * (S.logratios + S.kl))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_length_desensitized_log_ratios_vanish_where_policy_and_reference_agree(alpha: float) -> None:
    objective, tokens = LDDPO(alpha=alpha), -torch.rand(3, 2, 7)
    mask = torch.arange(7) < torch.tensor([[3, 7], [5, 5], [1, 2]])[..., None]
    policy, reference = (objective.reduce_tokens(tokens * mask, mask) for _ in range(2))
    assert (policy - reference == 0).all()


def test_the_common_length_is_that_of_the_two_samples_in_the_loss() -> None:
    values = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0]]])
    pair = LDDPO(alpha=0.5).reduce_tokens(values, values > 0)[:, :2]
    torch.testing.assert_close(pair, torch.tensor([[6.5, 11.0]]))
