"""Each loss as its paper prints it, for one row of plain numbers, in 60-digit arithmetic: nothing is shared with the
library, and no trick for overflow is needed.

Legend: w, low = log-ratios of the chosen and the rejected sample; a group is a list of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpmath import exp, log, mp, mpf, sqrt

mp.dps = 60
Number = Any


def nls(x: Number) -> Number:
    """-log sigmoid(x)."""
    x = mpf(x)
    return log(1 + exp(-x)) if x > 0 else -x + log(1 + exp(x))


def sigmoid(x: Number) -> Number:
    return 1 / (1 + exp(-mpf(x)))


def dpo(w: Number, low: Number, *, beta: float, label_smoothing: float = 0, margin: float = 0) -> Number:
    x = mpf(beta) * (w - low) - mpf(margin)
    return (1 - mpf(label_smoothing)) * nls(x) + mpf(label_smoothing) * nls(-x)


def ipo(w: Number, low: Number, *, beta: float) -> Number:
    return (w - low - 1 / (2 * mpf(beta))) ** 2


def hinge(w: Number, low: Number, *, beta: float) -> Number:
    return max(mpf(0), 1 - mpf(beta) * (w - low))


def robust(w: Number, low: Number, *, beta: float, label_smoothing: float) -> Number:
    x, e = mpf(beta) * (w - low), mpf(label_smoothing)
    return ((1 - e) * nls(x) - e * nls(-x)) / (1 - 2 * e)


def exo(w: Number, low: Number, *, beta: float, label_smoothing: float) -> Number:
    p, e = sigmoid(mpf(beta) * (w - low)), mpf(label_smoothing)
    parts = [(p, 1 - e), (sigmoid(-mpf(beta) * (w - low)), e)]
    return sum(q * log(q / target) for q, target in parts)


def nca(w: Number, low: Number, *, beta: float) -> Number:
    b = mpf(beta)
    return nls(b * w) + nls(-b * w) / 2 + nls(-b * low) / 2


def bco(w: Number, low: Number, *, beta: float, delta: float = 0) -> Number:
    b, d = mpf(beta), mpf(delta)
    return nls(b * w - d) + nls(-(b * low - d))


def sppo(w: Number, low: Number, *, beta: float) -> Number:
    half = 1 / (2 * mpf(beta))
    return (w - half) ** 2 + (low + half) ** 2


def apo_zero(w: Number, low: Number, *, beta: float) -> Number:
    b = mpf(beta)
    return 1 - sigmoid(b * w) + sigmoid(b * low)


def apo_down(w: Number, low: Number, *, beta: float) -> Number:
    b = mpf(beta)
    return sigmoid(b * w) + 1 - sigmoid(b * (w - low))


def discopop(w: Number, low: Number, *, beta: float, tau: float) -> Number:
    rho = mpf(beta) * (w - low)
    share = sigmoid(rho / mpf(tau))
    return nls(rho) * (1 - share) + exp(-rho) * share


def dpop(w: Number, low: Number, *, beta: float, penalty: float) -> Number:
    return nls(mpf(beta) * (w - low - mpf(penalty) * max(mpf(0), -mpf(w))))


def f_dpo(w: Number, low: Number, *, beta: float, divergence: str, alpha: float = 0.5) -> Number:
    """Through the derivative f'(u) at u = pi/pi_ref, constants dropped by the difference."""
    a = mpf(alpha)
    slope = {
        "reverse_kl": lambda u: log(u) + 1,
        "forward_kl": lambda u: -1 / u,
        "jsd": lambda u: log(2 * u / (1 + u)),
        "alpha": lambda u: (1 - u ** (-a)) / a,
    }[divergence]
    return nls(mpf(beta) * (slope(exp(mpf(w))) - slope(exp(mpf(low)))))


def tdpo(
    w: Number,
    low: Number,
    kl_w: Number,
    kl_l: Number,
    *,
    beta: float,
    alpha: float,
    variant: str,
) -> Number:
    factor = mpf(1) if variant == "tdpo1" else mpf(alpha)
    return nls(mpf(beta) * (w - low - factor * (mpf(kl_l) - kl_w)))


