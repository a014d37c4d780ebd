"""Data columns of the DPO family."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt import losses
from pl_prefopt.objectives import DPO, LDDPO, NormalizedDPO, Objective
from tests.objectives.scores import R, S, W, scores

torch.set_num_threads(1)
PROB, MARGIN = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.0, 0.1, 0.4])


@pytest.mark.parametrize("objective", [DPO(0.3), NormalizedDPO(0.3), LDDPO(0.3)], ids=repr)
def test_columns_of_the_dpo_family(objective: Objective) -> None:
    soft = objective(scores(preference_prob=PROB, margin=MARGIN))
    torch.testing.assert_close(soft, losses.dpo_loss(W, R, beta=0.3, label_smoothing=1 - PROB, margin=MARGIN))


def test_a_certain_label_column_is_no_column() -> None:
    torch.testing.assert_close(DPO()(scores(preference_prob=torch.ones(3))), DPO()(S), atol=0, rtol=0)
