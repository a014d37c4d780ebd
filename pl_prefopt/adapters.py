"""Switching peft adapters inside any network they were injected into (transformers, diffusers, own modules)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

REFERENCE = "reference"
ADAPTER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


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

    Leave the block before backward: with gradient checkpointing the recomputation must see the adapters again. The
    flag is set directly: `enable_adapters` would also walk through all parameters of all layers, twice a step.
    """
    before = [(layer, layer.disable_adapters) for layer in adapter_layers(network)]
    try:
        for layer, _ in before:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in before:
            layer._disable_adapters = disabled


@contextmanager
def adapter_active(network: nn.Module, name: str) -> Iterator[None]:
    """Run `network` with the adapter `name` alone; trainability and the active adapter are restored at the end.

    Raises:
        ValueError: no layer of `network` has such an adapter.
    """
    if name not in adapter_names(network):
        raise ValueError(f"no adapter named {name!r}; the network has {sorted(adapter_names(network)) or 'none'}")
    with _switched(network):
        for layer in adapter_layers(network):
            layer.enable_adapters(True)
            layer.set_adapter(name)
        yield


@contextmanager
def _switched(network: nn.Module) -> Iterator[None]:
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
    """Names of the adapters found in `network`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in adapter_layers(network) if isinstance(m, BaseTunerLayer)]
    return {key for layer in layers for part in layer.adapter_layer_names for key in getattr(layer, part, {})}


def adapter_parameters(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter, keyed by their name with the adapter's own name taken out."""
    found = {}
    for key, p in network.named_parameters():
        parts = key.split(".")
        if name in parts and any(part.startswith(("lora_", "modules_to_save")) or "vera" in part for part in parts):
            found[".".join(part for part in parts if part != name)] = p
    return found


def add_adapter_copy(network: nn.Module, source: str, name: str) -> None:
    """Add a frozen adapter `name` with the configuration and the values of `source`; `source` stays active."""
    config = getattr(network, "peft_config", {}).get(source)
    if config is None:
        raise ValueError(f"the network has no peft configuration named {source!r}, so it cannot be copied")
    from peft import PeftModel, inject_adapter_in_model

    with _switched(network):
        if isinstance(network, PeftModel):
            network.add_adapter(name, config)
        elif hasattr(network, "add_adapter"):  # transformers and diffusers turn the arguments round
            network.add_adapter(config, adapter_name=name)  # pyright: ignore[reportCallIssue]
        else:
            inject_adapter_in_model(config, network, name)
        values, copies = adapter_parameters(network, source), adapter_parameters(network, name)
        with torch.no_grad():
            for key, target in copies.items():
                target.copy_(values[key])
    for target in adapter_parameters(network, name).values():
        target.requires_grad_(False)


def combine_adapters(paths: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> Path:
    """Write the linear combination sum_i weights_i * adapter_i: COFS-DPO's theta (2406.05534).

    theta = lambda F_1 + (1 - lambda) F_2 acts on the adapter parameters themselves, as in the paper's abstract; the
    choice of lambda on a memory of earlier data is up to the caller (`pl_prefopt.cofs`).

    Args:
        paths: folders with an adapter of peft (adapter_config.json, adapter_model.safetensors) or of diffusers
            (pytorch_lora_weights.safetensors), at least one, all of one format.
        weights: one finite number per path.
        out: folder to write, in the same format; created when absent.

    Returns:
        The folder written.

    Raises:
        ValueError: counts that differ, weights that are not finite, adapters of different shape or configuration.
    """
    from safetensors.torch import load_file, save_file

    folders = [Path(p) for p in paths]
    if not folders or len(folders) != len(weights):
        raise ValueError(f"paths and weights must be equally many and not empty, got {len(folders)} and {len(weights)}")
    if not all(torch.isfinite(torch.tensor(float(w))) for w in weights):
        raise ValueError(f"weights must be finite, got {list(weights)}")
    files = [_adapter_file(folder) for folder in folders]
    settings = [_settings(file) for file in files]
    for key in ("peft_type", "r", "lora_alpha", "target_modules", "use_rslora"):
        seen = [_comparable(found, key) for found in settings]
        if any(s != seen[0] for s in seen):
            raise ValueError(f"adapters differ in {key}: {seen}; only adapters of one configuration can be combined")
    states = [load_file(file) for file in files]
    _same_layout(states, folders)
    mixed = {k: sum(w * s[k].float() for w, s in zip(weights, states, strict=True)) for k in states[0]}
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {k: torch.as_tensor(v).to(states[0][k].dtype) for k, v in mixed.items()}
    save_file(tensors, target / files[0].name, metadata=_metadata(files[0]) or {"format": "pt"})
    if (config := folders[0] / "adapter_config.json").is_file():
        (target / config.name).write_bytes(config.read_bytes())
    return target


def _adapter_file(folder: Path) -> Path:
    for name in ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} holds no {' or '.join(ADAPTER_FILES)}; give the folder that AdapterExport wrote")


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def _settings(file: Path) -> dict[str, Any]:
    """Configuration of an adapter: beside it (peft), or in the header of its file (diffusers)."""
    beside = file.parent / "adapter_config.json"
    if file.name == ADAPTER_FILES[0] and beside.is_file():
        return json.loads(beside.read_text())
    return json.loads(_metadata(file).get("lora_adapter_metadata", "{}"))


def _comparable(settings: Mapping[str, Any], name: str) -> list[Any]:
    """The values of `name`; diffusers puts that of each network under "<network>.<name>"."""
    found = [v for k, v in sorted(settings.items()) if k.split(".")[-1] == name]
    return [sorted(v) if isinstance(v, list) else v for v in found]


def _same_layout(states: Sequence[Mapping[str, Tensor]], folders: Sequence[Path]) -> None:
    first = {k: tuple(v.shape) for k, v in states[0].items()}
    for state, folder in zip(states[1:], folders[1:], strict=True):
        other = {k: tuple(v.shape) for k, v in state.items()}
        if other != first:
            odd = sorted({k for k in first.keys() | other.keys() if first.get(k) != other.get(k)})[:3]
            raise ValueError(f"{folder} has other tensors than {folders[0]}: {', '.join(odd)}")
