"""COFS-DPO (2406.05534): one adapter out of those trained on several domains, mixed on a memory of earlier data."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from pl_prefopt.adapters import adapter_names, adapter_parameters, combine_adapters
from pl_prefopt.losses import dpo_loss
from pl_prefopt.utilities.checks import integer
from pl_prefopt.utilities.modes import eval_mode

Batch: TypeAlias = Any
"""What the module's own loader yields; only the module looks inside."""


@runtime_checkable
class GivesLosses(Protocol):
    """A module with a loss per pair."""

    policy: nn.Module

    def pair_losses(self, batch: Batch) -> Tensor:
        """Return losses (B,)."""
        ...


class GivesLogratios(Protocol):
    """A module with log-ratios of pairs."""

    policy: nn.Module

    def pair_logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log-ratios of the chosen and of the rejected samples, (B,) each."""
        ...


def mix_on_memory(
    first: str | Path, second: str | Path, out: str | Path, loss: Callable[[Path], float], *, steps: int = 11
) -> tuple[float, dict[float, float]]:
    """Write lambda * first + (1 - lambda) * second with the lambda of the lowest loss on a memory of earlier data.

    The paper's abstract says that lambda is chosen on a small memory; the grid is ours.

    Args:
        first: folder of the adapter of the earlier domain, as AdapterExport writes it.
        second: folder of the adapter of the later domain.
        out: folder to write, in the format of the two.
        loss: called with the folder of a candidate, returns its loss on the memory; lower is better.
        steps: points of the grid over [0, 1], >= 2.

    Returns:
        The chosen lambda (of equal losses the smallest), and lambda -> loss.

    Raises:
        ValueError: fewer than two points, a loss that is not finite, adapters that cannot be combined.
    """
    first, second = Path(first), Path(second)
    with tempfile.TemporaryDirectory() as tmp:

        def measure(weight: float) -> float:
            return loss(combine_adapters([first, second], [weight, 1 - weight], Path(tmp) / repr(weight)))

        best, losses = _grid_search(measure, steps)
        shutil.copytree(Path(tmp) / repr(best), out, dirs_exist_ok=True)
    return best, losses


def mix_in_place(
    policy: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    loss: Callable[[], float],
    *,
    steps: int = 11,
    adapter: str = "default",
) -> tuple[float, dict[float, float]]:
    """Put lambda * first + (1 - lambda) * second into a network of any modality; the rest as `mix_on_memory`.

    Args:
        policy: carries the adapter; holds the chosen mixture afterwards.
        first: values of the earlier domain's adapter, from `adapter_values`.
        second: values of the later domain's.
        loss: called while `policy` holds a candidate, returns its loss on the memory, as `memory_loss` makes it.
        steps: points of the grid over [0, 1], >= 2.
        adapter: name of the adapter in `policy`.
    """
    parameters = adapter_parameters(policy, adapter)
    for name, values in (("first", first), ("second", second)):
        if values.keys() != parameters.keys() or any(values[k].shape != p.shape for k, p in parameters.items()):
            differing = sorted(values.keys() ^ parameters.keys())[:3] or "tensors of another shape"
            raise ValueError(
                f"{name} must have the tensors of adapter {adapter!r} of the policy, got {differing}. Take "
                "adapter_values(policy)"
            )

    @torch.no_grad()
    def assign(weight: float) -> None:
        for key, p in parameters.items():
            p.copy_(weight * first[key].to(p) + (1 - weight) * second[key].to(p))

    def measure(weight: float) -> float:
        assign(weight)
        return loss()

    best, losses = _grid_search(measure, steps)
    assign(best)
    return best, losses


def adapter_values(policy: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Copy the values of an adapter."""
    values = {k: p.detach().clone() for k, p in adapter_parameters(policy, adapter).items()}
    if not values:
        raise ValueError(f"policy has no adapter named {adapter!r}, got {sorted(adapter_names(policy)) or 'none'}")
    return values


def memory_loss(
    module: GivesLosses | GivesLogratios, batches: Sequence[Batch], *, beta: float = 0.1
) -> Callable[[], float]:
    """Return a function that gives the mean loss of a module's pairs on the batches of a memory, in eval mode.

    Args:
        module: has `policy`, and `pair_losses(batch)` or `pair_logratios(batch)` (DPO then).
        batches: of the memory, at least one.
        beta: of DPO.

    Raises:
        ValueError: an empty memory.
    """
    if not batches:
        raise ValueError("batches must hold at least one batch of the memory, got none")

    def row_losses(batch: Batch) -> Tensor:
        if isinstance(module, GivesLosses):
            return module.pair_losses(batch)
        return dpo_loss(*module.pair_logratios(batch), beta=beta)

    @torch.no_grad()
    def loss() -> float:
        with eval_mode(module.policy):
            return float(torch.cat([row_losses(batch) for batch in batches]).double().mean())

    return loss


def _grid_search(measure: Callable[[float], float], steps: int) -> tuple[float, dict[float, float]]:
    """The point of [0, 1] with the lowest loss, the smallest of equal ones, and all losses."""
    integer("steps", steps, least=2)
    losses: dict[float, float] = {}
    for weight in (i / (steps - 1) for i in range(steps)):
        losses[weight] = float(measure(weight))
        if not math.isfinite(losses[weight]):
            raise ValueError(f"loss must be finite, got {losses[weight]} at lambda {weight:.3g}")
    return min(losses, key=lambda weight: losses[weight]), losses
