"""COFS: a combination of the adapters of two domains against one adapter trained on both in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import nn

from benchmarks.claims import figures, train
from benchmarks.claims.fit import MemoryData, fit, with_lora
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.adapters.cofs import mix_on_memory
from pl_prefopt.callbacks import FastSlowLoRA
from pl_prefopt.demo.text.exact import reward_table
from pl_prefopt.demo.text.pairs import Recipe
from pl_prefopt.demo.text.world import SentimentWorld
from pl_prefopt.objectives import DPO

WORLD = SentimentWorld()
DOMAINS = ((("battery", "fan", "coat"), "sentiment"), (("queue", "film", "ticket"), "brevity"))
"""Topics and what is preferred about them; the words about the first mean nearly the opposite about the second."""
STEPS, SIZE, ROWS, BETA, LR, MEMORY = 60, 64, 3000, 0.3, 2e-3, 128
NAMES = ("after domain 1", "one adapter, in turn", "COFS")


def run(seed: int) -> Result:
    """Exact reward on both domains per method, and the lambda that the memory chose."""
    data = [
        train.drawn(WORLD, Recipe(rows=ROWS, temperature=0.5, weights={name: 1.0}), seed, topics=topics)
        for topics, name in DOMAINS
    ]
    memory = [{k: v[:MEMORY] for k, v in rows.items()} for rows in data]
    with tempfile.TemporaryDirectory() as tmp:
        folders = [Path(tmp) / name for name in ("first", "turn", "second", "mix")]
        first = _adapter(seed, data[0], folders[0])
        out = {"after domain 1": _rewards(first)}
        out["one adapter, in turn"] = _rewards(_adapter(seed, data[1], folders[1], folders[0]))
        _adapter(seed, data[1], folders[2])
        policy = with_lora(train.start(WORLD, seed), seed)
        chosen, _ = mix_on_memory(folders[0], folders[2], folders[3], lambda f: _loss(_load(policy, f), seed, memory))
        out["COFS"] = _rewards(_load(policy, folders[3]))
    return {"rewards": out, "lambda": chosen}


def _adapter(seed: int, rows: train.Batch, out: Path, begin: Path | None = None) -> nn.Module:
    """The fast adapter after a domain, new or continued."""
    policy = with_lora(train.start(WORLD, seed), seed)
    if begin is not None:
        _load(policy, begin)
    chase = FastSlowLoRA(beta=BETA, every_n_steps=20)
    fit(policy, DPO(beta=BETA), MemoryData(rows, SIZE, seed), steps=STEPS, lr=LR, callbacks=[chase])
    policy.save_pretrained(out, selected_adapters=["default"])  # type: ignore[operator]
    return policy


def _load(policy: nn.Module, folder: Path) -> nn.Module:
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(policy, load_file(folder / "adapter_model.safetensors"))
    return policy


@torch.no_grad()
def _loss(policy: nn.Module, seed: int, memory: Sequence[train.Batch]) -> float:
    """DPO loss on the memories of both domains, against the start."""
    scored = train.module(policy, DPO(beta=BETA))
    return float(sum(scored.objective(scored.score(rows)).mean() for rows in memory))


def _rewards(policy: nn.Module) -> list[float]:
    """Exact expected reward of each domain."""
    out = []
    for topics, name in DOMAINS:
        chances = train.written_out(policy, WORLD, topics).logps.exp()
        out.append(float((chances * reward_table(WORLD, topics, name)).sum(1).mean()))
    return out


def gain(result: Result, domain: int | None) -> float:
    """Reward of COFS minus one adapter in turn, on a domain or their mean."""
    pair = [result["rewards"][n] for n in ("COFS", "one adapter, in turn")]
    values = [sum(p) / 2 if domain is None else p[domain] for p in pair]
    return values[0] - values[1]


def figure(results: Sequence[Result]) -> Figure:
    """Reward on both domains per method."""
    fig, axes = figures.canvas(2, 9.0)
    for domain, ax in enumerate(axes):
        figures.dots(ax, [(n, [r["rewards"][n][domain] for r in results]) for n in NAMES])
        ax.set(title=f"domain {domain + 1}: {DOMAINS[domain][1]}", ylabel="expected reward, exact")
    return fig


CLAIM = Claim(
    statement="A combination of the adapters of two domains (COFS) forgets less of the first than one adapter trained "
    "on both in turn",
    paper="COFS-DPO, 2406.05534; only the abstract was read",
    setup=f"Domain 1 prefers sentiment about three topics, domain 2 brevity about three others. {STEPS} steps of "
    f"fast-slow DPO (LoRA, beta {BETA}) per domain; in turn: the adapter of the first goes on with the second; COFS: "
    f"both trained from scratch, mixed with the lambda of the lowest DPO loss on {MEMORY} remembered pairs of each "
    "domain.",
    run=run,
    effects=(
        Effect("reward on the first domain, COFS minus in turn", lambda r: gain(r, 0), low=0),
        Effect("mean reward of both domains, COFS minus in turn", lambda r: gain(r, None)),
        Effect("reward on the second domain, COFS minus in turn", lambda r: gain(r, 1)),
        Effect(
            "forgotten in turn: reward on the first domain before minus after",
            lambda r: r["rewards"]["after domain 1"][0] - r["rewards"]["one adapter, in turn"][0],
        ),
        Effect("lambda, share of the first adapter", lambda r: r["lambda"]),
    ),
    figure=figure,
    tried="A first version had sentiment as the reward of both domains, on topics with nearly opposite words: the "
    "model distinguished them by the prompt, forgot only .09, and COFS changed nothing on the first domain (one seed). "
    "In one of five seeds the run in turn failed on the second domain (its texts became longer).",
    cost=2.0,
)
