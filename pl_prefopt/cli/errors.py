"""What a user got wrong, in one to three lines: which errors those are, how they are phrased, who sees a trace."""

from __future__ import annotations

import inspect
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import NoReturn

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

DEBUG = "PL_PREFOPT_DEBUG"
"""Environment variable that `--debug` sets, so that the processes of DDP know it too."""
LINES, LINE, WORD = 3, 600, 200
"""Most lines of a message, most characters of a line, and of a word within it (a path, say)."""
FROM_HUB = ("pretrained", "adapter")
"""Last parts of keys whose values are folders or names on the hub."""
USER_ERRORS = (
    ValueError, TypeError, OSError, ImportError, EOFError, OverflowError, yaml.YAMLError, pickle.UnpicklingError,
    MisconfigurationException, torch.OutOfMemoryError,
)  # fmt: skip
"""Errors that speak of the user's settings, files or machine. All others are mistakes of a program: they keep their
traceback."""


class ConfigurationError(ValueError):
    """A setting that cannot be: the run never began, and the command ends with status 2."""


class Refused(BaseException):
    """An error of a class that is being built, on its way past unions, which would bury an `Exception` in a report.

    Args:
        cls: the class.
        error: what its `__init__` raised.
    """

    def __init__(self, cls: type, error: Exception) -> None:
        super().__init__(cls, error)
        self.cls, self.error = cls, error


def debugging() -> bool:
    """Whether errors are shown with their trace."""
    return os.environ.get(DEBUG, "").lower() not in ("", "0", "false")


def brief(error: BaseException) -> str:
    """The message of an error in at most three lines of bearable length."""
    text = str(error)
    if "Original Traceback" in text:  # raised in a worker of a DataLoader, whose whole trace is its message
        text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror}: {error.filename!r}"
    return cut(text) or type(error).__name__


def cut(text: str) -> str:
    """At most three lines of a text, none of them long, and no long word in them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][:LINES]
    lines = [re.sub(rf"\S{{{WORD},}}", lambda match: f"{match[0][: WORD // 2]}...", line) for line in lines]
    return "\n".join(line if len(line) <= LINE else f"{line[:LINE]} ..." for line in lines)


def raise_refused(refused: Refused, key: str) -> NoReturn:
    """Raise what a class said about its arguments, after the key of the class.

    Raises:
        ConfigurationError: "data.limit must be ..." where the class speaks of its argument `limit`, else
            "data: ...".
    """
    text = brief(refused.error)
    argument = re.match(r"\w+", text)
    key = ".".join(filter(None, [key, *built_keys(refused.__traceback__)]))
    joint = "." if argument and argument[0] in constructor_arguments(refused.cls) else ": "
    raise ConfigurationError(f"{key}{joint}{text}" if key else text) from refused.error


def constructor_arguments(cls: type) -> set[str]:
    """Arguments of a class and of its bases, to which it may pass them on."""
    codes = (getattr(inspect.unwrap(base.__init__), "__code__", None) for base in cls.__mro__)
    return {name for code in codes if code for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}


def built_keys(trace: TracebackType | None) -> Iterator[str]:
    """The keys that the parser was building when an error passed, outermost first."""
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "instantiate_classes" and hasattr(frame.f_locals.get("self"), "dest"):
            yield frame.f_locals["self"].dest
        trace = trace.tb_next


def name_path(error: OSError, settings: Mapping[str, object]) -> OSError:
    """The error with the setting that its path came from, if there is one.

    Args:
        error: an error of the operating system.
        settings: dotted key -> value.
    """
    path = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else ""
    texts = {key: value for key, value in settings.items() if isinstance(value, str) and len(value) > 1}
    if origins := [key for key, value in texts.items() if path and path.startswith(value.rstrip("/"))]:
        key = max(origins, key=lambda key: len(texts[key]))
        reason = f"{error.strerror}: {path!r}" if path != texts[key] else error.strerror
        return type(error)(f"{key} must be a path that can be used, got {texts[key]!r} ({reason})")
    names = [key for key in texts if not path and key.rpartition(".")[2] in FROM_HUB]
    for key in names:
        if texts[key] in str(error) or (len(names) == 1 and "huggingface.co" in str(error)):
            reason = str(error).splitlines()[0]
            return type(error)(f"{key} must be a folder or a name on the hub, got {texts[key]!r} ({reason})")
    return error
