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
    IRPO,
    LDDPO,
    MODPO,
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
    PlackettLuce,
    RobustDPO,
    SimPO,
    SoftmaxDPO,
)  # fmt: skip
from pl_prefopt.scores import PairScores

torch.set_num_threads(1)


def scores(k: int = 2, **extra: Tensor) -> PairScores:
    """Three groups of k samples."""
    g = torch.Generator().manual_seed(k)
    lengths = torch.randint(2, 9, (3, k), generator=g)
    logps = -2.0 * lengths * torch.rand(3, k, generator=g) - 0.1
    ref = logps + torch.randn(3, k, generator=g)
    kl, collision = torch.rand(3, k, generator=g), -torch.rand(3, k, generator=g)
    return PairScores(
        logratios=logps - ref,
        logps=logps,
        ref_logps=ref,
        sum_logps=logps,
        lengths=lengths,
        kl=kl,
        collision=collision,
        columns=extra,
    )


S = scores()
W, R = S.chosen, S.rejected
assert S.kl is not None
assert S.logps is not None
assert S.lengths is not None
assert S.collision is not None
MEANS = S.logps / S.lengths
PROB, MARGIN = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.0, 0.1, 0.4])
MARGINS = torch.tensor([[[0.2], [-0.2]], [[-0.1], [0.4]], [[0.3], [0.1]]])

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


@pytest.mark.parametrize("objective", [DPO(0.3), NormalizedDPO(0.3), LDDPO(0.3)], ids=repr)
def test_columns_of_the_dpo_family(objective: Objective) -> None:
    soft = objective(scores(preference_prob=PROB, margin=MARGIN))
    torch.testing.assert_close(soft, losses.dpo_loss(W, R, beta=0.3, label_smoothing=1 - PROB, margin=MARGIN))


def test_a_certain_label_column_is_no_column() -> None:
    torch.testing.assert_close(DPO()(scores(preference_prob=torch.ones(3))), DPO()(S), atol=0, rtol=0)


def test_adpo_reads_soft_labels() -> None:
    want = losses.adpo_pairwise_loss(W, R, beta=2.0, preference_prob=PROB)
    torch.testing.assert_close(ADPO(0.5)(scores(preference_prob=PROB)), want)


def test_modpo() -> None:
    given = scores(margins=MARGINS)
    want = losses.modpo_loss(W, R, MARGINS[:, 0], MARGINS[:, 1], weights=torch.tensor([0.25, 0.75]), beta=0.3)
    objective = MODPO([0.25, 0.75], beta=0.3)
    torch.testing.assert_close(objective(given), want)
    reward = objective.rewards(given)
    torch.testing.assert_close(torch.nn.functional.softplus(reward[:, 1] - reward[:, 0]), want)
    assert MODPO().weights == [0.5, 0.5]


def test_modpo_keeps_the_digits_of_its_weights() -> None:
    r, m = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.tensor([[[2.0], [1.0]]], dtype=torch.float64)
    given, objective = PairScores(logratios=r, columns={"margins": m}), MODPO([0.9, 0.1], beta=0.1)
    # R = (.1 - .2)/.9 and (-.1 - .1)/.9
    want = torch.tensor([[-1 / 9, -2 / 9]], dtype=torch.float64)
    torch.testing.assert_close(objective.rewards(given), want, atol=1e-15, rtol=0)
    loss = torch.tensor([math.log1p(math.exp(-1 / 9))], dtype=torch.float64)
    torch.testing.assert_close(objective(given), loss, atol=1e-15, rtol=0)


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


def test_a_likelihood_term_does_not_see_the_reference_or_the_reduction() -> None:
    other = replace(S, logps=S.logps / S.lengths, logratios=S.logratios + 5)  # type: ignore[operator]
    for objective in (SFT(), SFT("sum"), SimPO(), ORPO()):
        torch.testing.assert_close(objective(other), objective(S), atol=0, rtol=0)


def test_hand_made_scores_without_plain_sums_use_the_log_probabilities() -> None:
    torch.testing.assert_close(SFT()(replace(S, sum_logps=None)), -MEANS[:, 0])


def test_lists() -> None:
    relevance = torch.tensor([[3.0, 2, 0, 1], [1, 1, 0, 0], [2, 0, 0, 1]])
    ranks = torch.tensor([[4.0, 3, 2, 1]]).expand(3, 4)
    given = scores(4, relevance=relevance, ranks=ranks)
    r = given.logratios
    torch.testing.assert_close(
        IRPO(0.7, "mean", "mean")(given),
        losses.irpo_loss(r, relevance, ranks, beta=0.7, opponents="mean", items="mean"),
    )
    listed = scores(4, relevance=relevance)
    natural = torch.arange(1.0, 5.0).expand(3, 4)
    torch.testing.assert_close(IRPO()(listed), losses.irpo_loss(r, relevance, natural))
    torch.testing.assert_close(PlackettLuce(0.7)(listed), losses.plackett_luce_loss(0.7 * r, relevance))
    torch.testing.assert_close(SoftmaxDPO(0.7)(listed), losses.softmax_dpo_loss(r[:, 0], r[:, 1:], beta=0.7))
    q = torch.softmax(relevance / 0.4, -1)
    torch.testing.assert_close(ADPO(0.7, 0.4, "softmax")(listed), losses.adpo_listwise_loss(r, q, tau=0.7))
    torch.testing.assert_close(ADPO(0.7)(scores(4, targets=q)), losses.adpo_listwise_loss(r, q, tau=0.7))


def test_ragged_lists() -> None:
    relevance = torch.tensor([[3.0, 2, 1, 9], [1, 1, 0, 9], [2, 0, 1, 9]])
    mask = torch.tensor([[True, True, True, False]]).expand(3, 4)
    ragged = replace(scores(4, relevance=relevance), mask=mask)
    short = replace(ragged, logratios=ragged.logratios[:, :3], mask=None, columns={"relevance": relevance[:, :3]})
    for objective in (
        IRPO(),
        PlackettLuce(),
        SoftmaxDPO(),
        *(ADPO(targets=t) for t in ("zscore", "softmax", "hard", "kde")),
    ):
        torch.testing.assert_close(objective(ragged), objective(short), atol=1e-6, rtol=1e-6)


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
