"""Running a module in the middle of training without any trace in what follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from pl_prefopt.utilities.modes import eval_mode
from pl_prefopt.utilities.sharding import settle


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch all submodules to eval mode; restore training flags, random state and sharding on exit."""
    with eval_mode(module), isolate_rng():
        yield
    settle(module)
