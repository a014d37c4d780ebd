"""What judges that hold a language model share: conversations in conditions, token log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pl_prefopt.logprobs import score_tokens
from pl_prefopt.logprobs.causal import hidden_states, output_head
from pl_prefopt.logprobs.layout import Tokens, separate_rows
from pl_prefopt.utilities.modes import eval_mode

Ids = Sequence[int]


def turns_of(condition: str) -> list[dict[str, Any]] | None:
    """The turns of a condition that is a conversation, as data modules name it; None for plain text."""
    if not condition.startswith(("[", "{")):
        return None
    try:
        found = json.loads(condition)
    except ValueError:
        return None
    turns = found.get("prompt") if isinstance(found, dict) else found
    good = isinstance(turns, list) and turns and all(isinstance(t, dict) and "role" in t for t in turns)
    return turns if good else None


def condition_ids(tokenizer: Any, condition: str) -> list[int]:
    """Token ids of a condition: as plain text, after BOS where the tokenizer adds it, or through its chat template."""
    turns = turns_of(condition)
    if turns is not None:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return plain_ids(tokenizer, text)
    ids, bos = plain_ids(tokenizer, condition), tokenizer.bos_token_id
    return [bos, *ids] if bos is not None and (_adds_bos(tokenizer) or not ids) else ids


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens around it."""
    return tokenizer(text, add_special_tokens=False).input_ids


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


class AnswerTokens(NamedTuple):
    """One row: log-probability (T,) and rank (T,), 1 = likeliest, of each token of a completion."""

    logps: Tensor
    ranks: Tensor


@torch.no_grad()
def answer_tokens(
    network: nn.Module,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    batch_size: int = 16,
    ranks: bool = False,
) -> list[AnswerTokens]:
    """Log pi(completion token | what is before it) of each row, float32 on the CPU; ranks (int64) where asked for.

    Raises:
        ValueError: a prompt or completion without a token.
    """
    empty = [i for i, (p, c) in enumerate(zip(prompts, completions, strict=True)) if not len(p) or not len(c)]
    if empty:
        raise ValueError(f"rows {empty} have a condition or a completion without a token")
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - len(completions[i]))
    out: dict[int, AnswerTokens] = {}
    with eval_mode(network):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            logps, place = _batch(network, [prompts[i] for i in rows], [completions[i] for i in rows], ranks)
            for at, i in enumerate(rows):
                out[i] = AnswerTokens(logps[at, : len(completions[i])], place[at, : len(completions[i])])
    return [out[i] for i in range(len(prompts))]


def _batch(
    network: nn.Module, prompts: Sequence[Ids], completions: Sequence[Ids], ranks: bool
) -> tuple[Tensor, Tensor]:
    device = next(network.parameters()).device
    prompt, prompt_length = _padded(prompts, device)
    completion, length = _padded(completions, device)
    tokens = Tokens(prompt, prompt_length, completion[:, None], length[:, None])
    rows = separate_rows(tokens)
    hidden = hidden_states(network, rows).flatten(0, 1)[rows.source.flatten()].unflatten(0, rows.source.shape)[:, 0]
    head = output_head(network)
    logps = score_tokens(hidden, head, completion, tokens.mask[:, 0]).logps.float().cpu()
    places = torch.zeros_like(completion)
    if ranks:
        for at, (states, labels) in enumerate(zip(hidden, completion, strict=True)):
            logits = torch.nn.functional.linear(states, head.weight, head.bias).float() * head.scale
            places[at] = 1 + (logits > logits.gather(1, labels[:, None])).sum(1)
    return logps, places.cpu()


def _padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(list(row))
    return ids.to(device), lengths.to(device)
