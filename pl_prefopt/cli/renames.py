"""Old spellings in configurations and command lines: read with a warning that names the new one."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Mapping

from jsonargparse import Namespace

PATHS = {
    "callbacks.self_play": "callbacks.self_play_rounds",
    "datamodules.image_relabel": "datamodules.media.relabel",
    "demo.data": "demo.text.data",
    "demo.exact": "demo.text.exact",
    "demo.features": "demo.image.features",
    "demo.judge": "demo.text.judge",
    "demo.pairs": "demo.text.pairs",
    "demo.pareto": "demo.text.pareto",
    "demo.photos": "demo.image.photos",
    "demo.report": "demo.text.report",
    "demo.sentiment": "demo.text.world",
    "demo.shapes": "demo.image.world",
    "demo.shapes_base": "demo.image.base",
    "demo.shapes_data": "demo.image.data",
    "demo.shapes_report": "demo.image.report",
    "judges.image_rules": "judges.image.rules",
    "judges.implicit": "judges.text.implicit",
    "judges.rating": "judges.image.rating",
    "judges.reasoning": "judges.text.reasoning",
    "judges.reward_model": "judges.text.reward_model",
    "judges.rules": "judges.text.rules",
    "objectives.ddo": "objectives.diffusion",
    "objectives.pairwise.FDPO": "objectives.divergence.FDPO",
    "objectives.pairwise.LDDPO": "objectives.token.LDDPO",
    "objectives.pairwise.TDPO": "objectives.token.TDPO",
    "policies.MaskedAutoregressivePolicy": "experimental.lightgen.MaskedAutoregressivePolicy",
    "policies.masked_autoregressive": "experimental.lightgen.policy",
}
"""Modules and classes that moved, below `pl_prefopt`."""

_OLD_PATH = re.compile(r"(?<![\w.])pl_prefopt\.(" + "|".join(map(re.escape, PATHS)) + r")(?!\w)")


def current_paths(text: str) -> str:
    """Replace dotted paths of what has moved, in an argument or in the text of a configuration file."""

    def replace(match: re.Match[str]) -> str:
        new = f"pl_prefopt.{PATHS[match[1]]}"
        _warn(match[0], new)
        return new

    return _OLD_PATH.sub(replace, text)


def moved_arguments(cls: type) -> dict[str, str]:
    """Old argument -> new dotted argument of a class, from the tables `MOVED` in its module and those of its bases.

    An argument that the class itself has under the old name is its own: the demo's `flip` turns labels, not images.
    """
    moved: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        moved |= getattr(sys.modules.get(base.__module__), "MOVED", {})
    present = inspect.signature(cls).parameters
    return {old: new for old, new in moved.items() if old not in present}


def current_arguments(values: Namespace, moved: Mapping[str, str]) -> None:
    """Move the values of old arguments to the new ones, in place."""
    for old, new in moved.items():
        if old in values:
            _warn(old, new)
            values[new] = values.pop(old)


def current_option(option: str, moved: Mapping[str, str]) -> str:
    """An option `--name=value` of a class with the new name of the argument."""
    name, equals, value = option.removeprefix("--").partition("=")
    if not option.startswith("--") or name not in moved:
        return option
    _warn(name, moved[name])
    return f"--{moved[name]}{equals}{value}"


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} has moved to {new}; the old spelling will be refused one day", FutureWarning, stacklevel=3)
