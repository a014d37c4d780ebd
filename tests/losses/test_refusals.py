"""What the losses refuse: each message names the argument, the value result, and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_prefopt import losses
from tests.losses.pairs import IDS, PAIRS, Pair

torch.set_num_threads(1)
ROW = torch.zeros(3)
TABLE = torch.zeros(2, 4)
SHARED = torch.tensor([1, 2])
NAN, INF = float("nan"), float("inf")
BETAS = [0.0, -0.1, NAN, INF]
each = pytest.mark.parametrize("case", PAIRS, ids=IDS)


@each
@pytest.mark.parametrize("beta", BETAS)
def test_pairwise_beta(case: Pair, beta: float) -> None:
    with pytest.raises(ValueError, match=rf"beta must be a finite number > 0, got {re.escape(str(beta))}"):
        case(ROW, ROW, beta=beta)


@each
def test_pairwise_shapes(case: Pair) -> None:
    with pytest.raises(ValueError, match=r"rejected must be \(B,\), here \(3,\), got shape \(2,\)"):
        case(ROW, torch.zeros(2))
    with pytest.raises(ValueError, match=r"chosen must be \(B,\), here \(2,\), got shape \(2, 4\)"):
        case(TABLE, TABLE)
    with pytest.raises(ValueError, match=r"rejected must be \(B,\), here \(3,\), got shape \(3, 1\)"):
        case(ROW, ROW[:, None])
    with pytest.raises(ValueError, match=r"chosen must be .*got shape \(\)"):
        case(torch.tensor(0.0), torch.tensor(0.0))


@each
def test_pairwise_integers(case: Pair) -> None:
    with pytest.raises(ValueError, match=r"chosen must be a floating tensor, got torch.int64"):
        case(ROW.long(), ROW)


def _tdpo(**options: Any) -> Tensor:
    return losses.tdpo_loss(ROW, ROW, ROW, ROW, **options)


def _ld(values: Any = TABLE, mask: Any = TABLE == 0, shared: Any = SHARED, alpha: Any = 0.5) -> Tensor:
    return losses.length_desensitized_sum(values, mask, shared, alpha=alpha)


def _pl(scores: Any = TABLE, relevance: Any = TABLE, **options: Any) -> Tensor:
    return losses.plackett_luce_loss(scores, relevance, **options)


def _irpo(logratios: Any = TABLE, relevance: Any = TABLE, ranks: Any = TABLE + 1, **options: Any) -> Tensor:
    return losses.irpo_loss(logratios, relevance, ranks, **options)


def _adpo(logratios: Any = TABLE, targets: Any = TABLE + 0.25, **options: Any) -> Tensor:
    return losses.adpo_listwise_loss(logratios, targets, **options)


def _modpo(
    weights: Any = (0.5, 0.5), chosen: Any = ROW[:, None], rejected: Any = ROW[:, None], **options: Any
) -> Tensor:
    return losses.modpo_loss(ROW, ROW, chosen, rejected, weights=torch.tensor(weights), **options)


def _row(*values: float) -> Tensor:
    return torch.tensor([values, values])


Refusal = tuple[Callable[[], Any], str]
REFUSALS: list[Refusal] = [
    # ranges
    (lambda: losses.dpo_loss(ROW, ROW, label_smoothing=1.5), r"label_smoothing must lie in \[0, 1\], got .*1.5"),
    (
        lambda: losses.dpo_loss(ROW, ROW, label_smoothing=torch.tensor([0, 0, -0.1])),
        r"label_smoothing must lie in \[0, 1\]",
    ),
    (lambda: losses.dpo_loss(ROW, ROW, label_smoothing=NAN), r"label_smoothing must be finite, got nan"),
    (
        lambda: losses.dpo_loss(ROW, ROW, margin=torch.zeros(3, 1)),
        r"margin must be one number or \(3,\), got shape \(3, 1\)",
    ),
    (lambda: losses.dpo_loss(ROW, ROW, margin=torch.tensor([0.0, INF, 0])), r"margin must be finite, got inf"),
    (
        lambda: losses.robust_dpo_loss(ROW, ROW, label_smoothing=0.5),
        r"label_smoothing must lie in \[0.0, 0.5\), got 0.5",
    ),
    (lambda: losses.robust_dpo_loss(ROW, ROW, label_smoothing=-0.1), r"label_smoothing must lie in .*got -0.1"),
    (lambda: losses.exo_loss(ROW, ROW, label_smoothing=0.0), r"label_smoothing must lie in \(0.0, 1.0\), got 0.0"),
    (lambda: losses.exo_loss(ROW, ROW, label_smoothing=1.0), r"label_smoothing must lie in .*got 1.0"),
    (lambda: losses.discopop_loss(ROW, ROW, tau=0.0), r"tau must lie in \(0.0, 1.0\], got 0.0"),
    (lambda: losses.discopop_loss(ROW, ROW, tau=1.5), r"tau must lie in .*got 1.5"),
    (lambda: losses.bco_loss(ROW, ROW, delta=torch.zeros(2)), r"delta must be one number or \(3,\), got shape \(2,\)"),
    (lambda: losses.dpop_loss(ROW, ROW, penalty=-1.0), r"penalty must lie in .*got -1.0"),
    (lambda: losses.f_dpo_loss(ROW, ROW, divergence="kl"), r"divergence must be one of reverse_kl, .*alpha, got 'kl'"),
    (lambda: losses.f_dpo_loss(ROW, ROW, divergence="alpha", alpha=1.0), r"alpha must lie in \(0.0, 1.0\), got 1.0"),
    (lambda: losses.f_dpo_loss(ROW, ROW, divergence="alpha", alpha=0.0), r"alpha must lie in .*got 0.0"),
    (lambda: losses.adpo_pairwise_loss(ROW, ROW, preference_prob=1.1), r"preference_prob must lie in \[0, 1\]"),
    (
        lambda: losses.adpo_pairwise_loss(ROW, ROW, preference_prob=torch.ones(2)),
        r"preference_prob must be one number or \(3,\)",
    ),
    (lambda: losses.adpo_pairwise_loss(ROW, ROW, preference_prob=NAN), r"preference_prob must be finite, got nan"),
    # token level
    (lambda: _tdpo(variant="tdpo3"), r"variant must be one of tdpo2, tdpo1, got 'tdpo3'"),
    (lambda: _tdpo(alpha=-0.5), r"alpha must lie in .*got -0.5"),
    (lambda: _tdpo(beta=0), r"beta must be a finite number > 0"),
    (
        lambda: losses.tdpo_loss(ROW, ROW, ROW, torch.zeros(2)),
        r"rejected_kl must be \(B,\), here \(3,\), got shape \(2,\)",
    ),
    (lambda: _ld(alpha=1.5), r"alpha must lie in \[0.0, 1.0\], got 1.5"),
    (lambda: _ld(mask=TABLE), r"bool mask of that shape, got .*torch.float32"),
    (lambda: _ld(mask=TABLE[:, :3] == 0), r"bool mask of that shape"),
    (lambda: _ld(values=ROW, mask=ROW == 0), r"values must be \(B, T\)"),
    (lambda: _ld(shared=torch.tensor([1])), r"shared_length must be \(2,\), got \(1,\)"),
    # reference-free
    (lambda: losses.simpo_loss(ROW, ROW, beta=-2.0), r"beta must be a finite number > 0, got -2.0"),
    (lambda: losses.simpo_loss(ROW, ROW, gamma=-0.1), r"gamma must lie in .*got -0.1"),
    (lambda: losses.simpo_loss(ROW, torch.zeros(2)), r"rejected_mean_logps must be \(B,\)"),
    (lambda: losses.orpo_loss(ROW, ROW, beta=0.0), r"beta must be a finite number > 0"),
    (lambda: losses.orpo_loss(ROW + 0.5, ROW), r"mean log-probabilities, which are <= 0, got 0.5"),
    # lists
    (lambda: losses.softmax_dpo_loss(ROW, TABLE), r"rejected must hold one row per chosen, 3, got shape \(2, 4\)"),
    (lambda: losses.softmax_dpo_loss(ROW, ROW), r"rejected must be \(B, K\), got shape \(3,\)"),
    (lambda: losses.softmax_dpo_loss(ROW[:2], TABLE[:, :0]), r"rows \[0, 1\] hold fewer than 1 items"),
    (lambda: losses.softmax_dpo_loss(ROW[:2], TABLE, mask=TABLE != 0), r"mask: rows \[0, 1\] hold fewer than 1 items"),
    (lambda: losses.softmax_dpo_loss(ROW[:2], TABLE, mask=TABLE), r"mask must be bool \(2, 4\), got torch.float32"),
    (lambda: losses.softmax_dpo_loss(ROW[:2], TABLE, beta=0.0), r"beta must be"),
    (lambda: _pl(TABLE[:, :1], TABLE[:, :1]), r"scores must hold lists of at least 2 items, got \(2, 1\)"),
    (lambda: _pl(relevance=TABLE[:, :3]), r"relevance must be \(2, 4\), got shape \(2, 3\)"),
    (lambda: _pl(relevance=TABLE + NAN), r"relevance must be finite, got nan"),
    (lambda: _pl(mask=_row(1, 0, 0, 0).bool()), r"mask: rows \[0, 1\] hold fewer than 2 items"),
    (lambda: _irpo(TABLE[:, :1], TABLE[:, :1], TABLE[:, :1] + 1), r"logratios must hold lists of at least 2 items"),
    (lambda: _irpo(relevance=TABLE - 1), r"relevance must be finite and >= 0, got -1.0"),
    (lambda: _irpo(relevance=TABLE + NAN), r"relevance must be finite and >= 0, got nan"),
    (lambda: _irpo(relevance=TABLE[:1]), r"relevance must be \(2, 4\), got shape \(1, 4\)"),
    (lambda: _irpo(ranks=TABLE), r"ranks must be finite and >= 1, got 0.0"),
    (lambda: _irpo(ranks=TABLE[:, :2] + 1), r"ranks must be \(2, 4\), got shape \(2, 2\)"),
    (lambda: _irpo(opponents="max"), r"opponents must be one of sum, mean, got 'max'"),
    (lambda: _irpo(items="max"), r"items must be one of sum, mean, got 'max'"),
    (lambda: _irpo(mask=_row(1, 0, 0, 0).bool()), r"mask: rows \[0, 1\] hold fewer than 2 items"),
    (lambda: _irpo(mask=TABLE[:, :3] == 0), r"mask must be bool \(2, 4\)"),
    (lambda: _irpo(beta=-1.0), r"beta must be"),
    (lambda: _adpo(TABLE[:, :1], TABLE[:, :1] + 1), r"logratios must hold lists of at least 2 items"),
    (lambda: _adpo(targets=TABLE + 0.3), r"targets must be distributions .*sums from 1.2000 to 1.2000"),
    (lambda: _adpo(targets=_row(1.5, -0.5, 0.0, 0.0)), r"targets must be distributions .*minimum of -0.5000"),
    (lambda: _adpo(targets=TABLE + NAN), r"targets must be distributions"),
    (lambda: _adpo(targets=TABLE[:, :3]), r"targets must be \(2, 4\), got shape \(2, 3\)"),
    (lambda: _adpo(mask=_row(1, 1, 0, 0).bool()), r"targets must be distributions .*sums from 0.5000"),
    (lambda: _adpo(tau=0.0), r"tau must be a finite number > 0, got 0.0"),
    # several objectives
    (lambda: _modpo([0.5, 0.6]), r"weights must sum to 1, got 0.5, 0.6 with sum 1.1000"),
    (lambda: _modpo([1.5, -0.5]), r"weights must not be negative and the first must be > 0, got 1.5, -0.5"),
    (lambda: _modpo([0.0, 1.0]), r"the first must be > 0, got 0, 1"),
    (lambda: _modpo([NAN, 0.5]), r"weights must not be negative"),
    (lambda: _modpo([0.5, 0.25, 0.25]), r"weights must be \(1 \+ M,\) = \(2,\) for M = 1 margins, got 0.5, 0.25, 0.25"),
    (lambda: _modpo(chosen=ROW), r"chosen_margins must be \(B, M\) = \(3, M\), got shape \(3,\)"),
    (lambda: _modpo(rejected=torch.zeros(3, 2)), r"rejected_margins must be \(B, M\)"),
    (lambda: _modpo(chosen=ROW[:, None] + NAN), r"chosen_margins must be finite, got nan"),
    (lambda: _modpo(beta=0.0), r"beta must be"),
    # two adapters
    (lambda: losses.fast_slow_loss(ROW, ROW, ROW, ROW, alpha=-1.0), r"alpha must lie in .*got -1.0"),
    (lambda: losses.fast_slow_loss(ROW, ROW, ROW, ROW, clamp=0.0), r"clamp must be a finite number > 0, got 0.0"),
    (lambda: losses.fast_slow_loss(ROW, ROW, ROW, ROW, beta=0.0), r"beta must be"),
    (lambda: losses.fast_slow_loss(ROW, ROW, ROW, TABLE), r"slow_rejected must be \(B,\)"),
    # diffusion
    (lambda: losses.denoising_logratios(ROW, torch.zeros(2)), r"reference_errors must be \(B,\)"),
    (lambda: losses.diffusion_dpo_loss(ROW, ROW, ROW, ROW, beta=0.0), r"beta must be"),
    (lambda: losses.diffusion_dpo_loss(ROW, ROW[:2], ROW, ROW), r"rejected_errors must be \(B,\)"),
    (lambda: losses.ddo_loss(ROW, ROW, alpha=-1.0), r"alpha must lie in .*got -1.0"),
    (lambda: losses.ddo_loss(ROW, ROW, beta=0.0), r"beta must be"),
    (lambda: losses.ddo_loss(ROW, torch.zeros(2)), r"fake must be \(B,\)"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[str(i) for i in range(len(REFUSALS))])
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_nan_log_ratio_gives_nan_so_that_the_module_can_name_the_row() -> None:
    broken = torch.tensor([NAN, 0.0, 0.0])
    for case in PAIRS:
        out = case(broken, ROW)
        assert torch.isnan(out).tolist() == [True, False, False]


def test_an_empty_batch_has_no_loss() -> None:
    for case in PAIRS:
        assert case(ROW[:0], ROW[:0]).shape == (0,)
