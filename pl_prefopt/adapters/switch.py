"""Switching peft adapters inside any network they were injected into (transformers, diffusers, own modules)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

REFERENCE = "reference"


def adapter_layers(network: nn.Module) -> list[Any]:
    """All layers of `network` that carry adapters, modules-to-save wrappers included; empty without peft."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import AuxiliaryTrainingWrapper
    except ImportError:
        return []
    return [m for m in network.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def has_adapters(network: nn.Module) -> bool:
    """Whether peft adapters are injected into `network`."""
    return bool(adapter_layers(network))


@contextmanager
def adapters_disabled(network: nn.Module) -> Iterator[None]:
    """Run `network` without its adapters; which parameters train does not change.

    Leave the block before backward: with gradient checkpointing the recomputation must see the adapters again.
    """
    before = [(layer, layer.disable_adapters) for layer in adapter_layers(network)]
    try:
        # The private flag, because `enable_adapters` would also set requires_grad of every parameter, twice per step.
        for layer, _ in before:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in before:
            layer._disable_adapters = disabled


@contextmanager
def adapter_active(network: nn.Module, name: str) -> Iterator[None]:
    """Run `network` with the adapter `name` alone; requires_grad and the active adapter are restored on exit.

    Raises:
        ValueError: no layer of `network` has such an adapter.
    """
    if name not in adapter_names(network):
        raise ValueError(f"network has no adapter named {name!r}, got {sorted(adapter_names(network)) or 'none'}")
    with _switched(network):
        for layer in adapter_layers(network):
            layer.enable_adapters(True)
            layer.set_adapter(name)
        yield


@contextmanager
def _switched(network: nn.Module) -> Iterator[None]:
    """Restore active adapters and requires_grad on exit: peft's own switches change both."""
    trainable = {name: p.requires_grad for name, p in network.named_parameters()}
    before = [(layer, layer.active_adapters, layer.disable_adapters) for layer in adapter_layers(network)]
    try:
        yield
    finally:
        for layer, active, disabled in before:
            layer.enable_adapters(not disabled)
            if active:
                layer.set_adapter(active)
        for name, p in network.named_parameters():
            p.requires_grad_(trainable.get(name, p.requires_grad))


def adapter_names(network: nn.Module) -> set[str]:
    """Names of the adapters of `network`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in adapter_layers(network) if isinstance(m, BaseTunerLayer)]
    return {key for layer in layers for part in layer.adapter_layer_names for key in getattr(layer, part, {})}


def adapter_parameters(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter, keyed by their name without that of the adapter, so that adapters share their keys."""
    parameters = {}
    for key, p in network.named_parameters():
        parts = key.split(".")
        if name in parts and any(part.startswith(("lora_", "modules_to_save")) or "vera" in part for part in parts):
            parameters[".".join(part for part in parts if part != name)] = p
    return parameters


def add_adapter_copy(network: nn.Module, source: str, name: str) -> None:
    """Add a frozen adapter `name` with the configuration and the values of `source`; `source` stays active."""
    config = getattr(network, "peft_config", {}).get(source)
    if config is None:
        raise ValueError(f"network must have a peft configuration named {source!r} to copy, got none")
    from peft import PeftModel, inject_adapter_in_model

    config = copy.copy(config)
    if hasattr(config, "init_lora_weights"):  # PiSSA and its relatives would take their factors out of the base again
        config.init_lora_weights = True
    with _switched(network):
        if isinstance(network, PeftModel):
            network.add_adapter(name, config)
        elif hasattr(network, "add_adapter"):  # transformers and diffusers take the arguments in reverse order
            network.add_adapter(config, adapter_name=name)  # pyright: ignore[reportCallIssue]
        else:
            inject_adapter_in_model(config, network, name)
        values, copies = adapter_parameters(network, source), adapter_parameters(network, name)
        with torch.no_grad():
            for key, target in copies.items():
                target.copy_(values[key])
    for target in adapter_parameters(network, name).values():
        target.requires_grad_(False)