def adpo_pair(w: Number, low: Number, *, beta: float, q: float) -> Number:
    """Cross-entropy of (q, 1 - q) against the softmax over the pair at temperature 1/beta."""
    top, low = exp(mpf(beta) * w), exp(mpf(beta) * low)
    return -mpf(q) * log(top / (top + low)) - (1 - mpf(q)) * log(low / (top + low))


def adpo_list(r: Sequence[Number], q: Sequence[Number], *, tau: float) -> Number:
    total = sum(exp(mpf(x) / tau) for x in r)
    return -sum(mpf(t) * log(exp(mpf(x) / tau) / total) for x, t in zip(r, q, strict=True))


def plackett_luce(u: Sequence[Number], relevance: Sequence[Number]) -> Number:
    """Minus the log-probability of drawing the items one by one in order of relevance, per draw."""
    order = sorted(range(len(u)), key=lambda i: -relevance[i])
    probability, left = mpf(1), list(order)
    for i in order[:-1]:
        probability *= exp(mpf(u[i])) / sum(exp(mpf(u[j])) for j in left)
        left.remove(i)
    return -log(probability) / (len(u) - 1)


def irpo(
    r: Sequence[Number],
    relevance: Sequence[Number],
    ranks: Sequence[Number],
    *,
    beta: float,
    opponents: str,
    items: str,
) -> Number:
    total, n = mpf(0), len(r)
    for i in range(n):
        others = sum(exp(mpf(beta) * (mpf(r[j]) - r[i])) for j in range(n) if j != i)
        if opponents == "mean":
            others /= n - 1
        weight = (mpf(2) ** relevance[i] - 1) / log(1 + mpf(ranks[i]), 2)
        total += weight * -log(sigmoid(-log(others)))
    return total / n if items == "mean" else total


def softmax_dpo(w: Number, rejected: Sequence[Number], *, beta: float) -> Number:
    return log(1 + sum(exp(mpf(beta) * (mpf(x) - w)) for x in rejected))


def modpo(
    w: Number,
    low: Number,
    m_w: Sequence[Number],
    m_l: Sequence[Number],
    *,
    weights: Sequence[float],
    beta: float,
) -> Number:
    def reward(r: Number, m: Sequence[Number]) -> Number:
        return (mpf(beta) * r - sum(mpf(k) * v for k, v in zip(weights[1:], m, strict=True))) / mpf(weights[0])

    return nls(reward(w, m_w) - reward(low, m_l))


def simpo(w: Number, low: Number, *, beta: float, gamma: float) -> Number:
    return nls(mpf(beta) * (mpf(w) - low) - mpf(gamma))


def orpo(w: Number, low: Number, *, beta: float) -> Number:
    def odds(m: Number) -> Number:
        return exp(mpf(m)) / (1 - exp(mpf(m)))

    return -mpf(w) + mpf(beta) * nls(log(odds(w) / odds(low)))


def ddo(real: Number, fake: Number, *, alpha: float, beta: float) -> Number:
    """Discriminator d = sigmoid(beta log-ratio): real against fake."""
    return -log(sigmoid(mpf(beta) * real)) - mpf(alpha) * log(1 - sigmoid(mpf(beta) * fake))


def silverman(values: Sequence[float]) -> Number:
    """0.9 min(std, IQR / 1.34) n^(-1/5), quartiles by linear interpolation."""
    v, n = sorted(mpf(x) for x in values), len(values)

    def quantile(p: float) -> Number:
        at = p * (n - 1)
        low = int(at)
        return v[low] + (at - low) * (v[min(low + 1, n - 1)] - v[low])

    mean = sum(v) / n
    std = sqrt(sum((x - mean) ** 2 for x in v) / (n - 1))
    return mpf("0.9") * min(std, (quantile(0.75) - quantile(0.25)) / mpf("1.34")) * mpf(n) ** mpf("-0.2")
