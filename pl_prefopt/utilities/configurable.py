"""Objects that YAML can name and a checkpoint can remember: plain values in, plain values out."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

T = TypeVar("T")


class Configurable:
    """Base of objectives, policy builders, references and judges.

    The rule that makes it work: every argument of `__init__` is stored under its own name, as a plain value, another
    `Configurable`, or a list or dict of those.
    """

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in _init_args(self).items())
        return f"{type(self).__name__}({args})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configurable) and to_config(self) == to_config(other)

    __hash__ = object.__hash__


def _init_args(obj: Configurable) -> dict[str, Any]:
    if type(obj).__init__ is object.__init__:
        return {}
    names = list(inspect.signature(type(obj).__init__).parameters)[1:]
    return {name: getattr(obj, name) for name in names}


def to_config(value: Any) -> Any:
    """Turn a `Configurable` (or a nest of them) into `{"class_path": ..., "init_args": {...}}` of plain values."""
    if isinstance(value, Configurable):
        args = {k: to_config(v) for k, v in _init_args(value).items()}
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": args}
    if isinstance(value, dict):
        return {str(k): to_config(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(v) for v in value]
    return value


def from_config(value: Any, base: type[T]) -> T:
    """Rebuild what `to_config` wrote. Only classes that are already imported are considered: nothing is imported by
    name, so a checkpoint cannot run code that the program did not load itself.

    Raises:
        ValueError: the named class is not an imported subclass of `base`.
    """
    if isinstance(value, dict) and "class_path" in value:
        known = {f"{c.__module__}.{c.__qualname__}": c for c in _subclasses(base)}
        known |= {c.__name__: c for c in known.values()}
        cls = known.get(value["class_path"])
        if cls is None:
            names = sorted(c.__name__ for c in _subclasses(base) if not c.__name__.startswith("_"))
            raise ValueError(
                f"{value['class_path']!r} is not a known {base.__name__}; known are {', '.join(names)}. "
                "If it is your own class, import its module before loading."
            )
        args = {k: _nested(v) for k, v in value.get("init_args", {}).items()}
        return cls(**args)
    if not isinstance(value, base):
        raise ValueError(f"expected a {base.__name__}, got {value!r}")
    return value


def _nested(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        return from_config(value, Configurable)
    if isinstance(value, dict):
        return {k: _nested(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_nested(v) for v in value]
    return value


def _subclasses(base: type) -> set[type]:
    out = {base}
    for sub in base.__subclasses__():
        out |= _subclasses(sub)
    return out
