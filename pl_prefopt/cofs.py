"""COFS-DPO (2406.05534): one adapter out of those trained on several domains, mixed on a memory of earlier data."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pl_prefopt.adapters import combine_adapters


def mix_on_memory(
    first: str | Path, second: str | Path, out: str | Path, loss: Callable[[Path], float], *, steps: int = 11
) -> tuple[float, dict[float, float]]:
    """Write lambda * first + (1 - lambda) * second with the lambda of the lowest loss on a memory.

    The paper's abstract says that lambda is chosen on a small memory; the grid is ours.

    Args:
        first: folder of the adapter of the earlier domain, as AdapterExport writes it.
        second: folder of the adapter of the later domain.
        out: folder to write, loadable by peft.
        loss: called with the folder of a candidate, returns its loss on the memory; lower is better.
        steps: points of the grid over [0, 1], >= 2.

    Returns:
        The chosen lambda (of equal losses the smallest), and lambda -> loss.

    Raises:
        ValueError: fewer than two points, a loss that is not finite, adapters that do not fit together.
    """
    if steps < 2:
        raise ValueError(f"steps must be >= 2, got {steps}")
    losses: dict[float, float] = {}
    with tempfile.TemporaryDirectory() as tmp:
        for i in range(steps):
            weight = i / (steps - 1)
            folder = combine_adapters([first, second], [weight, 1 - weight], Path(tmp) / str(i))
            losses[weight] = float(loss(folder))
            if not math.isfinite(losses[weight]):
                raise ValueError(f"loss must be finite, got {losses[weight]} at lambda {weight:.3g}")
        best = min(losses, key=lambda weight: losses[weight])
        shutil.copytree(Path(tmp) / str(list(losses).index(best)), out, dirs_exist_ok=True)
    return best, losses
