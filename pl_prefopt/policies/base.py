"""`PolicyBuilder`: a small description of a network that can be written to YAML and built under any strategy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import nn

from pl_prefopt.utilities.configurable import Configurable


class PolicyBuilder(Configurable):
    """Builds the policy network when it is called, never before, so hyper-parameters hold plain values only."""

    @abstractmethod
    def __call__(self) -> nn.Module:
        """Build a fresh network on the default device."""


class FromCallable(PolicyBuilder):
    """A network of your own: `FromCallable(lambda: network)`. Checkpoints do not remember it; pass it again to load.

    Args:
        build: called once, returns the network.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = build

    def __call__(self) -> nn.Module:
        """Call `build`."""
        return self.build()
