"""Training and eval mode of networks, and dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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


_DROPOUT_NAMES = ("dropout", "_pdrop", "dropout_rate", "dropout_prob", "layerdrop")


def disable_dropout(network: nn.Module) -> None:
    """Set every dropout and layerdrop of `network` to zero, in its layers and in the configuration it reads from."""
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and name.endswith(_DROPOUT_NAMES):
                setattr(module, name, 0.0)


def drops_units(network: nn.Module) -> bool:
    """Whether dropout or layerdrop is on, so that passes in training mode differ for a good reason."""
    return any(
        (isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)) and module.p > 0)
        or any(isinstance(v, float) and v > 0 and name.endswith(_DROPOUT_NAMES) for name, v in vars(module).items())
        for module in network.modules()
    )
