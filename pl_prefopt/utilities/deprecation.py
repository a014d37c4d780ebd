"""Arguments that moved into an object of their own and are still accepted, with a warning, for one minor release."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])


def moved_arguments(moved: Mapping[str, str]) -> Callable[[Init], Init]:
    """Decorate `__init__` so that old keyword arguments are still accepted.

    `inspect.signature` and jsonargparse see the new signature only.

    Args:
        moved: old keyword -> "argument.field", a field of a dataclass that is the default of `argument`.

    Returns:
        The decorator. A call with old keywords issues one FutureWarning that names the new spelling, and builds the
        object from its default.

    Raises:
        ValueError: (when called) the old keyword and the new argument are both given.
    """

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)

        @functools.wraps(init)
        def wrapper(self: object, *args: Any, **kwargs: Any) -> None:
            old = {name: kwargs.pop(name) for name in moved if name in kwargs}
            if old:
                given = signature.bind_partial(self, *args, **kwargs).arguments
                kwargs |= _objects(old, moved, signature, given, type(self).__name__)
            init(self, *args, **kwargs)

        return wrapper  # pyright: ignore[reportReturnType]

    return decorate


def _objects(
    old: Mapping[str, Any], moved: Mapping[str, str], signature: inspect.Signature, given: Mapping[str, Any], owner: str
) -> dict[str, Any]:
    """New arguments that hold the values of old ones."""
    fields: dict[str, dict[str, Any]] = {}
    for name, value in old.items():
        argument, _, field = moved[name].partition(".")
        if argument in given:
            raise ValueError(f"{name} must be given as {moved[name]} only, got both {name} and {argument}")
        fields.setdefault(argument, {})[field] = value
    objects = {name: replace(signature.parameters[name].default, **values) for name, values in fields.items()}
    spelling = ", ".join(f"{name}={value!r}" for name, value in objects.items())
    renamed = ", ".join(f"{name} is now {moved[name]}" for name in old)
    warnings.warn(f"{owner}: {renamed}; write {spelling}", FutureWarning, stacklevel=3)
    return objects
