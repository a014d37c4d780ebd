"""Values and gradients of every loss that TRL or Liger define, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_prefopt import losses
from tests.oracles import trl as peers

torch.set_num_threads(1)
F64 = torch.float64
SMOOTH = {"label_smoothing": 0.125}  # exact in float32, to which both peers cast it
TAU = {"tau": 0.05}

TRL_NAMES: dict[str, Callable[..., Tensor]] = {
    "sigmoid": losses.dpo_loss,
    "hinge": losses.hinge_loss,
    "exo_pair": partial(losses.exo_loss, **SMOOTH),
    "nca_pair": losses.nca_loss,
    "robust": partial(losses.robust_dpo_loss, **SMOOTH),
    "bco_pair": losses.bco_loss,
    "sppo_hard": losses.sppo_loss,
    "apo_zero": losses.apo_zero_loss,
    "apo_down": losses.apo_down_loss,
    "discopop": partial(losses.discopop_loss, **TAU),
    "ipo": losses.ipo_loss,
}


@pytest.fixture(scope="module")
def trl() -> peers.TRL:
    return peers.TRL()


def draws(seed: int = 0, rows: int = 16, scale: float = 6.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    policy = -40 + scale * torch.randn(rows, 2, generator=g, dtype=F64)
    return policy.requires_grad_(), -40 + scale * torch.randn(rows, 2, generator=g, dtype=F64)


def ratios(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    r = policy - reference
    return r[:, 0], r[:, 1]


def agree(ours: Tensor, theirs: Tensor, policy: Tensor, tolerance: float = 1e-10, mask: Tensor | None = None) -> None:
    """Value and gradient of two sums, the gradient inside the mask (peers read zeros beyond it)."""
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    inside = torch.ones_like(policy) if mask is None else mask
    gradients = [torch.autograd.grad(v, policy, retain_graph=True)[0] * inside for v in (ours, theirs)]
    assert float(gradients[0].abs().max()) > 1e-3
    torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", TRL_NAMES)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_trl(trl: peers.TRL, name: str, beta: float) -> None:
    policy, reference = draws()
    theirs = trl.sums(policy, reference, name, beta=beta, **(SMOOTH if name in ("exo_pair", "robust") else {}))
    # TRL's exo casts log(eps) to float32
    agree(
        TRL_NAMES[name](*ratios(policy, reference), beta=beta).mean(),
        theirs,
        policy,
        1e-6 if name == "exo_pair" else 1e-10,
    )


@pytest.mark.parametrize("name", [n for n in TRL_NAMES if n != "ipo"])
def test_liger(name: str) -> None:
    policy, reference = draws(1)
    theirs = peers.liger(policy, reference, name, beta=0.3, **(SMOOTH if name in ("exo_pair", "robust") else {}))
    ours = TRL_NAMES[name](*ratios(policy, reference), beta=0.3).sum()
    agree(ours, theirs, policy, 1e-6 if name == "exo_pair" else 1e-10)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("reverse_kl", "reverse_kl"), ("forward_kl", "forward_kl"), ("jsd", "js_divergence")]
)
def test_trl_divergences(trl: peers.TRL, ours: str, theirs: str) -> None:
    policy, reference = draws(2, scale=2.0)
    value = losses.f_dpo_loss(*ratios(policy, reference), beta=0.1, divergence=ours).mean()
    agree(value, trl.sums(policy, reference, "sigmoid", f_divergence_type=theirs), policy)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.875])
def test_trl_alpha_divergence_has_one_minus_our_alpha(trl: peers.TRL, alpha: float) -> None:
    policy, reference = (v.detach().float() for v in draws(3, scale=1.0))
    policy.requires_grad_()
    theirs = trl.sums(
        policy, reference, "sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 - alpha
    )
    ours = losses.f_dpo_loss(*ratios(policy, reference), beta=0.1, divergence="alpha", alpha=alpha).mean()
    agree(ours, theirs, policy, 2e-6)


def tokens(seed: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-token policy and reference log-probs of three pairs of unequal length, rows as TRL stacks them; mask."""
    g = torch.Generator().manual_seed(seed)
    lengths = [3, 7, 4, 5, 2, 4]
    policy, mask = peers.padded([(-3 * torch.rand(n, generator=g)).tolist() for n in lengths])
    reference, _ = peers.padded([(-3 * torch.rand(n, generator=g)).tolist() for n in lengths])
    return policy.requires_grad_(), reference, mask, mask.sum(1)


