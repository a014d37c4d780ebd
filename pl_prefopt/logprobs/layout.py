"""From prompts and completions to the rows a network reads, and back to the positions that predict each token.

A causal network has two layouts that give the same numbers: separate rows (prompt + completion, one row a completion)
and shared-prefix rows (prompt once, every completion attends to the prompt and to itself, positions restart after the
prompt). An encoder-decoder reads the prompt in its encoder, once, and every completion in its decoder.

Shapes: B groups, K completions of one prompt, P prompt tokens, T completion tokens, R rows, L row length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Left-aligned token ids with their lengths.

    Args:
        prompt: (B, P) int64; prompt_length: (B,), at least 1 each.
        completion: (B, K, T) int64; length: (B, K), 0 for the padding of a ragged list.
    """

    prompt: Tensor
    prompt_length: Tensor
    completion: Tensor
    length: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, K, T) bool, True at real completion tokens."""
        return torch.arange(self.completion.shape[-1], device=self.length.device) < self.length[..., None]

    def first(self, k: int) -> Tokens:
        """The first k completions only."""
        length = self.length[:, :k]
        width = int(length.max())
        return Tokens(self.prompt, self.prompt_length, self.completion[:, :k, :width], length)


@dataclass(frozen=True)
class Rows:
    """Inputs of one forward pass of a causal network.

    Args:
        input_ids: (R, L).
        attention_mask: (R, L) bool for separate rows, (R, 1, L, L) bool (query, key) for shared-prefix rows.
        position_ids: (R, L).
        source: (B, K, T) index into the R * L positions: where the hidden state lies that predicts each token.
        extra: further arguments of the network, such as pixels; rows first.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    source: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderDecoderRows:
    """Inputs of one forward pass of an encoder-decoder; R = B * K, row b * K + k.

    Args:
        input_ids: (B, P) for the encoder.
        attention_mask: (B, P) bool.
        decoder_input_ids: (R, T) completions, shifted right by one: position t predicts token t.
        count: K, completions of a prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor
    count: int


def read_tokens(batch: dict[str, Tensor]) -> Tokens:
    """Compact a text batch, so that neither the side nor the amount of its padding matters.

    Raises:
        ValueError: a prompt without a token, or a pair member without one.
    """
    prompt, prompt_length = _compact(batch["prompt_ids"], batch["prompt_mask"])
    completion, length = _compact(batch["completion_ids"], batch["completion_mask"])
    real = batch.get("list_mask", torch.ones_like(length, dtype=torch.bool))
    bad = (prompt_length == 0) | ((length == 0) & real).any(1)
    if bad.any():
        rows = batch["index"][bad].tolist() if "index" in batch else bad.nonzero().flatten().tolist()
        raise ValueError(f"rows {rows}: prompt and completions need at least one token each")
    return Tokens(prompt, prompt_length, completion, length)


def _compact(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    mask = mask.bool()
    length = mask.sum(-1)
    # a stable sort by "is padding" moves the real tokens to the front and keeps their order
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    width = max(int(length.max()), 1)
    return ids.gather(-1, order)[..., :width], length


def separate_rows(tokens: Tokens, pad_id: int = 0) -> Rows:
    """One row of prompt + completion for every (b, k), right-padded; R = B * K, row b * K + k."""
    batch, count, width = tokens.completion.shape
    p, c = tokens.prompt_length[:, None, None], tokens.length[..., None]
    total = int((p + c).max())
    at = torch.arange(total, device=tokens.prompt.device).expand(batch, count, total)
    from_prompt = tokens.prompt[:, None].expand(batch, count, -1).gather(-1, at.clamp(max=tokens.prompt.shape[1] - 1))
    from_completion = tokens.completion.gather(-1, (at - p).clamp(0, width - 1))
    real = at < p + c
    ids = torch.where(at < p, from_prompt, from_completion).masked_fill(~real, pad_id)
    row = torch.arange(batch * count, device=at.device).view(batch, count, 1) * total
    source = row + p - 1 + torch.arange(width, device=at.device)
    return Rows(ids.flatten(0, 1), real.flatten(0, 1), at.flatten(0, 1), source.clamp(max=batch * count * total - 1))


def shared_prefix_rows(tokens: Tokens, pad_id: int = 0) -> Rows:
    """One row of prompt, completion 1, ..., completion K for every b; R = B.

    A position sees what is not after it and lies in the prompt or in its own completion. The last prompt token predicts
    the first token of every completion.
    """
    batch, count, width = tokens.completion.shape
    p, c = tokens.prompt_length, tokens.length
    start = p[:, None] + c.cumsum(1) - c
    total = int((p + c.sum(1)).max())
    at = torch.arange(total, device=p.device).expand(batch, total)
    # segment 0 is the prompt, k the k-th completion (from 1), count + 1 the padding: the number of starts passed
    segment = (at[:, None] >= start[..., None]).sum(1)
    padding = at >= (p + c.sum(1))[:, None]
    segment = segment.masked_fill(padding, count + 1)
    begin = torch.cat([torch.zeros_like(p)[:, None], start, start[:, -1:]], 1).gather(1, segment)
    offset = (at - begin).clamp(max=width - 1)
    flat = tokens.completion.flatten(1).gather(1, (segment - 1).clamp(0, count - 1) * width + offset.clamp(min=0))
    prompt = tokens.prompt.gather(1, at.clamp(max=tokens.prompt.shape[1] - 1))
    ids = torch.where(segment == 0, prompt, flat).masked_fill(padding, pad_id)
    position = torch.where(segment == 0, at, p[:, None] + at - begin).masked_fill(padding, 0)
    visible = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    allowed = visible & (at[:, None, :] <= at[:, :, None])
    # token 0 of EVERY completion is predicted by the last prompt token, token t by the completion's token t - 1
    t = torch.arange(width, device=p.device)
    source = torch.where(t == 0, p[:, None, None] - 1, start[..., None] + t - 1)
    source = source + (torch.arange(batch, device=p.device) * total)[:, None, None]
    return Rows(ids, allowed[:, None], position, source.clamp(max=batch * total - 1))


def encoder_decoder_rows(tokens: Tokens, start_id: int, pad_id: int = 0) -> EncoderDecoderRows:
    """Prompts for the encoder, completions shifted right for the decoder.

    Args:
        tokens: prompts and completions.
        start_id: what the decoder begins with.
        pad_id: what stands outside the masks.
    """
    prompt_mask = torch.arange(tokens.prompt.shape[1], device=tokens.prompt.device) < tokens.prompt_length[:, None]
    completions = tokens.completion.masked_fill(~tokens.mask, pad_id).flatten(0, 1)
    start = completions.new_full((len(completions), 1), start_id)
    return EncoderDecoderRows(
        tokens.prompt.masked_fill(~prompt_mask, pad_id),
        prompt_mask,
        torch.cat([start, completions[:, :-1]], 1),
        tokens.completion.shape[1],
    )


def prefix_pays(tokens: Tokens) -> bool:
    """Whether shared-prefix rows are cheaper: the prompts are at least as long as the mean completion."""
    return bool(tokens.prompt_length.sum() * tokens.length.shape[1] >= tokens.length.sum())
