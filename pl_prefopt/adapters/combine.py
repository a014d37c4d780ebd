"""Linear combinations of adapter files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ADAPTER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


def combine_adapters(paths: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> Path:
    """Write the linear combination sum_i weights_i * adapter_i: COFS-DPO's theta (2406.05534).

    theta = lambda F_1 + (1 - lambda) F_2 acts on the adapter parameters themselves, as in the paper's abstract; the
    choice of lambda on a memory of earlier data is up to the caller (`pl_prefopt.adapters.cofs`).

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
