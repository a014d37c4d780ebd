"""Entropy of f-DPO's policies under forward KL, Jensen-Shannon and reverse KL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.claims import pictures, train
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.demo.pairs import Recipe
from pl_prefopt.demo.sentiment import SentimentWorld
from pl_prefopt.objectives import FDPO

WORLD = SentimentWorld()
STEPS = 100
DIVERGENCES = {"forward_kl": "forward KL", "jsd": "JSD", "reverse_kl": "reverse KL"}
BETAS = (0.3, 1.0)


def run(seed: int) -> Result:
    """Exact measurements at the end of every run, per divergence in the order of BETAS."""
    begin = train.start(WORLD, seed)
    reference = train.written_out(begin, WORLD)
    data = train.drawn(WORLD, Recipe(rows=4000, temperature=0.5), seed)
    return {
        name: [
            train.exact(
                train.train(begin, FDPO(beta=beta, divergence=name), data, steps=STEPS, seed=seed), WORLD, reference
            )
            for beta in BETAS
        ]
        for name in DIVERGENCES
    }


def gap(result: Result, high: str, low: str, key: str = "entropy") -> float:
    """Mean over BETAS of the difference between two divergences."""
    return float(np.mean([a[key] - b[key] for a, b in zip(result[high], result[low], strict=True)]))


def figure(results: Sequence[Result]) -> Figure:
    """Entropy and reward per divergence and beta."""
    picture, axes = pictures.canvas(2, 9.5)
    for ax, key, unit in zip(axes, ("entropy", "reward"), ("entropy, nats", "expected reward"), strict=True):
        groups = [
            (f"{label}\nβ {beta:g}", [r[name][i][key] for r in results])
            for i, beta in enumerate(BETAS)
            for name, label in DIVERGENCES.items()
        ]
        pictures.dots(ax, groups, pictures.COLOURS[: len(DIVERGENCES)])
        ax.tick_params(axis="x", labelsize=7)
        ax.set(ylabel=f"{unit}, exact")
    return picture


CLAIM = Claim(
    statement="f-DPO keeps more diversity the nearer its divergence is to forward KL: forward KL > JSD > reverse KL",
    paper="Wang et al. 2024, 2309.16240; unverified",
    setup=f"4,000 pairs with Bradley-Terry labels (temperature .5); {STEPS} steps per divergence with the same beta "
    f"({' and '.join(map(str, BETAS))}, averaged).",
    run=run,
    effects=(
        Effect("entropy of forward KL minus JSD, nats", lambda r: gap(r, "forward_kl", "jsd"), low=0),
        Effect("entropy of JSD minus reverse KL, nats", lambda r: gap(r, "jsd", "reverse_kl"), low=0),
        Effect("reward of forward KL minus reverse KL", lambda r: gap(r, "forward_kl", "reverse_kl", "reward")),
        Effect("reward of JSD minus reverse KL", lambda r: gap(r, "jsd", "reverse_kl", "reward")),
    ),
    figure=figure,
    tried="One setting. At equal beta forward KL also has less reward, so part of its diversity is that of a policy "
    "which moved less; JSD and reverse KL reach the same reward, so their difference is not.",
)
