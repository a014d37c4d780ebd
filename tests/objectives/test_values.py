"""Every objective against the loss that it names, on scores with all that a module can give."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_prefopt import losses, objectives
from pl_prefopt.objectives import (
    ADPO,
    BCO,
    DDO,
    DPO,
    DPOP,
    EXO,
    FDPO,
    IPO,
    LDDPO,
    NCA,
    ORPO,
    SFT,
    SPPO,
    TDPO,
    WPO,
    APODown,
    APOZero,
    DiscoPOP,
    Hinge,
    Mixture,
    NormalizedDPO,
    Objective,
    RobustDPO,
    SimPO,
    SoftmaxDPO,
)  # fmt: skip
from tests.objectives.scores import MEANS, R, S, W

torch.set_num_threads(1)


assert S.kl is not None
assert S.logps is not None
assert S.collision is not None

CASES: list[tuple[Objective, Tensor]] = [
    (DPO(0.3), losses.dpo_loss(W, R, beta=0.3)),
    (DPO(0.3, label_smoothing=0.1, margin=0.2), losses.dpo_loss(W, R, beta=0.3, label_smoothing=0.1, margin=0.2)),
    (DDO(2.0, 0.3), losses.ddo_loss(W, R, alpha=2.0, beta=0.3)),
    (NormalizedDPO(0.3), losses.dpo_loss(W, R, beta=0.3)),
    (LDDPO(0.3), losses.dpo_loss(W, R, beta=0.3)),
    (IPO(0.3), losses.ipo_loss(W, R, beta=0.3)),
    (Hinge(0.3), losses.hinge_loss(W, R, beta=0.3)),
    (NCA(0.3), losses.nca_loss(W, R, beta=0.3)),
    (BCO(0.3, delta=0.1), losses.bco_loss(W, R, beta=0.3, delta=0.1)),
    (SPPO(0.3), losses.sppo_loss(W, R, beta=0.3)),
    (APOZero(0.3), losses.apo_zero_loss(W, R, beta=0.3)),
    (APODown(0.3), losses.apo_down_loss(W, R, beta=0.3)),
    (RobustDPO(0.3, 0.2), losses.robust_dpo_loss(W, R, beta=0.3, label_smoothing=0.2)),
    (EXO(0.3, 0.2), losses.exo_loss(W, R, beta=0.3, label_smoothing=0.2)),
    (DiscoPOP(0.3, 0.1), losses.discopop_loss(W, R, beta=0.3, tau=0.1)),
    (DPOP(0.3, 7.0), losses.dpop_loss(W, R, beta=0.3, penalty=7.0)),
    (FDPO(0.3, "alpha", 0.3), losses.f_dpo_loss(W, R, beta=0.3, divergence="alpha", alpha=0.3)),
    (TDPO(0.3, 0.7), losses.tdpo_loss(W, R, S.kl[:, 0], S.kl[:, 1], beta=0.3, alpha=0.7)),
    (TDPO(0.3, variant="tdpo1"), losses.tdpo_loss(W, R, S.kl[:, 0], S.kl[:, 1], beta=0.3, variant="tdpo1")),
    (SimPO(1.5, 0.3), losses.simpo_loss(MEANS[:, 0], MEANS[:, 1], beta=1.5, gamma=0.3)),
    (ORPO(0.3), losses.orpo_loss(MEANS[:, 0], MEANS[:, 1], beta=0.3)),
    (SFT(), -MEANS[:, 0]),
    (SFT("sum"), -S.logps[:, 0]),
    (ADPO(0.5), losses.dpo_loss(W, R, beta=2.0)),
    (ADPO(0.5, label=0.7), losses.adpo_pairwise_loss(W, R, beta=2.0, preference_prob=0.7)),
    (SoftmaxDPO(0.3), losses.dpo_loss(W, R, beta=0.3)),
    (Mixture([DPO(0.3), SFT()], [1.0, 0.5]), losses.dpo_loss(W, R, beta=0.3) - 0.5 * MEANS[:, 0]),
    (Mixture([SFT(), ORPO(0.3)]), losses.orpo_loss(MEANS[:, 0], MEANS[:, 1], beta=0.3) - MEANS[:, 0]),
    (WPO(DPO(0.3)), losses.dpo_loss(W, R, beta=0.3) * S.collision.sum(1).exp()),
]  # fmt: skip
IDS = [repr(o) for o, _ in CASES]


@pytest.mark.parametrize(("objective", "want"), CASES, ids=IDS)
def test_it_is_the_loss_that_it_names(objective: Objective, want: Tensor) -> None:
    torch.testing.assert_close(objective(S), want)


def test_every_exported_objective_is_tested() -> None:
    elsewhere = {"IRPO", "MODPO", "PAMA", "PlackettLuce"}
    elsewhere |= {"DSPO", "DenoisingSFT", "DiffusionKTO", "LinearDPO", "MaPO"}
    here = {type(o).__name__ for o, _ in CASES} | elsewhere
    assert here == {n for n in objectives.__all__ if isinstance(getattr(objectives, n), type)} - {"Objective"}


REWARDS: list[tuple[Objective, Tensor]] = [
    (DPO(0.3), 0.3 * S.logratios),
    (IPO(0.3), 0.3 * S.logratios),
    (LDDPO(0.3), 0.3 * S.logratios),
    (ADPO(0.5), 2.0 * S.logratios),
    (TDPO(0.3), 0.3 * (S.logratios + S.kl)),
    (FDPO(0.3, "forward_kl"), -0.3 * torch.exp(-S.logratios)),
    (SimPO(1.5), 1.5 * MEANS),
    (ORPO(0.3), 0.3 * MEANS),
    (SFT(), MEANS),
    (SFT("sum"), MEANS),
    (Mixture([DPO(0.3), SFT()]), 0.3 * S.logratios),
    (Mixture([SFT(), DPO(0.3)]), MEANS),
    (WPO(SimPO(1.5)), 1.5 * MEANS),
]


@pytest.mark.parametrize(("objective", "want"), REWARDS, ids=[repr(o) for o, _ in REWARDS])
def test_rewards_are_named_and_detached(objective: Objective, want: Tensor) -> None:
    tracked = replace(S, logratios=S.logratios.clone().requires_grad_(), sum_logps=S.logps.clone().requires_grad_())  # type: ignore[union-attr]
    reward = objective.rewards(tracked)
    torch.testing.assert_close(reward, want)
    assert not reward.requires_grad


ZERO: dict[str, Any] = {"IPO": 25.0, "Hinge": 1.0, "NCA": 2 * math.log(2), "BCO": 2 * math.log(2), "SPPO": 50.0}
ZERO |= {"APOZero": 1.0, "APODown": 1.0, "DiscoPOP": (1 + math.log(2)) / 2}
PAIRWISE = [
    DPO,
    NormalizedDPO,
    LDDPO,
    IPO,
    Hinge,
    NCA,
    BCO,
    SPPO,
    APOZero,
    APODown,
    RobustDPO,
    DiscoPOP,
    DPOP,
    FDPO,
    TDPO,
    ADPO,
]


@pytest.mark.parametrize("cls", PAIRWISE)
def test_the_first_step_with_defaults(cls: type[Objective]) -> None:
    still = replace(S, logratios=torch.zeros(3, 2), kl=torch.zeros(3, 2))
    torch.testing.assert_close(cls()(still), torch.full((3,), ZERO.get(cls.__name__, math.log(2))))
