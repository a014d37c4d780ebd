"""Every loss of two log-ratios, with options, formula and the row values derived by hand.

The rows: r_w = (1, -1, 1), r_l = (-1/2, 1/2, -1), so z = (3/2, -3/2, 2); beta = 0.1 and x = beta z = (.15, -.15, .2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pl_prefopt import losses
from tests.oracles import formulas

CHOSEN = (1.0, -1.0, 1.0)
REJECTED = (-0.5, 0.5, -1.0)


class Pair(NamedTuple):
    """A loss, its options, its printed formula, and the hand-derived rows."""

    name: str
    loss: Callable[..., Tensor]
    options: dict[str, Any]
    formula: Callable[..., Any]
    rows: tuple[float, float, float]

    def __call__(self, chosen: Tensor, rejected: Tensor, **more: Any) -> Tensor:
        """The loss (B,) with the case's options."""
        return self.loss(chosen, rejected, **{**self.options, **more})


def grid(values: list[float]) -> tuple[Tensor, Tensor]:
    """All pairs of a chosen and a rejected value, float64."""
    pairs = torch.tensor([[w, low] for w in values for low in values], dtype=torch.float64)
    return pairs[:, 0], pairs[:, 1]


def _f(divergence: str, rows: tuple[float, float, float]) -> Pair:
    options = {"beta": 0.1, "divergence": divergence, "alpha": 0.5}
    return Pair(f"f_dpo-{divergence}", losses.f_dpo_loss, options, formulas.f_dpo, rows)


def _adpo(w: Any, low: Any, *, beta: float, preference_prob: float) -> Any:
    return formulas.adpo_pair(w, low, beta=beta, q=preference_prob)


B = {"beta": 0.1}
PAIRS = [
    # l(x): l(.15), l(-.15), l(.2)
    Pair("dpo", losses.dpo_loss, B, formulas.dpo, (0.620957, 0.770957, 0.598139)),
    # l(-x) = l(x) + x, so (1 - e) l(x) + e l(-x) = l(x) + x / 10
    Pair("cdpo", losses.dpo_loss, B | {"label_smoothing": 0.1}, formulas.dpo, (0.635957, 0.755957, 0.618139)),
    # l(x - 1/20): l(.1), l(-.2), l(.15)
    Pair("dpo-margin", losses.dpo_loss, B | {"margin": 0.05}, formulas.dpo, (0.644397, 0.798139, 0.620957)),
    # (z - 5)^2
    Pair("ipo", losses.ipo_loss, B, formulas.ipo, (12.25, 42.25, 9.0)),
    # 1 - x
    Pair("hinge", losses.hinge_loss, B, formulas.hinge, (0.85, 1.15, 0.8)),
    # [.9 l(x) - .1 (l(x) + x)] / .8 = l(x) - x / 8
    Pair(
        "robust", losses.robust_dpo_loss, B | {"label_smoothing": 0.1}, formulas.robust, (0.602207, 0.789707, 0.573139)
    ),
    # .537430 (-.620957 + .105361) + .462570 (-.770957 + 2.302585), ...
    Pair("exo", losses.exo_loss, B | {"label_smoothing": 0.1}, formulas.exo, (0.431389, 0.595872, 0.406304)),
    # l(.1) + l(-.1)/2 + l(.05)/2, l(-.1) + l(.1)/2 + l(-.05)/2, l(.1) + l(-.1)/2 + l(.1)/2
    Pair("nca", losses.nca_loss, B, formulas.nca, (1.350825, 1.425825, 1.338793)),
    # l(.1) + l(.05), l(-.1) + l(-.05), 2 l(.1)
    Pair("bco", losses.bco_loss, B, formulas.bco, (1.312856, 1.462856, 1.288793)),
    # delta = .05: l(.05) + l(.1), l(-.15) + l(0), l(.05) + l(.15)
    Pair("bco-delta", losses.bco_loss, B | {"delta": 0.05}, formulas.bco, (1.312856, 1.464104, 1.289417)),
    # 4^2 + 4.5^2, 6^2 + 5.5^2, 4^2 + 4^2
    Pair("sppo", losses.sppo_loss, B, formulas.sppo, (36.25, 66.25, 32.0)),
    # sigmoid(-.1) + sigmoid(-.05), sigmoid(.1) + sigmoid(.05), 2 sigmoid(-.1)
    Pair("apo_zero", losses.apo_zero_loss, B, formulas.apo_zero, (0.962523, 1.037477, 0.950042)),
    # sigmoid(.1) + sigmoid(-.15), sigmoid(-.1) + sigmoid(.15), sigmoid(.1) + sigmoid(-.2)
    Pair("apo_down", losses.apo_down_loss, B, formulas.apo_down, (0.987549, 1.012451, 0.975145)),
    # m = sigmoid(3), sigmoid(-3), sigmoid(4): .620957 (.047426) + .860708 (.952574), ...
    Pair("discopop", losses.discopop_loss, B | {"tau": 0.05}, formulas.discopop, (0.849338, 0.789495, 0.814763)),
    # only r_w = -1 pays: z - 5 = -6.5
    Pair("dpop", losses.dpop_loss, B | {"penalty": 5.0}, formulas.dpop, (0.620957, 1.070055, 0.598139)),
    _f("reverse_kl", (0.620957, 0.770957, 0.598139)),
    # e^{.5} - e^{-1} = 1.280842, e^{-.5} - e = -2.111751, e - e^{-1} = 2.350402, times .1
    _f("forward_kl", (0.631154, 0.804299, 0.582517)),
    # ln(sigmoid(1)/sigmoid(-.5)) = .660820, ln(sigmoid(-1)/sigmoid(.5)) = -.839185, ln(sigmoid(1)/sigmoid(-1)) = 1
    _f("jsd", (0.660652, 0.735986, 0.644397)),
    # 2 (e^{.25} - e^{-.5}) = 1.354989, 2 (e^{-.25} - e^{.5}) = -1.739841, 2 (e^{.5} - e^{-.5}) = 2.084381
    _f("alpha", (0.627691, 0.783918, 0.594349)),
    # l(x) + (1 - q) x with q = .7
    Pair("adpo", losses.adpo_pairwise_loss, B | {"preference_prob": 0.7}, _adpo, (0.665957, 0.725957, 0.658139)),
]
IDS = [p.name for p in PAIRS]
AT_ZERO = {
    "ipo": 25.0,
    "hinge": 1.0,
    "exo": 0.510826,  # ln(1/2) - [ln .9 + ln .1]/2
    "nca": 2 * 0.693147,
    "bco": 2 * 0.693147,
    "bco-delta": 1.386919,  # l(-.05) + l(.05)
    "sppo": 50.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.846574,  # (ln 2 + 1)/2
    "dpo-margin": 0.718460,  # l(-.05)
}