def test_trl_ipo_divides_by_the_token_count(trl: peers.TRL) -> None:
    policy, reference, mask, n = tokens()
    theirs = trl.loss(policy, mask, reference[:3].sum(1), reference[3:].sum(1), "ipo")
    r = (policy - reference).sum(1) / n
    agree(losses.ipo_loss(r[:3], r[3:], beta=0.1).mean(), theirs, policy)


def test_trl_sigmoid_norm(trl: peers.TRL) -> None:
    policy, reference, mask, n = tokens()
    theirs = trl.loss(policy, mask, reference[:3].sum(1), reference[3:].sum(1), "sigmoid_norm", beta=2.0)
    r = (policy - reference).sum(1) / n
    agree(losses.dpo_loss(r[:3], r[3:], beta=2.0).mean(), theirs, policy)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_trl_length_desensitized(trl: peers.TRL, alpha: float) -> None:
    policy, reference, mask, n = tokens()
    shared = torch.minimum(n[:3], n[3:]).repeat(2)
    sums: Callable[[Tensor], Tensor] = partial(
        losses.length_desensitized_sum, mask=mask.bool(), shared_length=shared, alpha=alpha
    )
    ref = sums(reference)
    theirs = trl.loss(policy, mask, ref[:3], ref[3:], "sigmoid", ld_alpha=alpha)
    r = sums(policy) - ref
    agree(losses.dpo_loss(r[:3], r[3:], beta=0.1).mean(), theirs, policy, mask=mask)


def test_trl_weighting(trl: peers.TRL) -> None:
    policy, reference, mask, n = tokens()
    collision = -0.5 * torch.rand(policy.shape, generator=torch.Generator().manual_seed(9), dtype=F64)
    args: dict[str, Any] = {"use_weighting": True, "log_sum_sq": collision * mask}
    theirs = trl.loss(policy, mask, reference[:3].sum(1), reference[3:].sum(1), "sigmoid", **args)
    r = (policy - reference).sum(1)
    mean = ((policy - collision) * mask).sum(1).detach() / n
    weight = torch.exp(mean[:3] + mean[3:])
    agree((weight * losses.dpo_loss(r[:3], r[3:], beta=0.1)).mean(), theirs, policy)


def test_trl_ignores_label_smoothing_in_sigmoid_and_we_do_not(trl: peers.TRL) -> None:
    policy, reference = draws()
    plain = trl.sums(policy, reference, "sigmoid")
    torch.testing.assert_close(trl.sums(policy, reference, "sigmoid", **SMOOTH), plain)
    ours = losses.dpo_loss(*ratios(policy, reference), **SMOOTH).mean()
    assert float((ours - plain).detach().abs()) > 1e-3


def means(seed: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (-0.05 - 3 * torch.rand(12, 2, generator=g, dtype=F64)).requires_grad_()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_simpo_of_trl_and_liger() -> None:
    m = means()
    ours = losses.simpo_loss(m[:, 0], m[:, 1], beta=2.5, gamma=0.8).sum()
    agree(ours, peers.cpo(m, loss_type="simpo", beta=2.5, simpo_gamma=0.8).sum(), m)
    agree(ours, peers.liger_simpo(m, 2.5, 0.8), m)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_orpo_of_trl_and_liger() -> None:
    m = means()
    ours = (losses.orpo_loss(m[:, 0], m[:, 1], beta=0.3) + m[:, 0]).sum()
    agree(ours, peers.liger_odds_ratio(m, 0.3), m)
    agree(ours, peers.odds_ratio(m, 0.3).sum().double(), m, 1e-5)
