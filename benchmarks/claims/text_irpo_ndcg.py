"""IRPO's ranking of lists against DPO's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.claims import figures, train
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.demo.text.pairs import Recipe
from pl_prefopt.demo.text.world import SentimentWorld
from pl_prefopt.objectives import DPO, IRPO, Objective, SoftmaxDPO

WORLD = SentimentWorld()
STEPS, LISTS, LENGTH, SIZE = 100, 1500, 5, 32
BETA = 0.3
NAMES = ("DPO", "S-DPO", "IRPO")


def run(seed: int) -> Result:
    """NDCG on held-out lists of the start and of every method; methods in the order of NAMES."""
    begin = train.start(WORLD, seed)
    recipe = Recipe(rows=LISTS, temperature=0.5, list_size=LENGTH)
    lists = train.drawn(WORLD, recipe, seed)
    clean = train.drawn(WORLD, Recipe(rows=400, temperature=0.0, list_size=LENGTH), 0, held=True)
    plan: dict[str, tuple[Objective, train.Batch]] = {
        "DPO": (DPO(beta=BETA), best_against_one(lists, seed)),
        "S-DPO": (SoftmaxDPO(beta=BETA), lists),
        "IRPO": (IRPO(beta=BETA * 3), lists),
    }
    out = {}
    for name, (objective, data) in plan.items():
        ended = train.train(begin, objective, data, steps=STEPS, seed=seed, size=SIZE)
        out[name] = ndcg(begin, ended, objective, clean)
    return out


def best_against_one(lists: train.Batch, seed: int) -> train.Batch:
    """Pairs: the best of every list and a random other item of it."""
    g = torch.Generator().manual_seed(seed)
    other = torch.randint(1, LENGTH, (LISTS,), generator=g)
    picked = torch.stack([torch.zeros_like(other), other], 1)
    rows = torch.arange(LISTS)[:, None]
    pairs = {k: v for k, v in lists.items() if k != "relevance"}
    return pairs | {k: lists[k][rows, picked] for k in ("completion_ids", "completion_mask")}


@torch.no_grad()
def ndcg(begin: nn.Module, ended: nn.Module, objective: Objective, lists: train.Batch) -> float:
    """NDCG, gain 2^relevance - 1, of the order of the objective's own rewards."""
    from sklearn.metrics import ndcg_score

    scored = train.module(begin, objective)
    scored.policy = ended
    rewards = objective.rewards(scored.score(lists))
    return float(ndcg_score((2.0 ** lists["relevance"] - 1).numpy(), rewards.numpy()))


def figure(results: Sequence[Result]) -> Figure:
    """NDCG per method."""
    fig, (ax,) = figures.canvas()
    figures.dots(ax, [(name, [r[name] for r in results]) for name in NAMES])
    ax.set(ylabel="NDCG on held-out lists")
    return fig


CLAIM = Claim(
    statement="IRPO ranks lists better than DPO",
    paper="2504.15477",
    setup=f"{LISTS:,} lists of {LENGTH} texts in noisy order (temperature .5) with graded relevance; {STEPS} steps of "
    f"{SIZE} lists; DPO sees the best of each list against a random other. NDCG of the implicit rewards on 400 "
    "held-out, noise-free lists.",
    run=run,
    effects=(
        Effect("NDCG of IRPO minus DPO", lambda r: r["IRPO"] - r["DPO"], low=0, digits=4),
        Effect("NDCG of S-DPO minus DPO", lambda r: r["S-DPO"] - r["DPO"], digits=4),
        Effect("NDCG of DPO", lambda r: r["DPO"], digits=4),
    ),
    figure=figure,
    tried="One setting. DPO sees two texts of each list and IRPO all five with their grades; S-DPO, which sees all "
    "five without grades, gains about a quarter as much.",
)
