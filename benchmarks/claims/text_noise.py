"""ADPO and robust DPO when 20% and 40% of the labels are flipped."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import nn

from benchmarks.claims import pictures, train
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.demo.exact import Enumeration, measure
from pl_prefopt.demo.pairs import Recipe
from pl_prefopt.demo.sentiment import SentimentWorld
from pl_prefopt.objectives import ADPO, DPO, Objective, RobustDPO

WORLD = SentimentWorld()
STEPS, BETA = 150, 0.3
FLIPS = (0.2, 0.4)


def methods(flip: float) -> dict[str, tuple[Objective, bool]]:
    """Objective, and whether it sees the true probability of each label, per method."""
    return {
        "DPO": (DPO(beta=BETA), False),
        "robust DPO": (RobustDPO(beta=BETA, label_smoothing=flip), False),
        "ADPO, soft": (ADPO(tau=1 / BETA, label=1 - flip), False),
        "ADPO, true": (ADPO(tau=1 / BETA), True),
    }


def run(seed: int) -> Result:
    """Exact measurements and held-out accuracy, per share of flipped labels and method."""
    begin = train.start(WORLD, seed)
    reference = train.written_out(begin, WORLD)
    return {str(flip): _one(begin, reference, flip, seed) for flip in FLIPS}


def _one(begin: nn.Module, reference: Enumeration, flip: float, seed: int) -> Result:
    recipe = Recipe(rows=3000, temperature=0.5, flip=flip, soft_labels=True)
    data = train.drawn(WORLD, recipe, seed)
    blind = {k: v for k, v in data.items() if k != "preference_prob"}
    out = {}
    for name, (objective, told) in methods(flip).items():
        network = train.train(begin, objective, data if told else blind, steps=STEPS, seed=seed)
        ended = train.written_out(network, WORLD)
        out[name] = measure(WORLD, train.TOPIC_NAMES, ended, reference)
        out[name]["accuracy"] = train.accuracy(ended, reference, WORLD)
    return out


def gain(flip: float, method: str, key: str, result: Result) -> float:
    """A method minus DPO."""
    return result[str(flip)][method][key] - result[str(flip)]["DPO"][key]


def figure(results: Sequence[Result]) -> Figure:
    """Reward per method and share of flipped labels."""
    picture, axes = pictures.canvas(len(FLIPS), 9.0)
    for ax, flip in zip(axes, FLIPS, strict=True):
        pictures.dots(ax, [(name, [r[str(flip)][name]["reward"] for r in results]) for name in methods(flip)])
        ax.set(ylabel="expected reward, exact", title=f"{flip:.0%} of the labels flipped")
        ax.tick_params(axis="x", labelsize=8)
    return picture


CLAIM = Claim(
    statement="Under flipped labels ADPO and robust DPO have more reward than DPO",
    paper="ADPO: 2510.18913, unverified; robust DPO: Chowdhury et al. 2024, 2403.00409",
    setup="",
    run=run,
    effects=tuple(
        Effect(f"reward of {name} minus DPO at {flip:.0%}", lambda r, f=flip, n=name: gain(f, n, "reward", r), low=0)
        for flip in FLIPS
        for name in ("robust DPO", "ADPO, soft", "ADPO, true")
    ),
    figure=figure,
)
