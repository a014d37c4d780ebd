"""Options of adapters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from pl_prefopt.utilities.suggestions import did_you_mean


def check_lora(lora: Mapping[str, object] | None) -> None:
    """Refuse adapter options that peft does not know.

    Raises:
        ValueError: an unknown option, with the nearest known one.
    """
    if lora is None:
        return
    from peft import LoraConfig

    known = list(inspect.signature(LoraConfig).parameters)
    for key in lora:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"lora option {key!r} is not an argument of peft.LoraConfig. {hint}".rstrip(" ."))
