"""How objectives reduce token log-probabilities, and which of them can share a forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pl_prefopt.objectives import (
    DPO,
    IPO,
    IRPO,
    LDDPO,
    ORPO,
    SFT,
    WPO,
    Mixture,
    NormalizedDPO,
    Objective,
    RobustDPO,
    SimPO,
)  # fmt: skip
from pl_prefopt.scores import PairScores

torch.set_num_threads(1)
VALUES = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]]])
MASK = VALUES > 0

CASES: list[tuple[Objective, list[float]]] = [
    (DPO(), [10.0, 11.0]),
    (IPO(), [10.0, 11.0]),
    (IPO(average="mean"), [2.5, 5.5]),
    (IRPO(), [2.5, 5.5]),
    (IRPO(average="sum"), [10.0, 11.0]),
    (NormalizedDPO(), [2.5, 5.5]),
    (LDDPO(alpha=1.0), [10.0, 11.0]),
    (LDDPO(alpha=0.5), [6.5, 11.0]),
    (LDDPO(alpha=0.0), [3.0, 11.0]),
    (Mixture([IPO(average="mean"), NormalizedDPO(), SFT("sum")]), [2.5, 5.5]),
    (Mixture([SFT(), LDDPO(alpha=0.5)]), [6.5, 11.0]),
    (WPO(NormalizedDPO()), [2.5, 5.5]),
]


@pytest.mark.parametrize(("objective", "want"), CASES, ids=[repr(o) for o, _ in CASES])
def test_reduction(objective: Objective, want: list[float]) -> None:
    torch.testing.assert_close(objective.reduce_tokens(VALUES, MASK), torch.tensor([want]))


class Twice(Objective):
    """Somebody's own objective with its own reduction."""

    def __call__(self, scores: PairScores) -> Tensor:
        return scores.chosen

    def reduce_tokens(self, values: Tensor, mask: Tensor) -> Tensor:
        return 2 * values.sum(-1)


@pytest.mark.parametrize(
    "parts",
    [
        [DPO(), NormalizedDPO()],
        [IPO(average="mean"), IPO()],
        [LDDPO(alpha=0.2), LDDPO(alpha=0.3)],
        [SFT(), DPO(), WPO(NormalizedDPO())],
        [DPO(), Twice()],
    ],
    ids=repr,
)
def test_parts_that_reduce_differently_are_refused_by_name(parts: list[Objective]) -> None:
    with pytest.raises(ValueError, match=r"reduce token log-probabilities in different ways") as error:
        Mixture(parts)
    first, second = [p for p in parts if p.reads_logratios][:2]
    assert repr(first) in str(error.value)
    assert repr(second) in str(error.value)


def test_parts_that_agree_are_accepted() -> None:
    Mixture([DPO(), RobustDPO(), LDDPO(alpha=1.0), SimPO(), ORPO()])
    Mixture([NormalizedDPO(), IPO(average="mean"), Mixture([SFT(), NormalizedDPO()])])
    Mixture([Twice(), SFT()])


def test_a_mixture_needs_what_its_parts_need() -> None:
    assert Mixture([DPO(), SFT()]).needs == {"reference", "rejected", "logps", "lengths"}
    assert Mixture([SFT(), ORPO()]).needs == {"rejected", "logps", "lengths"}
    assert WPO(SFT()).needs == {"rejected", "logps", "lengths", "collision"}


def test_a_part_of_weight_zero_is_not_computed() -> None:
    scores = PairScores(logratios=torch.zeros(1, 2))
    torch.testing.assert_close(Mixture([DPO(), SFT()], [2.0, 0.0])(scores), 2 * DPO()(scores))


def test_the_weight_of_wpo_is_bounded_on_request_and_has_no_gradient() -> None:
    logratios = torch.zeros(1, 2, requires_grad=True)
    collision = torch.tensor([[0.5, 0.25]], requires_grad=True)
    scores = PairScores(logratios=logratios, collision=collision)
    free, bounded = WPO(DPO())(scores), WPO(DPO(), clamp=1.0)(scores)
    # e^{.5 + .25} ln 2
    torch.testing.assert_close(free, torch.tensor([2.117 * 0.693147]), atol=1e-5, rtol=0)
    torch.testing.assert_close(bounded, DPO()(scores))
    free.sum().backward()
    assert collision.grad is None
    assert logratios.grad is not None
