"""Causal language models: prompt and completions in one row."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.logprobs.chunked_head import Head
from pl_prefopt.logprobs.family import TokenFamily, base_model, output_layer
from pl_prefopt.logprobs.layout import Rows, Tokens, prefix_pays, separate_rows, shared_prefix_rows
from pl_prefopt.logprobs.probe import (
    PROMPT,
    apply_head,
    busy_adapters,
    check_training_mode,
    difference,
    exact_products,
    key_limit,
    learned_positions,
    networks_to_probe,
    probe_tokens,
    refuse,
    refuse_capacity,
    refuse_head,
    refuse_padding,
    rope_limits,
    rounding,
    running,
    windows,
)
from pl_prefopt.utilities.padding import pad_right
from pl_prefopt.utilities.sharding import whole


class CausalFamily(TokenFamily[Rows]):
    """Decoder-only models; prompts are read once per row where the model honours it and it pays.

    Args:
        shared_prefix: True, False, or None: on where the model honours it and prompts are the longer part.
    """

    def __init__(self, shared_prefix: bool | None = None) -> None:
        self.shared_prefix = shared_prefix
        self.prefix_honoured = False
        """Whether the model gives the same states for shared-prefix rows; `check` finds out."""
        self.longest_shared_row = math.inf
        """Up to how many tokens of such a row, prompt and all completions."""
        self.rope_limits: dict[str, int] = {}
        self.learned_positions = math.inf
        self.key_limit = math.inf

    def check(self, *networks: nn.Module) -> None:
        """Check the calls, the output layer and the shared-prefix rows on the models that will be used.

        Raises:
            ValueError: the model cannot be scored, with the reason; or `shared_prefix: true` for a model that gives
                other states then.
        """
        limits = []
        for network in networks:
            refuse_capacity(network)
            self.learned_positions = min(self.learned_positions, learned_positions(network) or math.inf)
            self.key_limit = min(self.key_limit, key_limit(network) or math.inf)
            self.rope_limits |= rope_limits(network)
            probes = networks_to_probe(network, lambda probe: _own_logits(probe, probe_tokens(probe).prompt[0, :4]))
            with exact_products(), busy_adapters(network):
                for probe in probes:
                    check_separate_rows(probe, self.learned_positions)
                if self.shared_prefix is not False:
                    limits.append(min(longest_shared_row(probe, self.learned_positions) for probe in probes))
        self.longest_shared_row = min(limits, default=0)
        self.prefix_honoured = self.longest_shared_row > 0
        if self.shared_prefix and not self.prefix_honoured:
            raise ValueError(
                "shared_prefix: true, but this model gives other hidden states for shared-prefix rows; leave it unset "
                "or set it to false"
            )

    def rows(self, network: nn.Module, tokens: Tokens, extra: dict[str, Tensor] | None = None) -> Rows:
        """Shared-prefix rows where they are honoured and pay, else separate rows.

        Raises:
            ValueError: `extra` inputs, or rows that are longer than the model's positions allow.
        """
        if extra:
            raise ValueError(f"a causal language model must be given tokens alone, got {', '.join(sorted(extra))} too")
        self._check_lengths(tokens)
        share = self.prefix_honoured and (self.shared_prefix or prefix_pays(tokens))
        if share and self.longest_shared_row < math.inf:
            share = int((tokens.prompt_length + tokens.length.sum(1)).max()) <= self.longest_shared_row
        return shared_prefix_rows(tokens) if share else separate_rows(tokens)

    def _check_lengths(self, tokens: Tokens) -> None:
        if min(self.learned_positions, self.key_limit) == math.inf and not self.rope_limits:
            return
        lengths = tokens.prompt_length[:, None] + tokens.length
        longest = int(lengths.max())
        reasons = {
            self.learned_positions: "the model has learned no more positions",
            self.key_limit: "beyond that the model keeps the highest-ranked keys, and ties fall as padding says",
        }
        for kind, limit in self.rope_limits.items():
            if "dynamic" in kind or int(lengths[tokens.length > 0].min()) <= limit:
                reasons[limit] = f"rotary positions of type {kind} rescale every row of a batch by its longest"
        for limit, reason in reasons.items():
            if longest > limit:
                raise ValueError(
                    f"prompt and completion must have at most {limit} tokens together, got {longest}: {reason}. "
                    "Shorten rows by the datamodule's length limits."
                )

    def predicting_states(self, network: nn.Module, rows: Rows) -> Tensor:
        """(B, K, T, H) hidden states that predict each completion token."""
        hidden = hidden_states(network, rows)
        return hidden.flatten(0, 1)[rows.source.flatten()].unflatten(0, rows.source.shape)

    def output_head(self, network: nn.Module) -> Head:
        """The output layer with the scale and the bound of the model's logits."""
        return output_head(network)

    def sample(
        self, network: nn.Module, prompts: Sequence[Sequence[int]], pad: int, options: dict[str, Any]
    ) -> list[list[int]]:
        """One left-padded call of `generate`."""
        device = next(network.parameters()).device
        ids, mask = pad_right([prompt[::-1] for prompt in prompts], pad)
        ids, mask = ids.flip(1).to(device), mask.flip(1).long().to(device)
        rows = network.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **options)  # type: ignore[operator]
        return rows[:, ids.shape[1] :].tolist()


