"""Fast-slow chasing against plain DPO on a stream of pairs whose preference drifts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.claims import figures, train
from benchmarks.claims.fit import MemoryData, Watch, fit, with_lora
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.callbacks import FastSlowLoRA
from pl_prefopt.demo.text.pairs import Recipe
from pl_prefopt.demo.text.world import SentimentWorld
from pl_prefopt.objectives import DPO

WORLD = SentimentWorld()
STEPS, SIZE, EVERY, BETA, LR = 120, 64, 20, 0.3, 2e-3
ALPHA, RATIO, SWAP = 0.3, 0.3, 20
NAMES = ("DPO", "fast-slow")


def weights(step: int) -> dict[str, float]:
    """The preference at a step: from sentiment to brevity and on to the opposite of sentiment."""
    angle = math.pi * step / STEPS
    return {"sentiment": math.cos(angle), "brevity": math.sin(angle)}


def stream(seed: int) -> train.Batch:
    """Rows in order of time, labelled by the preference of their step."""
    parts = [
        train.drawn(WORLD, Recipe(rows=EVERY * SIZE, temperature=0.5, weights=weights(step)), seed * STEPS + step)
        for step in range(0, STEPS, EVERY)
    ]
    joined = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    return joined | {"index": torch.arange(STEPS * SIZE)}


def run(seed: int) -> Result:
    """Exact reward under the current preference, every EVERY steps, per method."""
    rows = stream(seed)
    plan: dict[str, list[pl.Callback]] = {
        "DPO": [],
        "fast-slow": [FastSlowLoRA(beta=BETA, alpha=ALPHA, ratio=RATIO, every_n_steps=SWAP)],
    }
    return {name: _follow(seed, rows, callbacks) for name, callbacks in plan.items()}


def _follow(seed: int, rows: train.Batch, callbacks: list[pl.Callback]) -> list[float]:
    begin = train.start(WORLD, seed)
    reference, seen = train.written_out(begin, WORLD), []

    def measure(network: train.nn.Module, step: int) -> None:
        values = train.exact(network, WORLD, reference)
        seen.append(sum(w * values[name] for name, w in weights(step).items()))

    fit(with_lora(begin, seed), DPO(beta=BETA), MemoryData(rows, SIZE, None), steps=STEPS, lr=LR, decay=False,
        callbacks=[*callbacks, Watch(EVERY, measure)])  # fmt: skip
    return seen


def gain(result: Result) -> float:
    """Mean over time of the current reward, fast-slow minus DPO."""
    return float(np.mean(result["fast-slow"]) - np.mean(result["DPO"]))


def figure(results: Sequence[Result]) -> Figure:
    """Current reward over time."""
    fig, (ax,) = figures.canvas()
    steps = list(range(EVERY, STEPS + 1, EVERY))
    for name, colour in zip(NAMES, figures.COLOURS, strict=False):
        figures.band(ax, steps, [r[name] for r in results], name, colour)
    ax.set(xlabel="optimizer step", ylabel="reward under the current preference, exact")
    ax.legend(frameon=False)
    return fig


CLAIM = Claim(
    statement="When preferences drift online, fast-slow chasing has more current reward than plain DPO",
    paper="OFS-DPO, 2406.05534; no number of the paper was found",
    setup=f"A stream of {STEPS} steps of {SIZE} fresh pairs whose preference turns from sentiment to brevity to the "
    f"opposite of sentiment; LoRA, beta {BETA}, lr {LR} for DPO and for the fast adapter, alpha {ALPHA}, slow over "
    f"fast {RATIO}, roles decided every {SWAP} steps, preference changed every {EVERY}. Exact reward under the "
    "current preference, mean over the stream.",
    run=run,
    effects=(
        Effect("current reward, fast-slow minus DPO", gain, low=0, digits=3),
        Effect("current reward, DPO", lambda r: float(np.mean(r["DPO"])), digits=3),
    ),
    figure=figure,
    tried="Fast-slow is ahead in three seeds of five, most in the one where DPO drifts off for a while, and behind in "
    "two, in one of which it drifts off itself: at this constant learning rate both lose track in some seeds, which "
    "makes the interval wide. Lower rates were not tried. Before, with one seed and a preference that changed every "
    "10 steps: alpha 1 with roles decided every 10 steps had .07 less current reward than DPO, equal rates with "
    "roles decided every 5 steps .06 more, DPO at twice the rate .02 more.",
    cost=2.0,
)
