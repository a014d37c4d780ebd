"""Objectives in YAML, in checkpoints, and what they refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from pl_prefopt import objectives
from pl_prefopt.objectives import (
    ADPO,
    BCO,
    DPO,
    DPOP,
    EXO,
    FDPO,
    IPO,
    IRPO,
    LDDPO,
    MODPO,
    ORPO,
    SFT,
    TDPO,
    WPO,
    DiscoPOP,
    Hinge,
    Mixture,
    Objective,
    PlackettLuce,
    RobustDPO,
    SimPO,
    list_targets,
)  # fmt: skip
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.configurable import from_config, to_config

torch.set_num_threads(1)
CLASSES = [
    c for c in (getattr(objectives, n) for n in objectives.__all__) if isinstance(c, type) and c is not Objective
]
NESTED = {Mixture: {"objectives": [DPO(0.2), SFT()], "weights": [1.0, 0.5]}, WPO: {"objective": IPO(average="mean")}}


def build(cls: type[Objective]) -> Objective:
    return cls(**NESTED.get(cls, {}))  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", CLASSES)
def test_plain_values_out_and_in(cls: type[Objective]) -> None:
    objective = build(cls)
    plain = to_config(objective)
    assert from_config(plain, Objective) == objective
    assert set(plain["init_args"]) == set(inspect.signature(cls).parameters)
    assert isinstance(objective.needs, frozenset)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_argument_is_typed_and_described(cls: type[Objective]) -> None:
    for name, parameter in inspect.signature(cls).parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty, name
        assert parameter.default is not inspect.Parameter.empty or name in ("objective", "objectives")
        assert f"{name}:" in (inspect.getdoc(cls) or "") or cls.__name__ in (
            "NormalizedDPO",
            "Hinge",
            "NCA",
            "SPPO",
            "APOZero",
            "APODown",
        )


def parse(value: Any) -> Objective:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    config = parser.parse_object({"objective": value})
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return make(config)["objective"]


@pytest.mark.parametrize("cls", [c for c in CLASSES if c not in NESTED])
def test_a_bare_name_in_yaml(cls: type[Objective]) -> None:
    assert parse(cls.__name__) == cls()


def test_nested_yaml() -> None:
    value = {
        "class_path": "Mixture",
        "init_args": {
            "objectives": [
                {"class_path": "WPO", "init_args": {"objective": {"class_path": "DPO", "init_args": {"beta": 0.2}}}},
                {"class_path": "SFT"},
            ],
            "weights": [1, 0.005],
        },
    }
    assert parse(value) == Mixture([WPO(DPO(0.2)), SFT()], [1, 0.005])


Refusal = tuple[Callable[[], Any], str]
NAN = float("nan")
REFUSALS: list[Refusal] = [
    (lambda: DPO(label_smoothing=0.5), r"label_smoothing must lie in \[0.0, 0.5\), got 0.5"),
    (lambda: DPO(margin=NAN), r"margin must lie in .*got nan"),
    (lambda: IPO(average="max"), r"average must be one of sum, mean, got 'max'"),
    (lambda: SFT("max"), r"average must be one of sum, mean, got 'max'"),
    (lambda: IRPO(average="max"), r"average must be one of"),
    (lambda: IRPO(opponents="all"), r"opponents must be one of sum, mean, got 'all'"),
    (lambda: IRPO(items="all"), r"items must be one of sum, mean, got 'all'"),
    (lambda: BCO(delta=float("inf")), r"delta must lie in .*got inf"),
    (lambda: RobustDPO(label_smoothing=0.5), r"label_smoothing must lie in"),
    (lambda: EXO(label_smoothing=0.0), r"label_smoothing must lie in \(0.0, 0.5\), got 0.0"),
    (lambda: DiscoPOP(tau=0.0), r"tau must lie in"),
    (lambda: DPOP(penalty=-1.0), r"penalty must lie in"),
    (lambda: FDPO(divergence="kl"), r"divergence must be one of reverse_kl"),
    (lambda: FDPO(alpha=1.0), r"alpha must lie in \(0.0, 1.0\), got 1.0"),
    (lambda: TDPO(alpha=-0.1), r"alpha must lie in"),
    (lambda: TDPO(variant="tdpo3"), r"variant must be one of tdpo2, tdpo1"),
    (lambda: LDDPO(alpha=1.1), r"alpha must lie in \[0.0, 1.0\], got 1.1"),
    (lambda: SimPO(gamma=-0.1), r"gamma must lie in"),
    (lambda: ADPO(tau=0.0), r"tau must be a finite number > 0, got 0.0"),
    (lambda: ADPO(beta_r=-1.0), r"beta_r must be a finite number > 0"),
    (lambda: ADPO(targets="best"), r"targets must be one of softmax, zscore, hard, kde, got 'best'"),
    (lambda: ADPO(label=1.1), r"label must lie in \[0.0, 1.0\], got 1.1"),
    (lambda: MODPO([0.5, 0.6]), r"weights must sum to 1"),
    (lambda: MODPO([0.0, 1.0]), r"the first must be > 0"),
    (lambda: MODPO([]), r"weights must be \(1 \+ M,\)"),
    (lambda: Mixture([]), r"objectives must hold at least one objective"),
    (
        lambda: Mixture([DPO()], [1.0, 2.0]),
        r"weights must be 1 finite numbers >= 0, one per objective, got \[1.0, 2.0\]",
    ),
    (lambda: Mixture([DPO(), SFT()], [1.0, -1.0]), r"weights must be 2 finite numbers >= 0"),
    (lambda: Mixture([DPO(), SFT()], [1.0, NAN]), r"weights must be 2 finite numbers >= 0"),
    (lambda: Mixture([DPO(), SFT()], [0.0, 0.0]), r"weights must not all be 0"),
    (lambda: WPO(DPO(), clamp=0.0), r"clamp must be a number > 0 or None, got 0.0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[str(i) for i in range(len(REFUSALS))])
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("cls", [c for c in CLASSES if "beta" in inspect.signature(c).parameters])
@pytest.mark.parametrize("beta", [0.0, -0.1, NAN])
def test_refused_beta(cls: type[Objective], beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be a finite number > 0"):
        cls(beta=beta)  # type: ignore[call-arg]


BARE = PairScores(logratios=torch.zeros(2, 3), columns={"margin": torch.zeros(2)})
MISSING: list[tuple[Objective, str]] = [
    (IRPO(), r"IRPO needs the data column 'relevance', which this batch does not have \(its columns: margin\)"),
    (PlackettLuce(), r"PlackettLuce needs the data column 'relevance'"),
    (MODPO(), r"MODPO needs the data column 'margins'"),
    (TDPO(), r"TDPO needs scores.kl, which is None"),
    (WPO(Hinge()), r"WPO needs scores.collision, which is None"),
    (SFT(), r"SFT needs scores.logps, which is None"),
    (SimPO(), r"SimPO needs scores.logps, which is None"),
    (ORPO(), r"ORPO needs scores.logps, which is None"),
]


@pytest.mark.parametrize(("objective", "message"), MISSING, ids=[repr(o) for o, _ in MISSING])
def test_what_is_missing_is_named(objective: Objective, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(BARE)


def test_rewards_of_a_list_must_be_finite() -> None:
    mask = torch.tensor([[True, True, False]])
    rewards = torch.tensor([[1.0, NAN, 0.0]])
    with pytest.raises(ValueError, match=r"rewards must be finite, got nan"):
        list_targets(rewards, mask, kind="zscore", beta_r=0.5)
    with pytest.raises(ValueError, match=r"kind must be one of softmax, zscore, hard, kde, got 'rank'"):
        list_targets(rewards.nan_to_num(), mask, kind="rank", beta_r=0.5)
    assert list_targets(rewards.nan_to_num().masked_fill(~mask, NAN), mask, kind="kde", beta_r=0.5)[0, 2] == 0
