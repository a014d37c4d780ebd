"""Causal language models: prompt and completions in one row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.logprobs.chunked_head import Head
from pl_prefopt.logprobs.family import (
    TokenFamily,
    apply_head,
    base_model,
    output_layer,
    probe_tokens,
    refuse_difference,
)
from pl_prefopt.logprobs.layout import Rows, Tokens, prefix_pays, separate_rows, shared_prefix_rows
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

    def check(self, network: nn.Module) -> None:
        """Check the output layer and the shared-prefix rows on the model that will be used."""
        check_head(network)
        self.prefix_honoured = self.shared_prefix is not False and honours_shared_prefix(network)
        if self.shared_prefix and not self.prefix_honoured:
            raise ValueError(
                "shared_prefix: true, but this model gives other hidden states for shared-prefix rows; leave it unset "
                "or set it to false"
            )

    def rows(self, network: nn.Module, tokens: Tokens, extra: dict[str, Tensor] | None = None) -> Rows:
        """Shared-prefix rows where they are honoured and pay, else separate rows."""
        if extra:
            raise ValueError(f"a causal language model must be given tokens alone, got {', '.join(sorted(extra))} too")
        wanted = self.prefix_honoured and (self.shared_prefix or prefix_pays(tokens))
        share = wanted and _window_allows(base_model(network).config, tokens)
        return shared_prefix_rows(tokens) if share else separate_rows(tokens)

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
    """(R, L, H) input of the output layer for one layout of rows."""
    model = base_model(network)
    mask = rows.attention_mask
    if mask.dim() == 4 and model.config._attn_implementation == "eager":
        # eager attention adds its mask to the scores, so a bool mask has to become 0 and -inf
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(model.dtype).min
        )
    inputs = {"input_ids": rows.input_ids, "attention_mask": mask, "use_cache": False, **rows.extra}
    if getattr(model.config, "position_embedding_type", None) != "none" and _takes_positions(model.base_model):
        inputs["position_ids"] = rows.position_ids
    return model.base_model(**inputs).last_hidden_state


def output_head(network: nn.Module) -> Head:
    """The output layer of a causal language model.

    Raises:
        ValueError: no output layer, or adapters on it.
    """
    layer, config = output_layer(network), base_model(network).config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    if getattr(config, "logits_scaling", None):
        scale = 1.0 / config.logits_scaling
    return Head(
        whole(layer.weight),
        whole(getattr(layer, "bias", None)),
        scale,
        getattr(config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def check_head(network: nn.Module) -> None:
    """Compare hidden states and output layer with the model's own logits on one tiny row.

    Raises:
        ValueError: they differ, so log-probabilities taken from them would be wrong.
    """
    rows = separate_rows(probe_tokens(network))
    logits = apply_head(hidden_states(network, rows), output_head(network))
    model = base_model(network)
    expected = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
    refuse_difference(network, logits, expected, rows.attention_mask)


@torch.no_grad()
def honours_shared_prefix(network: nn.Module) -> bool:
    """Whether the model gives the same hidden states for shared-prefix rows as for separate rows, on a tiny probe."""
    if base_model(network).config._attn_implementation not in ("sdpa", "eager"):
        return False
    tokens = probe_tokens(network)

    def states(rows: Rows) -> Tensor:
        return hidden_states(network, rows).float().flatten(0, 1)[rows.source[tokens.mask]]

    try:
        separate, shared = states(separate_rows(tokens)), states(shared_prefix_rows(tokens))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return bool((separate - shared).abs().max() <= 0.02 * separate.abs().max().clamp(min=1e-6))


def _takes_positions(backbone: nn.Module) -> bool:
    parameters = inspect.signature(backbone.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _window_allows(config: Any, tokens: Tokens) -> bool:
    """Sliding-window layers do not window a 4-D mask, so every row must fit into the window."""
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int):
        return True
    return int((tokens.prompt_length + tokens.length.amax(1)).max()) <= window
