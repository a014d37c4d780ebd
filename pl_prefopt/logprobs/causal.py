"""Splitting a causal language model into the part that makes hidden states and its output layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.logprobs import Head
from pl_prefopt.logprobs.layout import Rows, Tokens, separate_rows, shared_prefix_rows
from pl_prefopt.utilities.sharding import whole


def causal_lm(network: nn.Module) -> Any:
    """The transformers model inside `network`: the network itself, or what a peft wrapper holds."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network  # pyright: ignore[reportCallIssue]


def hidden_states(network: nn.Module, rows: Rows) -> Tensor:
    """(R, L, H) input of the output layer for one layout of rows."""
    model = causal_lm(network)
    mask = rows.attention_mask
    if mask.dim() == 4 and model.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(model.dtype).min
        )
    inputs = {"input_ids": rows.input_ids, "attention_mask": mask, "use_cache": False}
    if getattr(model.config, "position_embedding_type", None) != "none" and _takes_positions(model.base_model):
        inputs["position_ids"] = rows.position_ids
    return model.base_model(**inputs).last_hidden_state


def _takes_positions(backbone: nn.Module) -> bool:
    import inspect

    parameters = inspect.signature(backbone.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def output_head(network: nn.Module) -> Head:
    """The output layer of a causal language model.

    Raises:
        ValueError: no output layer, or adapters on it.
    """
    model = causal_lm(network)
    layer = model.get_output_embeddings()
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output layer: a causal language model is needed")
    if hasattr(layer, "base_layer"):
        raise ValueError(
            "an adapter sits on the output layer; take 'lm_head' out of lora.target_modules, or train it whole through "
            "lora.modules_to_save"
        )
    if hasattr(layer, "modules_to_save"):
        layer = layer.original_module if layer.disable_adapters else layer.modules_to_save[layer.active_adapters[0]]
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    if getattr(config, "logits_scaling", None):
        scale = 1.0 / config.logits_scaling
    return Head(whole(layer.weight), whole(getattr(layer, "bias", None)), scale, config_cap(config))


def config_cap(config: Any) -> float | None:
    """Bound of the logits in a configuration (Gemma 2), None where there is none."""
    return getattr(config, "final_logit_softcapping", None)


def _probe(network: nn.Module) -> Tokens:
    vocab = causal_lm(network).config.get_text_config().vocab_size
    device = next(network.parameters()).device
    ids = (torch.arange(12, device=device) * 7 + 3) % vocab
    return Tokens(
        ids[None, :4], torch.tensor([4], device=device), ids[4:].view(1, 2, 4), torch.tensor([[4, 3]], device=device)
    )


@torch.no_grad()
def check_head(network: nn.Module) -> None:
    """Compare hidden states and output layer with the model's own logits on one tiny row.

    Raises:
        ValueError: they differ, so log-probabilities taken from them would be wrong.
    """
    rows = separate_rows(_probe(network))
    hidden, head = hidden_states(network, rows), output_head(network)
    logits = hidden.float() @ head.weight.float().t()
    logits = logits if head.bias is None else logits + head.bias.float()
    logits = logits * head.scale
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    model = causal_lm(network)
    own = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits.float()
    gap = ((own - logits).abs() * rows.attention_mask[..., None]).max()
    if gap > 0.02 * own.abs().max().clamp(min=1.0):
        raise ValueError(
            f"{type(model).__name__}: hidden states times output layer differ from the model's logits by {gap:.3g}. "
            "Its head does something this library does not know; please report the model type."
        )


@torch.no_grad()
def honours_shared_prefix(network: nn.Module) -> bool:
    """Whether the model gives the same hidden states for shared-prefix rows as for separate rows, on a tiny probe."""
    model = causal_lm(network)
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    tokens = _probe(network)
    try:
        one, two = separate_rows(tokens), shared_prefix_rows(tokens)
        a = hidden_states(network, one).float().flatten(0, 1)[one.source[tokens.mask]]
        b = hidden_states(network, two).float().flatten(0, 1)[two.source[tokens.mask]]
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return bool((a - b).abs().max() <= 0.02 * a.abs().max().clamp(min=1e-6))
