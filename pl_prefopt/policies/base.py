"""`PolicyBuilder`: a small description of a network that can be written to YAML and built under any strategy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from pl_prefopt.configurable import Configurable


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


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Run a block with the whole network in eval mode; what was in training mode returns to it."""
    training = [m for m in network.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def disable_dropout(network: nn.Module) -> None:
    """Set every dropout probability of `network` to zero, in its layers and in the configuration it reads from."""
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and name.endswith(("dropout", "_pdrop", "dropout_rate", "dropout_prob")):
                setattr(module, name, 0.0)


def check_lora(lora: dict | None) -> None:
    """Refuse adapter options that peft does not know.

    Raises:
        ValueError: an unknown option, with the nearest known one.
    """
    if lora is None:
        return
    import difflib
    import inspect

    from peft import LoraConfig

    known = list(inspect.signature(LoraConfig).parameters)
    for key in lora:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"lora option {key!r} is not an argument of peft.LoraConfig{hint}")
