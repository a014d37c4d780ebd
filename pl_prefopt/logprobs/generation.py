"""Sampling from a language model in batches, with seeds of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pl_prefopt.logprobs.causal import CausalFamily
from pl_prefopt.logprobs.family import TokenFamily
from pl_prefopt.utilities.modes import eval_mode
from pl_prefopt.utilities.seeding import derive_seed
from pl_prefopt.utilities.sharding import settle


@torch.no_grad()
def generate(
    network: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    family: TokenFamily[Any] | None = None,
    count: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos: int | None = None,
    pad: int = 0,
    batch_size: int = 16,
) -> list[list[list[int]]]:
    """Draw `count` continuations of every prompt; the global random state is left as it was.

    The continuations of a batch of prompts depend on (seed, index of its first prompt, batch_size), not on what was
    drawn before, so an interrupted sampling can go on at any batch.

    Args:
        network: a transformers language model, with or without peft.
        prompts: token ids, at least one each.
        family: how the network is called; None: as a causal language model.
        count: continuations per prompt, >= 1.
        max_new_tokens: upper bound of a continuation's tokens, >= 1.
        temperature: > 0; 0 decodes greedily.
        top_p: nucleus in (0, 1].
        seed: key of the draws.
        eos: end token, kept at the end of a continuation; None never ends early.
        pad: id for padding; masked, so any id will do.
        batch_size: prompts per call.

    Returns:
        For every prompt its continuations, as token ids.

    Raises:
        ValueError: an argument out of range, an empty prompt.
    """
    if count < 1 or max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"count, max_new_tokens and batch_size must be >= 1, got {count, max_new_tokens, batch_size}")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be >= 0 and top_p in (0, 1], got {temperature} and {top_p}")
    empty = [i for i, p in enumerate(prompts) if not len(p)]
    if empty:
        raise ValueError(f"prompts {empty} hold no token; begin with BOS where a prompt is empty")
    family = family or CausalFamily()
    # greedy decoding gives the same continuation each time, so it is drawn once and repeated
    draws = count if temperature > 0 else 1
    options: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens, "eos_token_id": eos}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0, "num_return_sequences": count}
    device = next(network.parameters()).device
    continuations: list[list[list[int]]] = []
    with eval_mode(network):
        for start in range(0, len(prompts), batch_size):
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(derive_seed(seed, "generate", start))
                sampled = family.sample(network, prompts[start : start + batch_size], pad, options)
            rows = [_ended(row, eos) for row in sampled]
            for first in range(0, len(rows), draws):
                continuations.append(rows[first : first + draws] * (count // draws))
    settle(network)
    return continuations


def _ended(row: list[int], eos: int | None) -> list[int]:
    return row if eos is None or eos not in row else row[: row.index(eos) + 1]
