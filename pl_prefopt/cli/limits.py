"""Values that every type accepts and that are plainly mistakes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jsonargparse import Namespace

from pl_prefopt.cli.errors import ConfigurationError


class Limit(NamedTuple):
    """Bounds of a number, both accepted unless `above` is set.

    Args:
        accepted: the bounds in words.
        low: the least number.
        high: the greatest one.
        above: whether the number must be above `low`.
    """

    accepted: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False


LIMITS = {
    r"seed_everything": Limit("an integer from 0 to 4294967295", 0, 2**32 - 1),
    r"seed": Limit("an integer >= 0", 0),
    r"lr": Limit("a number > 0 and <= 1e6", 0, 1e6, above=True),
    r"num_workers": Limit("an integer >= 0", 0),
    r"gradient_clip_val": Limit("a number >= 0, or null", 0),
    r"val_check_interval": Limit("a number > 0", 0, above=True),
    r"T_max|T_0|step_size": Limit("an integer >= 1", 1),
    r"accumulate_grad_batches": Limit("an integer >= 1", 1),
}
"""Last part of a key -> what is accepted, wherever the key stands."""


def settings_of(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, plain value) of everything in a nested configuration; init_args is left out of the keys."""
    if isinstance(value, (Mapping, Namespace)):
        for name, item in vars(value).items() if isinstance(value, Namespace) else value.items():
            parts = [key, "" if name == "init_args" else str(name)]
            yield from settings_of(item, ".".join(filter(None, parts)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from settings_of(item, key)
    else:
        yield key, value


def check_settings(settings: Mapping[str, object]) -> None:
    """Refuse numbers outside their limits.

    Args:
        settings: dotted key -> value.

    Raises:
        ConfigurationError: naming the first.
    """
    for key, value in settings.items():
        for pattern, limit in LIMITS.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            accepted = limit.low <= value <= limit.high and not (limit.above and value == limit.low)
            if not accepted and not math.isnan(value) and re.fullmatch(pattern, key.rpartition(".")[2]):
                raise ConfigurationError(f"{key} must be {limit.accepted}, got {value}")
