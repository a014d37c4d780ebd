"""Objects that YAML can name and a checkpoint can store: plain values in, plain values out."""

from __future__ import annotations

import functools
import inspect
import sys
from abc import ABC
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]
RUNS_CODE: dict[str, Callable[[object], bool]] = {
    "trust_remote_code": bool,
    "attention": lambda value: "/" in str(value),
    "attn_implementation": lambda value: "/" in str(value),
    "_attn_implementation": lambda value: "/" in str(value),
}
"""Argument -> whether a value of it runs code of somebody else: modelling files, kernels by hub name. Such values are
taken from a user, never from a checkpoint."""


class Configurable(ABC):  # noqa: B024 (the families below it add abstract methods)
    """Base of objectives, policy builders, references, judges, pair rules and tokenizers.

    A subclass with arguments is a `@dataclass` whose fields are plain values, other `Configurable`s, or lists and
    dicts of those; it validates them in `__post_init__`. A hand-written `__init__` works too if it stores every
    argument under its own name, which is checked when an object is built; only None may become the default that it
    stands for.

    Raises:
        ValueError: a hand-written `__init__` does not store an argument, or stores another value under its name.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):  # a dataclass gets its `__init__` later, so this one is hand-written
            cls.__init__ = _checked(cls.__init__)
            # What a dataclass above generated would leave out the arguments that this `__init__` adds.
            cls.__repr__, cls.__eq__ = Configurable.__repr__, Configurable.__eq__

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in _arguments(self).items())
        return f"{type(self).__qualname__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and to_config(other) == to_config(self)

    __hash__ = None  # type: ignore[assignment]  # equal by value and mutable, as dataclasses are


def _checked(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a hand-written `__init__` so that it refuses to lose an argument."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Configurable, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self).__init__ is not checked:  # called by the `__init__` of a subclass, which has arguments of its own
            return
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        stored = _arguments(self)
        for name, value in list(bound.arguments.items())[1:]:
            replaced_default = value is None  # the default that None stands for restores the same object
            if not replaced_default and stored[name] is not value and to_config(stored[name]) != to_config(value):
                raise ValueError(
                    f"{type(self).__name__}.{name} must be the argument {name!r} itself, {value!r}, got "
                    f"{stored[name]!r}. A checkpoint stores this attribute as the argument; keep what is computed "
                    "from it under another name"
                )

    return checked


def _arguments(configurable: Configurable) -> dict[str, Any]:
    """Arguments of `__init__` with the values that are stored under their names."""
    cls = type(configurable)
    if cls.__init__ is object.__init__:
        return {}
    names = list(inspect.signature(cls.__init__).parameters)[1:]
    missing = [name for name in names if not hasattr(configurable, name)]
    if missing:
        raise ValueError(
            f"{cls.__name__} must store every argument of __init__ under its own name, got no attribute "
            f"{', '.join(missing)}. Make the class a dataclass, or assign self.{missing[0]} = {missing[0]}"
        )
    return {name: getattr(configurable, name) for name in names}


def class_path(cls: type) -> str:
    """The shortest dotted path under which a class can be imported: `pl_prefopt.objectives.DPO`.

    It names the public package rather than the file, so files can move without a change in what is written.
    """
    parts = cls.__module__.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        if getattr(sys.modules.get(package), cls.__qualname__, None) is cls:
            return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def to_config(value: Any) -> Any:
    """Turn a `Configurable` (or a nest of them) into `{"class_path": ..., "init_args": {...}}` of plain values.

    Raises:
        ValueError: an argument is not stored under its own name.
    """
    if isinstance(value, Configurable):
        arguments = {name: to_config(stored) for name, stored in _arguments(value).items()}
        return {"class_path": class_path(type(value)), "init_args": arguments}
    if isinstance(value, dict):
        return {str(key): to_config(nested) for key, nested in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(nested) for nested in value]
    return value


def from_config(value: Any, base: type[T]) -> T:
    """Rebuild what `to_config` wrote, or return `value` if it is a `base` already.

    Only classes that are already imported are considered: nothing is imported by name, so a checkpoint cannot run code
    that the program did not load itself. A class of this library is found by its name if its file has moved since.

    Raises:
        ValueError: the named class is not an imported subclass of `base`, or does not take these arguments.
    """
    if isinstance(value, dict) and "class_path" in value:
        cls = _find_class(value["class_path"], base)
        for name, argument in _nested(value.get("init_args", {})):
            if name in RUNS_CODE and RUNS_CODE[name](argument):
                raise ValueError(
                    f"{name} must not come from a stored configuration, because it runs code of somebody else, got "
                    f"{cls.__name__}({name}={argument!r}). Pass the object itself if you trust its source."
                )
        arguments = {name: _rebuilt(nested) for name, nested in value.get("init_args", {}).items()}
        accepted = inspect.signature(cls).parameters
        unknown = [name for name in arguments if name not in accepted]
        if unknown:
            raise ValueError(
                f"init_args of {cls.__name__} must be among {', '.join(accepted) or 'none'}, got {', '.join(unknown)}"
            )
        return cls(**arguments)
    if not isinstance(value, base):
        raise ValueError(f"expected a {base.__name__}, got {value!r}")
    return value


def updated_config(value: Any) -> Any:
    """What `to_config` would write today for a configuration that an older version wrote.

    Moved classes get their present path, arguments that were added since get their defaults. What no imported
    `Configurable` explains (an optimizer, a class of somebody else) stays as it is.
    """
    if isinstance(value, dict) and "class_path" in value:
        try:
            return to_config(from_config(value, Configurable))
        except (ValueError, TypeError):
            return value
    if isinstance(value, dict):
        return {key: updated_config(nested) for key, nested in value.items()}
    return value


def _nested(value: Any) -> Iterator[tuple[str, object]]:
    """Every key and value of nested dicts and lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key), item
            yield from _nested(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nested(item)


def _rebuilt(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        return from_config(value, Configurable)
    if isinstance(value, dict):
        return {key: _rebuilt(nested) for key, nested in value.items()}
    if isinstance(value, list):
        return [_rebuilt(nested) for nested in value]
    return value


def _find_class(path: str, base: type[T]) -> type[T]:
    """The imported subclass of `base` that a path or a bare name means."""
    classes = sorted(subclasses(base), key=lambda cls: (not _is_ours(cls.__module__), class_path(cls)))
    for cls in classes:
        if path in (class_path(cls), f"{cls.__module__}.{cls.__qualname__}"):
            return cls
    name = path.rpartition(".")[2]
    for cls in classes:
        if cls.__name__ == name and (path == name or (_is_ours(path) and _is_ours(cls.__module__))):
            return cls
    known = sorted({cls.__name__ for cls in classes if not cls.__name__.startswith("_")})
    raise ValueError(
        f"{path!r} is not a known {base.__name__}; known are {', '.join(known)}. "
        "If it is your own class, import its module before loading."
    )


def _is_ours(path: str) -> bool:
    return path.partition(".")[0] == PACKAGE


def subclasses(base: type[T]) -> set[type[T]]:
    """`base` and every imported class below it."""
    return {base}.union(*(subclasses(cls) for cls in base.__subclasses__()))
