"""R3 of Direct Reasoning Optimization (2506.13351 v1): how much a chain of thought raises the reference answer.

Legend: G chains of one question, T tokens of its reference answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.text.models import AnswerTokens, answer_tokens, condition_ids, plain_ids
from pl_prefopt.logprobs.tokenizer_files import load_tokenizer
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.utilities.checks import choice, integer, within
from pl_prefopt.utilities.devices import default_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS = ("variance", "constant")


def r3_weights(logps: Tensor) -> Tensor:
    """(T,) sigma_j / sum sigma, sigma_j = population std over chains of log pi(y_j | q, c_i, y_<j); 0 where all agree.

    The paper leaves the increasing function w(sigma) open; this one is our choice.

    Args:
        logps: (G, T).
    """
    sigma = logps.double().std(0, correction=0)
    return sigma / sigma.sum().clamp(min=torch.finfo(sigma.dtype).tiny)


def r3_scores(logps: Tensor, masked: Tensor, weights: Tensor) -> Tensor:
    """(G,) sum_j w_j [log pi(y_j | q, c_i, y_<j) - log pi(y_j | q, c_masked, y_<j)].

    Args:
        logps: (G, T) under each chain.
        masked: (T,) under the masked chain.
        weights: (T,), >= 0.

    Raises:
        ValueError: shapes that do not fit, a negative weight.
    """
    if logps.dim() != 2 or masked.shape != logps.shape[1:] or weights.shape != masked.shape or (weights < 0).any():
        raise ValueError(
            f"logps, masked and weights must be (G, T), (T,) and (T,) >= 0, got {tuple(logps.shape)}, "
            f"{tuple(masked.shape)}, {tuple(weights.shape)} with least weight {weights.min().item():g}"
        )
    return ((logps.double() - masked.double()) * weights.double()).sum(1)


@dataclass
class R3(Judge):
    """Reasoning reflection reward of chains of thought, in nats; conditions are questions, samples are chains.

    The samples of a question within one call are its group. The chain is a sample's text up to and including
    `end_of_thought`; what follows it (the policy's answer) is replaced by the reference answer. The masked chain is
    the text `masked`. The paper's propagation over reflective tokens and its length reward are left out.

    Args:
        policy: builder of the scoring model, frozen.
        tokenizer: hub name or folder.
        answers: question -> reference answer, or the path of a JSONL file with columns `prompt` and `answer`.
        weights: "variance" (`r3_weights`) or "constant" (all 1: the plain log-likelihood gain).
        end_of_thought: end of the chain; appended to a chain that lacks it.
        masked: text that replaces the chain in the masked prompt.
        batch_size: rows per forward pass.
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: an argument out of range; a question without answer; one chain only where weights need a group.
    """

    policy: PolicyBuilder
    tokenizer: str
    answers: str | dict[str, str]
    weights: str = "variance"
    end_of_thought: str = "</think>"
    masked: str = ""
    batch_size: int = 16
    device: str | None = None

    def __post_init__(self) -> None:
        choice("weights", self.weights, WEIGHTS)
        integer("batch_size", self.batch_size)

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) rewards; groups are the rows of equal condition."""
        groups: dict[str, list[int]] = {}
        for row, condition in enumerate(conditions):
            groups.setdefault(condition, []).append(row)
        scores = torch.zeros(len(samples), dtype=torch.float64)
        for question, rows in groups.items():
            scores[rows] = self._group_scores(question, [samples[i] for i in rows])
        return scores

    def _group_scores(self, question: str, chains: Sequence[str]) -> Tensor:
        if self.weights == "variance" and len(chains) < 2:
            raise ValueError(
                f"chains must be a group of at least two per question for weights 'variance', got one for "
                f"{question[:60]!r}. Sample more, or set weights: constant"
            )
        tokens = self.group(question, chains)
        logps, masked = torch.stack([t.logps for t in tokens[:-1]]), tokens[-1].logps
        weights = r3_weights(logps) if self.weights == "variance" else torch.ones_like(masked)
        return r3_scores(logps, masked, weights)

    def group(self, question: str, chains: Sequence[str], ranks: bool = False) -> list[AnswerTokens]:
        """Log-probabilities (and ranks) of the answer's tokens after each chain, and, last, after the masked one."""
        policy, tokenizer, answers = self.networks
        if question not in answers:
            raise ValueError(f"answers must hold every prompt, letter by letter, got no answer for {question[:80]!r}")
        start, answer = condition_ids(tokenizer, question), plain_ids(tokenizer, answers[question])
        thoughts = [c.split(self.end_of_thought)[0] if self.end_of_thought else c for c in chains]
        texts = [thought + self.end_of_thought for thought in [*thoughts, self.masked]]
        prompts = [[*start, *plain_ids(tokenizer, text)] for text in texts]
        return answer_tokens(policy, prompts, [answer] * len(prompts), self.batch_size, ranks)

    @cached_property
    def networks(self) -> tuple[nn.Module, PreTrainedTokenizerBase, dict[str, str]]:
        """Policy, tokenizer and reference answers, loaded at the first call."""
        answers = self.answers if isinstance(self.answers, dict) else _read_answers(Path(self.answers))
        policy = self.policy().requires_grad_(False).to(default_device(self.device))
        return policy, load_tokenizer(self.tokenizer), answers


class Reachability(NamedTuple):
    """Whether chains of thought can reach a question's answer.

    Args:
        rank: least mean rank, over chains, of the worst answer tokens.
        spread: max_j sigma_j.
        kept: whether `r3_filter` keeps the question.
    """

    rank: float
    spread: float
    kept: bool


def r3_filter(
    judge: R3, chains: dict[str, list[str]], max_rank: float, worst: float = 0.2, drop: float = 0.2
) -> dict[str, Reachability]:
    """Which questions are worth training on (DRO's data filter).

    First a question goes if no chain brings the worst share of the answer's tokens to a mean rank of at most
    `max_rank`. Of the others, the share with the least max_j sigma_j goes: chains make no difference there. The paper
    uses 16 or 32 chains and prints no values for the rest.

    Args:
        judge: scores with its model and answers.
        chains: question -> at least two chains.
        max_rank: >= 1; 1 is the likeliest token.
        worst: share in (0, 1] of the answer's tokens, rounded up.
        drop: share in [0, 1) of the questions left, rounded down.

    Raises:
        ValueError: an argument out of range, a question with fewer than two chains.
    """
    within("max_rank", max_rank, 1.0, math.inf, open_high=True)
    within("worst", worst, 0.0, 1.0, open_low=True)
    within("drop", drop, 0.0, 1.0, open_high=True)
    for question, group in chains.items():
        if len(group) < 2:
            raise ValueError(f"chains must hold at least two per question, got {len(group)} for {question[:80]!r}")
    questions = {}
    for question, group in chains.items():
        tokens = judge.group(question, group, ranks=True)[:-1]
        count = math.ceil(worst * len(tokens[0].ranks))
        rank = min(float(t.ranks.double().topk(count).values.mean()) for t in tokens)
        spread = float(torch.stack([t.logps for t in tokens]).double().std(0, correction=0).max())
        questions[question] = Reachability(rank, spread, rank <= max_rank)
    reachable = sorted((q for q, r in questions.items() if r.kept), key=lambda q: questions[q].spread)
    for question in reachable[: int(drop * len(reachable))]:
        questions[question] = questions[question]._replace(kept=False)
    return questions


def _read_answers(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    incomplete = [i for i, row in enumerate(rows, 1) if not {"prompt", "answer"} <= row.keys()]
    if incomplete or not rows:
        raise ValueError(
            f"{path}, row {incomplete[0] if incomplete else 1}: fields 'prompt' and 'answer' must be there, got "
            f"{', '.join(rows[incomplete[0] - 1]) if incomplete else 'no row'}"
        )
    return {row["prompt"]: row["answer"] for row in rows}
