"""Short answers where the parser gives long ones: the key or class that was wrong and the nearest valid one."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable

from pl_prefopt.cli.registry import known_classes, missing_extra

WRONG_KEY = re.compile(r"unknown key '([^']+)'; did you mean '([^']+)'\?")
WRONG_CLASS = re.compile(r"dot import path string: ([\w.]+)")
WRONG_IMPORT = re.compile(
    r"Problem with given class_path '([\w.]+)':\n\s*((?:No module named|module \S+ has no attribute).*)"
)
WRONG_LEVEL = re.compile(r"Not a valid subclass of (\w+)(?:.|\n)*?Given value: (.*)")
NOISE = re.compile(
    r"[\s-]*($|Parser key .*:$|Problem with given|Does not validate|Subtypes:|Errors:|Given value|Expected a path but"
    r"|Expected a <class 'NoneType'>)"
)
LEVEL = ("class_path", "init_args", "dict_kwargs")


def shorten(message: str) -> str:
    """One line of what the parser says in a nested list of reasons.

    A wrong key or class outranks the rest: the other branches of a union fail because of it.
    """
    if found := WRONG_KEY.search(message):
        prefix = "".join(f"{key}." for key in _keys_above(message, found.start()))
        return unknown_key(prefix + found[1], [prefix + found[2]])
    if found := WRONG_IMPORT.search(message):
        return f"{unknown_class(found[1], _path(message, found.start()))} ({found[2]})"
    if found := WRONG_CLASS.search(message):
        return unknown_class(found[1], _path(message, found.start()))
    if found := WRONG_LEVEL.search(message):
        return _wrong_level(_path(message, found.start()), found[1], found[2])
    return _deepest(message)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The key and the nearest valid one; a dotted key is corrected part by part."""
    parts, names, near = key.split("."), [name.split(".") for name in known], []
    for i, part in enumerate(parts):
        level = {name[i] for name in names if len(name) > i and name[:i] == near}
        near.append(nearest(part, level) if level else part)
    return f"unknown key {key!r}; did you mean {'.'.join(near)!r}?"


def unknown_class(name: str, key: str) -> str:
    """The class, and the nearest one that fits the key, or the extra that it comes with."""
    last = name.rpartition(".")[2]
    if missing := missing_extra(last):
        return f"{last} needs {missing[1]}, which is not installed: pip install 'pl_prefopt[{missing[0]}]'"
    return f"unknown class {name!r} for {key!r}; did you mean {nearest(last, known_classes(key))!r}?"


def nearest(word: str, known: Iterable[str]) -> str:
    """The most similar of the known words; differences of case count half."""
    return max(sorted(known), key=lambda k: _likeness(word, k) + _likeness(word.lower(), k.lower()))


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _wrong_level(path: str, base: str, given: str) -> str:
    """Answer to a class entry with something beside `class_path` and `init_args`."""
    try:
        wrong = next(key for key in ast.literal_eval(given) if key not in LEVEL)
    except (SyntaxError, ValueError, TypeError, StopIteration):
        return f"{path}: expected a {base}, as a name or as class_path and init_args; got {given}"
    near = nearest(wrong, LEVEL)
    near = near if _likeness(wrong, near) > 0.7 else f"init_args.{wrong}"
    return f"unknown key '{path}.{wrong}'; did you mean '{path}.{near}'?"


def _deepest(message: str) -> str:
    """The innermost reasons, with the key and the value that they are about."""
    lines = message.splitlines()
    reasons = [line for line in lines if not NOISE.match(line)]
    if not reasons:
        return " ".join(message.split())
    depth = max(map(_indent, reasons))
    inner = [line for line in reasons if _indent(line) == depth]
    told = " or ".join(
        dict.fromkeys(
            re.sub(r'^[\s-]*(Parser key "[^"]+": |Type typing.*callable class: )?', "", line) for line in inner
        )
    )
    path = _path(message, message.index(inner[0]))
    given = next((line for line in lines[lines.index(inner[-1]) :] if line.strip().startswith("Given value: ")), "")
    value = given.strip().removeprefix("Given value: ")
    return (f"{path}: " if path else "") + told + (f", got {value}" if 0 < len(value) < 60 else "")


def _path(message: str, position: int) -> str:
    return ".".join(_keys_above(message, position))


def _keys_above(message: str, position: int) -> list[str]:
    """Keys that lead to what stands at a position: those named in the less indented lines above it."""
    keys: list[str] = []
    before = message[:position] + message[position:].split("\n")[0]
    depth = len(before)
    for line in reversed(before.splitlines()):
        if line.strip() and _indent(line) < depth:
            depth = _indent(line)
            keys += re.findall(r'^[\s-]*Parser key "([^"]+)":', line)
    return keys[::-1]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
