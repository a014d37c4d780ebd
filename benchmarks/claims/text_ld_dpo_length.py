"""LD-DPO's shorter output when labels favour length."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.claims import figures, train
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.demo.text.pairs import Recipe
from pl_prefopt.demo.text.world import SentimentWorld
from pl_prefopt.objectives import LDDPO

WORLD = SentimentWorld()
STEPS, BETA, BIAS = 120, 0.3, 0.4
ALPHAS = (1.0, 0.5, 0.0)
SLACK = 0.05
"""Reward that counts as no loss, of a scale from -3 to 3."""


def run(seed: int) -> Result:
    """Exact measurements of the start and of every alpha; 1 is DPO."""
    begin = train.start(WORLD, seed)
    reference = train.written_out(begin, WORLD)
    data = train.drawn(WORLD, Recipe(rows=4000, temperature=0.5, length_bias=BIAS), seed)
    ends = [
        train.exact(train.train(begin, LDDPO(beta=BETA, alpha=a), data, steps=STEPS, seed=seed), WORLD, reference)
        for a in ALPHAS
    ]
    return {"start": train.exact(begin, WORLD, reference), "ends": ends}


def shorter(result: Result, which: int) -> float:
    """Percent by which the output is shorter than DPO's."""
    return 100 * (1 - result["ends"][which]["length"] / result["ends"][0]["length"])


def gain(result: Result, which: int) -> float:
    """Reward minus that of DPO."""
    return result["ends"][which]["reward"] - result["ends"][0]["reward"]


def figure(results: Sequence[Result]) -> Figure:
    """Length and reward per alpha."""
    fig, axes = figures.canvas(2, 9.0)
    for ax, key, unit in zip(axes, ("length", "reward"), ("expected length, words", "expected reward"), strict=True):
        groups = [("start", [r["start"][key] for r in results])]
        groups += [
            (f"alpha {a:g}" if a < 1 else "DPO", [r["ends"][i][key] for r in results]) for i, a in enumerate(ALPHAS)
        ]
        figures.dots(ax, groups)
        ax.set(ylabel=f"{unit}, exact")
    return fig


CLAIM = Claim(
    statement="When labels favour length, LD-DPO writes 10-40% shorter texts than DPO without loss of reward",
    paper="2409.06411; unverified",
    setup=f"4,000 pairs whose labels add {BIAS} per word to the reward (temperature .5); {STEPS} steps, beta {BETA} "
    f"and alpha 1 (DPO), .5 and 0. No loss: the interval of the difference of reward lies above -{SLACK}.",
    run=run,
    effects=(
        Effect("shorter than DPO, alpha 0, %", lambda r: shorter(r, 2), low=10, high=40, digits=1),
        Effect("reward minus DPO's, alpha 0", lambda r: gain(r, 2), low=-SLACK),
        Effect("shorter than DPO, alpha .5, %", lambda r: shorter(r, 1), digits=1),
        Effect("reward minus DPO's, alpha .5", lambda r: gain(r, 1)),
        Effect("DPO's length minus the start's, words", lambda r: r["ends"][0]["length"] - r["start"]["length"]),
    ),
    figure=figure,
    tried="Alpha 0 was shorter in every seed (9 to 22%) and had more reward in every seed, but with five seeds the "
    "interval of the mean reaches below 10%. Alpha .5 shortens little here.",
)
