"""Likelihood displacement with a tiny model: preferring No over Never makes No less likely and Yes more."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.claims import figures, train
from benchmarks.claims.frame import Claim, Effect, Result
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import CausalLM

ANSWERS = {
    "Yes": 0.4, "Yeah": 0.5, "Sure": 0.6, "Certainly": 0.9, "Absolutely": 1.0,
    "No": -0.5, "Never": -1.0, "Maybe": -0.1, "Perhaps": -0.2,
}  # fmt: skip
"""One-token answers on a scale of agreement, tokens 3 and up."""
NAMES = tuple(ANSWERS)
AFFIRMATIVE = NAMES[:5]
STATEMENTS, FIRST, SPREAD = 60, 3 + len(ANSWERS), 0.35
ASKED = (10, 15, 20)
"""Statements, of 60 from disagreement to agreement, that DPO is run on, one at a time."""
PAIRS = {"No over Never": ("No", "Never"), "No over Yes": ("No", "Yes")}
LANGUAGE_STEPS, STEPS, BETA, LR = 300, 100, 0.1, 1e-4


def run(seed: int) -> Result:
    """Probabilities of all answers before and after DPO on one pair of one statement."""
    network = _speaker(seed)
    return {
        pair: [[_answers(network, s).tolist(), _answers(_prefer(network, s, *sides), s).tolist()] for s in ASKED]
        for pair, sides in PAIRS.items()
    }


def _speaker(seed: int) -> nn.Module:
    """A model that answers statement s in [-1, 1] with the answers near s on the scale, "No" being frequent."""
    config = train.CONFIG | {"vocab_size": FIRST + STATEMENTS}
    network, g = CausalLM(config=config, seed=seed)(), torch.Generator().manual_seed(seed)
    stance = torch.linspace(-1, 1, STATEMENTS)
    frequent = torch.tensor([{"Yes": 0.5, "No": 1.2}.get(n, 0.0) for n in NAMES])
    distance = stance[:, None] - torch.tensor(list(ANSWERS.values()))
    target = (frequent - distance**2 / (2 * SPREAD**2)).softmax(-1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(LANGUAGE_STEPS):
        rows = torch.randint(0, STATEMENTS, (64,), generator=g)
        answer = torch.multinomial(target[rows], 1, generator=g)[:, 0] + 3
        loss = nn.functional.cross_entropy(network(input_ids=_prompts(rows)).logits[:, -1], answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def _prompts(statements: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(statements), statements + FIRST], 1)


def _prefer(network: nn.Module, statement: int, chosen: str, rejected: str) -> nn.Module:
    trained = train.module(copy.deepcopy(network), DPO(beta=BETA))
    prompt = _prompts(torch.tensor([statement]))
    answers = torch.tensor([[[NAMES.index(chosen) + 3], [NAMES.index(rejected) + 3]]])
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt, dtype=torch.bool),
        "completion_ids": answers,
        "completion_mask": torch.ones_like(answers, dtype=torch.bool),
    }
    optimizer = torch.optim.RMSprop(trained.policy.parameters(), lr=LR)
    for _ in range(STEPS):
        loss = trained.objective(trained.score(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return trained.policy


@torch.no_grad()
def _answers(network: nn.Module, statement: int) -> Tensor:
    """(9,) probability of every answer."""
    return network(input_ids=_prompts(torch.tensor([statement]))).logits[0, -1].softmax(-1)[3:FIRST]


def change(result: Result, pair: str, words: Sequence[str]) -> float:
    """Change of the probability of `words`, mean over statements."""
    where = [NAMES.index(w) for w in words]
    return float(np.mean([sum(after[i] - before[i] for i in where) for before, after in result[pair]]))


def log_margin(result: Result) -> float:
    """Change of log P(No) - log P(Never), mean over statements."""
    no, never = NAMES.index("No"), NAMES.index("Never")
    logs = [[np.log(side[no] / side[never]) for side in both] for both in result["No over Never"]]
    return float(np.mean([after - before for before, after in logs]))


def figure(results: Sequence[Result]) -> Figure:
    """Change of every answer's probability under both pairs."""
    fig, axes = figures.canvas(2, 9.5)
    for ax, pair in zip(axes, PAIRS, strict=True):
        figures.dots(ax, [(w, [change(r, pair, [w]) for r in results]) for w in NAMES])
        ax.axhline(0, color=figures.INK, lw=0.8)
        ax.tick_params(axis="x", labelsize=7, rotation=45)
        ax.set(title=f"DPO on {pair}", ylabel="change of probability", ylim=(-0.5, 0.5))
    return fig


CLAIM = Claim(
    statement="Likelihood displacement: DPO on No over Never makes No less likely, and mass goes to the opposite, Yes",
    paper="Razin et al. 2025, 2410.08847, verified there for OLMo-1B (No .85 to .01)",
    setup=f"A two-layer model learns to answer {STATEMENTS} statements with nine one-token answers that lie on a scale "
    f"of agreement; then {STEPS} steps of DPO (RMSprop, beta {BETA}) on one pair of one disagreeing statement, all "
    "weights, for three statements one at a time. The scale, on which Never lies beyond No, is our construction.",
    run=run,
    effects=(
        Effect("change of P(No)", lambda r: change(r, "No over Never", ["No"]), high=0),
        Effect(
            "change of P(Yes, Yeah, Sure, Certainly, Absolutely)",
            lambda r: change(r, "No over Never", AFFIRMATIVE),
            low=0,
        ),
        Effect("change of the margin log P(No)/P(Never), nats", log_margin, low=0),
        Effect(
            "for comparison, No over Yes: change of P(affirmative)", lambda r: change(r, "No over Yes", AFFIRMATIVE)
        ),
        Effect("No over Yes: change of P(No)", lambda r: change(r, "No over Yes", ["No"])),
    ),
    figure=figure,
    cost=0.5,
)
