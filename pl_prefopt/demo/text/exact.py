"""Exact reward, KL, entropy and length of a language model on the sentiment world: sums over every continuation.

Decoding is defined as: at each step only the words of the language and, after the first word, EOS may follow, and the
text ends after `max_words` words. What an unrestricted model puts elsewhere is reported as `leak`.

Legend: C topics, N continuations, W words, L = max_words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pl_prefopt.demo.text.world import OBJECTIVES, WORDS, SentimentWorld
from pl_prefopt.utilities.modes import eval_mode


@dataclass(frozen=True)
class Enumeration:
    """A policy written out.

    Args:
        logps: (C, N) float64 log-probability of every continuation, in nats; each row is a distribution.
        leak: (C,) float64 probability that the unrestricted model leaves the language, in [0, 1].
    """

    logps: Tensor
    leak: Tensor


@torch.no_grad()
def enumerate_policy(network: nn.Module, tokenizer: Any, world: SentimentWorld, topics: Sequence[str]) -> Enumeration:
    """Probability of every continuation about every topic, from one forward pass per topic.

    Args:
        network: a causal language model; called as `network(input_ids=...)`, must give `.logits`.
        tokenizer: writes every word of the language as one token.
        world: the language.
        topics: which prompts.
    """
    words = [_ids(tokenizer, f" {w}") for w in WORDS]
    if any(len(w) != 1 for w in words):
        raise ValueError("tokenizer must write every word of the language, with its space, as one token")
    allowed = torch.tensor([w[0] for w in words] + [tokenizer.eos_token_id])
    with eval_mode(network):
        both = [_one_topic(network, _ids(tokenizer, world.prompt(t)), allowed, world) for t in topics]
    return Enumeration(torch.stack([b[0] for b in both]), torch.stack([b[1] for b in both]))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _one_topic(network: nn.Module, prompt: list[int], allowed: Tensor, world: SentimentWorld) -> tuple[Tensor, Tensor]:
    size, longest = len(WORDS), world.max_words
    device = next(network.parameters()).device
    contexts = allowed[torch.cartesian_prod(*[torch.arange(size)] * (longest - 1)).view(-1, longest - 1)]
    rows = torch.cat([torch.tensor(prompt).expand(len(contexts), -1), contexts], 1).to(device)
    logits = network(input_ids=rows).logits[:, len(prompt) - 1 :]
    # log-probability of every beginning of n words, restricted to the language and unrestricted; then of every text
    prefixes, free_prefixes = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    texts, free_texts = [], []
    for n in range(longest):
        stride = size ** (longest - 1 - n)
        free = logits[::stride, n].double().log_softmax(-1).cpu()[:, allowed]
        choices = free[:, :size] if n == 0 else free
        step = choices.log_softmax(-1)
        if n:
            texts.append(prefixes + step[:, size])
            free_texts.append(free_prefixes + free[:, size])
        prefixes = (prefixes[:, None] + step[:, :size]).flatten()
        free_prefixes = (free_prefixes[:, None] + free[:, :size]).flatten()
    inside = torch.cat([*free_texts, free_prefixes]).exp().sum()
    return torch.cat([*texts, prefixes]), (1 - inside).clamp(min=0)


def data_enumeration(world: SentimentWorld, topics: Sequence[str]) -> Enumeration:
    """The data distribution in the same form."""
    logps = torch.stack([torch.from_numpy(np.log(world.probabilities(t))) for t in topics])
    return Enumeration(logps, torch.zeros(len(topics), dtype=torch.float64))


def reward_table(world: SentimentWorld, topics: Sequence[str], objective: str = "sentiment") -> Tensor:
    """(C, N) float64 rewards."""
    return torch.stack([torch.from_numpy(world.rewards(t, objective)) for t in topics])


def measure(
    world: SentimentWorld, topics: Sequence[str], policy: Enumeration, reference: Enumeration
) -> dict[str, float]:
    """Exact expectations, each the mean over topics; nats and words.

    reward and one entry per objective, kl = KL(policy || reference), kl_from_reference = KL(reference || policy),
    entropy, length, leak.
    """
    p, q = policy.logps.exp(), reference.logps.exp()
    gap = policy.logps - reference.logps
    out = {name: float((p * reward_table(world, topics, name)).sum(1).mean()) for name in OBJECTIVES}
    lengths = torch.from_numpy(world.lengths).double()
    return {
        "reward": out["sentiment"],
        **out,
        "kl": float((p * gap).sum(1).mean()),
        "kl_from_reference": float(-(q * gap).sum(1).mean()),
        "entropy": float(-(p * policy.logps).sum(1).mean()),
        "length": float((p * lengths).sum(1).mean()),
        "leak": float(policy.leak.mean()),
    }


def tilted(reference: Enumeration, rewards: Tensor, temperature: float) -> Enumeration:
    """The best policy at its KL: pi(y) proportional to pi_ref(y) exp(rewards(y) / temperature)."""
    return Enumeration((reference.logps + rewards / temperature).log_softmax(-1), reference.leak)


def frontier(
    world: SentimentWorld, topics: Sequence[str], reference: Enumeration, temperatures: Sequence[float]
) -> list[tuple[float, float]]:
    """(KL, reward) of the tilted policies: no policy has a higher reward at the same KL."""
    rewards = reward_table(world, topics)
    measures = [measure(world, topics, tilted(reference, rewards, t), reference) for t in temperatures]
    return [(m["kl"], m["reward"]) for m in measures]


def sample(world: SentimentWorld, policy: Enumeration, draws: Tensor) -> list[list[str]]:
    """Continuations at the quantiles `draws` (C, n) in [0, 1): equal draws make two policies comparable."""
    cdf = policy.logps.exp().cumsum(-1)
    picked = torch.searchsorted(cdf, draws.double() * cdf[:, -1:]).clamp(max=len(world) - 1)
    return [[world.text(int(i)) for i in row] for row in picked]
