"""Options of adapters."""

from __future__ import annotations


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
