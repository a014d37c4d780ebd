"""Shared by judges with a language model: conversations in conditions, token log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pl_prefopt.logprobs import score_tokens
from pl_prefopt.logprobs.causal import hidden_states, output_head
from pl_prefopt.logprobs.layout import Tokens, separate_rows
from pl_prefopt.utilities.modes import eval_mode
from pl_prefopt.utilities.padding import pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]


def turns_of(condition: str) -> list[dict[str, Any]] | None:
    """Turns of a condition that is a conversation, in the JSON form of the datamodules; None for plain text."""
    if not condition.startswith(("[", "{")):
        return None
    try:
        content = json.loads(condition)
    except ValueError:
        return None
    turns = content.get("prompt") if isinstance(content, dict) else content
    is_conversation = isinstance(turns, list) and turns and all(isinstance(t, dict) and "role" in t for t in turns)
    return turns if is_conversation else None


def condition_ids(tokenizer: PreTrainedTokenizerBase, condition: str) -> list[int]:
    """Token ids of a condition: as plain text, after BOS where the tokenizer adds it, or through its chat template."""
    turns = turns_of(condition)
    if turns is not None:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return plain_ids(tokenizer, str(text))
    ids, bos = plain_ids(tokenizer, condition), tokenizer.bos_token_id
    # An empty condition gets BOS in any case: the first token of the sample needs something to be predicted from.
    if isinstance(bos, int) and (not ids or tokenizer("a").input_ids[:1] == [bos]):
        return [bos, *ids]
    return ids


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text without special tokens around it."""
    return tokenizer(text, add_special_tokens=False).input_ids


class AnswerTokens(NamedTuple):
    """Log-probability (T,) and rank (T,), 1 = likeliest, of each token of one completion."""

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
    """Score the completion tokens of each row, log pi(token | all before it), float32 on the CPU.

    Args:
        network: a causal language model.
        prompts: token ids of each row's prompt.
        completions: token ids of each row's completion.
        batch_size: rows per forward pass.
        ranks: compute the tokens' ranks (int64) too; they are 0 otherwise.

    Raises:
        ValueError: a prompt or completion without a token.
    """
    empty = [i for i, (p, c) in enumerate(zip(prompts, completions, strict=True)) if not len(p) or not len(c)]
    if empty:
        raise ValueError(f"conditions and completions must have at least one token each, got none in rows {empty}")
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - len(completions[i]))
    answers: dict[int, AnswerTokens] = {}
    with eval_mode(network):
        for start in range(0, len(prompts), batch_size):
            rows = longest_first[start : start + batch_size]
            logps, token_ranks = _batch(network, [prompts[i] for i in rows], [completions[i] for i in rows], ranks)
            for position, i in enumerate(rows):
                length = len(completions[i])
                answers[i] = AnswerTokens(logps[position, :length], token_ranks[position, :length])
    return [answers[i] for i in range(len(prompts))]


def _batch(
    network: nn.Module, prompts: Sequence[Ids], completions: Sequence[Ids], ranks: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ranks (B, T) of a few rows, padded on the right."""
    device = next(network.parameters()).device
    prompt, prompt_mask = (part.to(device) for part in pad_right(prompts, 0))
    completion, mask = (part.to(device) for part in pad_right(completions, 0))
    tokens = Tokens(prompt, prompt_mask.sum(1), completion[:, None], mask.sum(1)[:, None])
    rows = separate_rows(tokens)
    hidden = hidden_states(network, rows).flatten(0, 1)[rows.source.flatten()].unflatten(0, rows.source.shape)[:, 0]
    head = output_head(network)
    logps = score_tokens(hidden, head, completion, tokens.mask[:, 0]).logps.float().cpu()
    token_ranks = torch.zeros_like(completion)
    if ranks:  # row by row, since (B, T, V) logits need not fit into memory
        for row, (states, labels) in enumerate(zip(hidden, completion, strict=True)):
            logits = torch.nn.functional.linear(states, head.weight, head.bias).float() * head.scale
            token_ranks[row] = 1 + (logits > logits.gather(1, labels[:, None])).sum(1)
    return logps, token_ranks.cpu()
