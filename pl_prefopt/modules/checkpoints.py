"""What goes into a checkpoint, and what is refused on the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pl_prefopt.utilities.configurable import updated_config


def trainable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """State-dict entries that receive gradients; tied weights appear under each of their names."""
    return {k: v for k, v in module.state_dict(keep_vars=True).items() if getattr(v, "requires_grad", False)}


def keep_trainable(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Drop from `checkpoint` what can be rebuilt: frozen weights, references, encoders."""
    keep = trainable_tensors(module)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}


def check_state(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Compare names and shapes of a checkpoint with the trainable tensors of the module.

    Raises:
        ValueError: tensors missing, unexpected, or of another shape, with the first few named.
    """
    saved, own = checkpoint.get("state_dict", {}), trainable_tensors(module)
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - set(module.state_dict()))
    shapes = [
        f"{k} {tuple(saved[k].shape)} != {tuple(own[k].shape)}"
        for k in own.keys() & saved.keys()
        if saved[k].shape != own[k].shape
    ]
    problems = {"missing": missing, "unexpected": extra, "of another shape": sorted(shapes)}
    told = [f"{len(v)} {k} ({', '.join(v[:3])}{', ...' if len(v) > 3 else ''})" for k, v in problems.items() if v]
    if told:
        raise ValueError(
            f"the checkpoint belongs to another model; its tensors are {'; '.join(told)}. "
            "Use the configuration that it was trained with."
        )


def compare_hparams(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse to resume a run under other hyper-parameters.

    Classes that moved to another file and arguments that were added with a default since the checkpoint was written
    make no difference.

    Raises:
        ValueError: listing `name: value in the checkpoint != configured value`.
    """
    a, b = dict(_flat(updated_config(saved))), dict(_flat(own))
    differing = [f"{k}: {a.get(k)!r} != {b.get(k)!r}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    if differing and saved:
        raise ValueError(
            "resuming under other hyper-parameters than the checkpoint's (checkpoint != configured): "
            + "; ".join(differing)
            + ". Resume with the old values, or start a new run from the exported weights."
        )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [item for k, v in value.items() for item in _flat(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, value)]
