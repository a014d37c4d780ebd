"""R3 of Direct Reasoning Optimization (2506.13351 v1): how much a chain of thought raises the reference answer.

Legend: G chains of one question, T tokens of its reference answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.text.models import AnswerTokens, answer_tokens, condition_ids, plain_ids
from pl_prefopt.logprobs.tokenizer_files import load_tokenizer
from pl_prefopt.policies.base import PolicyBuilder

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
            f"logps (G, T), masked (T,) and weights (T,) >= 0 are needed; got {tuple(logps.shape)}, "
            f"{tuple(masked.shape)}, {tuple(weights.shape)} with least weight {weights.min().item():g}"
        )
    return ((logps.double() - masked.double()) * weights.double()).sum(1)


class R3(Judge):
    """Reasoning reflection reward of chains of thought, in nats; conditions are questions, samples are chains.

    The samples of a question within one call are its group. The chain is a sample's text up to and including
    `end_of_thought`; what follows it (the policy's own answer) is replaced by the reference answer. The masked chain is
    the text `masked`. The paper's propagation over reflective tokens and its length reward are left out.

    Args:
        policy: builder of the scoring model, frozen.
        tokenizer: hub name or folder.
        answers: question -> reference answer, or the path of a JSONL file with columns `prompt` and `answer`.
        weights: "variance" (`r3_weights`) or "constant" (all 1: the plain log-likelihood gain).
        end_of_thought: end of the chain; put behind a chain that lacks it.
        masked: what stands in place of the chain.
        batch_size: rows per forward pass.
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: an argument out of range; a question without answer; one chain only where weights need a group.
    """

    def __init__(
        self,
        policy: PolicyBuilder,
        tokenizer: str,
        answers: str | dict[str, str],
        weights: str = "variance",
        end_of_thought: str = "</think>",
        masked: str = "",
        batch_size: int = 16,
        device: str | None = None,
    ) -> None:
        if weights not in WEIGHTS or batch_size < 1:
            raise ValueError(
                f"weights must be one of {', '.join(WEIGHTS)} and batch_size >= 1, got {weights!r} and {batch_size}"
            )
        self.policy, self.tokenizer, self.answers, self.weights = policy, tokenizer, answers, weights
        self.end_of_thought, self.masked, self.batch_size, self.device = end_of_thought, masked, batch_size, device
        self._loaded: tuple[nn.Module, Any, dict[str, str]] | None = None

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) rewards; groups are the rows of equal condition."""
        groups: dict[str, list[int]] = {}
        for row, condition in enumerate(conditions):
            groups.setdefault(condition, []).append(row)
        out = torch.zeros(len(samples), dtype=torch.float64)
        for question, rows in groups.items():
            out[rows] = self._group_scores(question, [samples[i] for i in rows])
        return out

    def _group_scores(self, question: str, chains: Sequence[str]) -> Tensor:
        if self.weights == "variance" and len(chains) < 2:
            raise ValueError(
                f"{question[:60]!r} has one chain, but weights by variance need a group of at least two in one call; "
                "sample more, or use weights: constant"
            )
        tokens = self.group(question, chains)
        logps, masked = torch.stack([t.logps for t in tokens[:-1]]), tokens[-1].logps
        weights = r3_weights(logps) if self.weights == "variance" else torch.ones_like(masked)
        return r3_scores(logps, masked, weights)

    def group(self, question: str, chains: Sequence[str], ranks: bool = False) -> list[AnswerTokens]:
        """Log-probabilities (and ranks) of the answer's tokens after each chain, and, last, after the masked one."""
        policy, tokenizer, answers = self._load()
        if question not in answers:
            raise ValueError(
                f"answers holds none for {question[:80]!r}; its questions must be the prompts, to the letter"
            )
        start, answer = condition_ids(tokenizer, question), plain_ids(tokenizer, answers[question])
        thoughts = [c.split(self.end_of_thought)[0] if self.end_of_thought else c for c in chains]
        texts = [thought + self.end_of_thought for thought in [*thoughts, self.masked]]
        prompts = [[*start, *plain_ids(tokenizer, text)] for text in texts]
        return answer_tokens(policy, prompts, [answer] * len(prompts), self.batch_size, ranks)

    def _load(self) -> tuple[nn.Module, Any, dict[str, str]]:
        if self._loaded is None:
            answers = self.answers if isinstance(self.answers, dict) else _read_answers(Path(self.answers))
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            policy = self.policy().requires_grad_(False).to(device)
            self._loaded = policy, load_tokenizer(self.tokenizer), answers
        return self._loaded


class Reachability(NamedTuple):
    """What `r3_filter` found for a question: the least mean rank of its worst answer tokens, and max_j sigma_j."""

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
    if max_rank < 1 or not 0 < worst <= 1 or not 0 <= drop < 1:
        raise ValueError(f"max_rank >= 1, 0 < worst <= 1, 0 <= drop < 1 are needed, got {max_rank}, {worst}, {drop}")
    few = [q for q, c in chains.items() if len(c) < 2]
    if few:
        raise ValueError(f"{few[0][:80]!r} has {len(chains[few[0]])} chains; at least two are needed")
    found = {}
    for question, group in chains.items():
        tokens = judge.group(question, group, ranks=True)[:-1]
        count = math.ceil(worst * len(tokens[0].ranks))
        rank = min(float(t.ranks.double().topk(count).values.mean()) for t in tokens)
        spread = float(torch.stack([t.logps for t in tokens]).double().std(0, correction=0).max())
        found[question] = Reachability(rank, spread, rank <= max_rank)
    reached = sorted((q for q, r in found.items() if r.kept), key=lambda q: found[q].spread)
    for question in reached[: int(drop * len(reached))]:
        found[question] = found[question]._replace(kept=False)
    return found


def _read_answers(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    lacking = [i for i, row in enumerate(rows, 1) if not {"prompt", "answer"} <= row.keys()]
    if lacking or not rows:
        raise ValueError(f"{path}: line {lacking[0] if lacking else 1} lacks the columns prompt and answer")
    return {row["prompt"]: row["answer"] for row in rows}
