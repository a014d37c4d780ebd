"""Objectives without a reference read plain token sums."""

from __future__ import annotations

from dataclasses import replace

import torch

from pl_prefopt.objectives import ORPO, SFT, SimPO
from tests.objectives.scores import MEANS, S

torch.set_num_threads(1)


def test_a_likelihood_term_does_not_see_the_reference_or_the_reduction() -> None:
    other = replace(S, logps=S.logps / S.lengths, logratios=S.logratios + 5)  # type: ignore[operator]
    for objective in (SFT(), SFT("sum"), SimPO(), ORPO()):
        torch.testing.assert_close(objective(other), objective(S), atol=0, rtol=0)


def test_hand_made_scores_without_plain_sums_use_the_log_probabilities() -> None:
    torch.testing.assert_close(SFT()(replace(S, sum_logps=None)), -MEANS[:, 0])