def hidden_states(network: nn.Module, rows: Rows) -> Tensor:
    """(R, L, H) input of the output layer for one layout of rows.

    Separate rows leave positions to the model, since some count them in their own way; shared-prefix rows need theirs.
    """
    model, mask = base_model(network), rows.attention_mask
    # some classes do not say right under which name their backbone lies, and give themselves
    backbone = getattr(model, "model", model) if model.base_model is model else model.base_model
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "use_cache": False, **rows.extra}
    if mask.dim() == 2:
        return backbone(attention_mask=mask.long(), **inputs).last_hidden_state
    if model.config._attn_implementation == "eager":
        # eager attention adds its mask to the scores, so a bool mask has to become 0 and -inf
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(model.dtype).min
        )
    if getattr(model.config, "position_embedding_type", None) != "none" and _takes_positions(backbone):
        inputs["position_ids"] = rows.position_ids
    return backbone(attention_mask=mask, **inputs).last_hidden_state


def output_head(network: nn.Module) -> Head:
    """The output layer of a causal language model.

    Raises:
        ValueError: no output layer, or adapters on it.
    """
    layer, config = output_layer(network), base_model(network).config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    for name in ("logits_scaling", "logits_mup_width_multiplier"):
        scale /= getattr(config, name, None) or 1.0
    caps = (getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
    return Head(whole(layer.weight), whole(getattr(layer, "bias", None)), scale, next((c for c in caps if c), None))


@torch.no_grad()
def check_separate_rows(network: nn.Module, longest: float = math.inf) -> None:
    """Compare padded rows and the output layer with the model's own logits of each row alone.

    Raises:
        ValueError: the model cannot be called with tokens alone, sees what comes later, or gives other values; the
            log-probabilities would be wrong.
    """
    tokens = probe_tokens(network, longest)
    rows = separate_rows(tokens)
    lengths = rows.attention_mask.sum(1).tolist()
    head = output_head(network)
    with running(network):
        alone = [_own_logits(network, ids[:length]) for ids, length in zip(rows.input_ids, lengths, strict=True)]
        hidden = hidden_states(network, rows)
        logits = apply_head(hidden, head)
    tolerance, prompt = rounding(hidden.dtype), int(tokens.prompt_length[0])
    if max(difference(a[: prompt - 1], alone[0][: prompt - 1], hidden.dtype) for a in alone) > tolerance:
        refuse(
            network,
            "the model must be causal, but what follows a token changes the logits at this token; set "
            "is_decoder: true where the configuration has it, or take a decoder",
        )
    gaps = [
        difference(values[:length], expected, hidden.dtype)
        for values, expected, length in zip(logits, alone, lengths, strict=True)
    ]
    if (gap := gaps[lengths.index(max(lengths))]) > tolerance:
        refuse_head(network, gap)
    if max(gaps) > tolerance:
        refuse_padding(network, max(gaps))
    check_training_mode(network, lambda: hidden_states(network, rows)[rows.attention_mask])


def _own_logits(network: nn.Module, ids: Tensor) -> Tensor:
    """(L, V) float32 logits of one row (L,) as the model itself gives them."""
    model = base_model(network)
    return model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False).logits[0].float()


@torch.no_grad()
def honours_shared_prefix(network: nn.Module, longest: float = math.inf) -> bool:
    """Whether the model gives the same hidden states for shared-prefix rows as for separate rows, on a probe."""
    if base_model(network).config._attn_implementation not in ("sdpa", "eager"):
        return False
    tokens = probe_tokens(network, longest)

    def states(rows: Rows) -> Tensor:
        return hidden_states(network, rows).flatten(0, 1)[rows.source[tokens.mask]]

    try:
        separate, shared = states(separate_rows(tokens)), states(shared_prefix_rows(tokens))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # what a model says to a mask that it does not know can be anything
        return False
    return difference(shared, separate, separate.dtype) <= rounding(separate.dtype)


def longest_shared_row(network: nn.Module, longest: float = math.inf) -> float:
    """Up to how many tokens shared-prefix rows are proven right; 0 for never.

    Layers with a window do not apply it to a mask of our own. So a row must fit into every window that the probe's
    prompt does not exceed; for shorter windows the probe itself tells.
    """
    lengths = windows(network)
    if honours_shared_prefix(network, longest):
        return min((w for w in lengths if w > min(PROMPT, longest)), default=math.inf)
    shortest = min(lengths, default=0)
    return shortest if 8 <= shortest <= PROMPT + 15 and honours_shared_prefix(network, shortest) else 0


def _takes_positions(backbone: nn.Module) -> bool:
    parameters = inspect.signature(backbone.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
