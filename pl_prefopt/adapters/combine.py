"""Linear combinations of adapter files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.utilities.files import write_atomic

PEFT_FILE = "adapter_model.safetensors"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_CONFIG = "adapter_config.json"
COMPARED = ("peft_type", "r", "lora_alpha", "target_modules", "use_rslora")
"""Settings that must be equal: with another rank, scale or other layers, a sum of parameters has no meaning."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it is on disk.

    Args:
        file: safetensors of peft or of diffusers.
        tensors: its parameters by name.
        metadata: header of the file.
        settings: configuration of the adapter.
    """

    file: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    settings: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> AdapterFile:
        """Read the adapter in a folder.

        Raises:
            ValueError: a folder without an adapter.
        """
        from safetensors import safe_open

        file = next((folder / name for name in (PEFT_FILE, DIFFUSERS_FILE) if (folder / name).is_file()), None)
        if file is None:
            raise ValueError(
                f"{folder} holds no {PEFT_FILE} or {DIFFUSERS_FILE}. Give the folder that AdapterExport wrote"
            )
        with safe_open(file, "pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
        # peft writes the configuration beside the file, diffusers into its header.
        beside = folder / PEFT_CONFIG
        if file.name == PEFT_FILE and beside.is_file():
            settings = json.loads(beside.read_text(encoding="utf-8"))
        else:
            settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        return cls(file, tensors, metadata, settings)

    def setting(self, name: str) -> list[object]:
        """The values of a setting; diffusers has one for each network of a pipeline, as "<network>.<name>"."""
        values = [value for key, value in sorted(self.settings.items()) if key.split(".")[-1] == name]
        return [sorted(value) if isinstance(value, list) else value for value in values]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def combine_adapters(paths: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> Path:
    """Write the linear combination sum_i weights_i * adapter_i: COFS-DPO's theta (2406.05534).

    theta = lambda F_1 + (1 - lambda) F_2 acts on the adapter parameters themselves, as in the paper's abstract; the
    choice of lambda on a memory of earlier data is up to the caller (`pl_prefopt.adapters.cofs`). Sums are float32, the
    result has the dtype of the first adapter.

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
    from safetensors.torch import save_file

    if not paths or len(paths) != len(weights):
        raise ValueError(f"paths and weights must be equally many and not empty, got {len(paths)} and {len(weights)}")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights must be finite, got {list(weights)}")
    adapters = [AdapterFile.load(Path(path)) for path in paths]
    _check_compatible(adapters)
    first = adapters[0]
    combined = {
        name: torch.stack([w * a.tensors[name].float() for w, a in zip(weights, adapters, strict=True)])
        .sum(0)
        .to(tensor.dtype)
        for name, tensor in first.tensors.items()
    }
    folder = Path(out)
    write_atomic(
        folder / first.file.name, lambda path: save_file(combined, path, metadata=first.metadata or {"format": "pt"})
    )
    config = first.file.with_name(PEFT_CONFIG)
    if config.is_file():
        (folder / PEFT_CONFIG).write_bytes(config.read_bytes())
    return folder


def _check_compatible(adapters: Sequence[AdapterFile]) -> None:
    first = adapters[0]
    for name in COMPARED:
        values = [adapter.setting(name) for adapter in adapters]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"adapters must have one configuration, but they differ in {name}: {values}. Combine adapters that "
                "were trained with the same options"
            )
    for adapter in adapters[1:]:
        shapes, first_shapes = adapter.shapes(), first.shapes()
        if shapes != first_shapes:
            names = sorted(shapes.keys() | first_shapes.keys())
            differing = [name for name in names if shapes.get(name) != first_shapes.get(name)]
            raise ValueError(
                f"{adapter.file.parent} must have the tensors of {first.file.parent}, got other ones: "
                f"{', '.join(differing[:3])}"
            )
