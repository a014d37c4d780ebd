"""CHES filtering against a random choice of as many pairs, when many pairs differ in one word."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.claims import pictures, train
from benchmarks.claims.fit import MemoryData, fit
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.callbacks import CHESFilter
from pl_prefopt.demo.pairs import Recipe
from pl_prefopt.demo.sentiment import SentimentWorld
from pl_prefopt.objectives import DPO

WORLD = SentimentWorld()
STEPS, BETA, SIZE, ROWS, SHARE = 100, 0.3, 64, 8000, 0.15
NAMES = ("all pairs", "random", "CHES")


def run(seed: int) -> Result:
    """Exact measurements and changes of log-probability after DPO on all, on random and on filtered pairs."""
    begin = train.start(WORLD, seed)
    reference = train.written_out(begin, WORLD)
    data = train.drawn(WORLD, Recipe(rows=ROWS, temperature=0.0, similarity=0.5), seed)
    picked = np.random.default_rng(seed).choice(ROWS, int(SHARE * ROWS), replace=False)
    some = {k: v[torch.from_numpy(picked)] for k, v in data.items()}
    plan = {"all pairs": (data, []), "random": (some, []), "CHES": (data, [CHESFilter(fraction=SHARE, batch_size=256)])}
    before, out = sums(begin, data), {}
    for name, (rows, callbacks) in plan.items():
        network = copy.deepcopy(begin)
        fit(network, DPO(beta=BETA), MemoryData(rows, SIZE, seed), steps=STEPS, callbacks=callbacks)
        change = (sums(network, data) - before).mean(0)
        values = train.exact(network, WORLD, reference)
        out[name] = {**values, "chosen": float(change[0]), "rejected": float(change[1])}
    return out


@torch.no_grad()
def sums(network: nn.Module, data: train.Batch) -> Tensor:
    """(n, 2) log-probability of chosen and rejected, over the whole vocabulary."""
    scores = train.module(network, DPO()).score(data)
    assert scores.sum_logps is not None
    return scores.sum_logps


def figure(results: Sequence[Result]) -> Figure:
    """Change of the chosen log-probability, and reward."""
    picture, axes = pictures.canvas(3, 11.0, 3.6)
    labels = {
        "chosen": "change of log P(chosen), nats",
        "leak": "probability of leaving the language",
        "reward": "expected reward, exact",
    }
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        pictures.dots(ax, [(n, [r[n][key] for r in results]) for n in NAMES])
        ax.set(ylabel=label)
    return picture


CLAIM = Claim(
    statement="Training only on the pairs of lowest CHES score mitigates likelihood displacement",
    paper="Razin et al. 2025, 2410.08847, verified there: Gemma-2B -59 to -46 nats, Llama-3-8B -48 to -28",
    setup=f"{ROWS:,} noise-free pairs, half of which differ in one word only; {STEPS} steps of DPO (beta {BETA}) on "
    f"all pairs, on a random {SHARE:.0%} and on the {SHARE:.0%} that CHESFilter keeps. The change of log P(chosen) is "
    "taken over all pairs, whichever were trained on.",
    run=run,
    effects=(
        Effect(
            "change of log P(chosen), CHES minus random, nats",
            lambda r: r["CHES"]["chosen"] - r["random"]["chosen"],
            low=0,
        ),
        Effect("the same, CHES minus all pairs", lambda r: r["CHES"]["chosen"] - r["all pairs"]["chosen"], low=0),
        Effect("change of log P(chosen), all pairs, nats", lambda r: r["all pairs"]["chosen"]),
        Effect("change of log P(chosen), CHES, nats", lambda r: r["CHES"]["chosen"]),
        Effect("reward, CHES minus random", lambda r: r["CHES"]["reward"] - r["random"]["reward"]),
        Effect("reward, CHES minus all pairs", lambda r: r["CHES"]["reward"] - r["all pairs"]["reward"]),
    ),
    figure=figure,
)
