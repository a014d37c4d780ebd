"""Short answers where the parser gives long ones: the key or class that was wrong and the nearest valid one."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pl_prefopt.cli.registry import FAMILIES, known_classes, missing_extra
from pl_prefopt.utilities.suggestions import nearest

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
HEADINGS = (
    "Does not validate against", "Subtypes:", "Errors:", "Given value", "Problem with given class_path",
    "Expected a path but", "Expected a <class 'NoneType'>", "Subclass types expect", "a class path (str)",
    "a dict with",
)  # fmt: skip
"""Beginnings of lines of a report that give no reason."""
TYPES = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}


class Reason(NamedTuple):
    """One reason in the parser's report.

    Args:
        depth: indentation; the innermost reason is the most specific.
        key: dotted key that it is about.
        owner: class path whose arguments it is about.
        text: what the parser says.
        value: the value that was refused, where the report shows it.
    """

    depth: int
    key: str
    owner: str
    text: str
    value: str = ""


def read_report(report: str) -> list[Reason]:
    """The reasons in the parser's report, an indented tree of lines.

    The keys of a reason are named by the less indented lines above it, its value by a less indented line below it.
    """
    reasons: list[Reason] = []
    above: list[tuple[int, str, str]] = []  # (indentation, key, class path) of the lines that lead to the present one
    for line in filter(str.strip, report.splitlines()):
        depth, text = len(line) - len(line.lstrip()), line.strip(" -")
        text = re.sub(r"^Type .* expects a function or a callable class: ", "", text)
        above = [entry for entry in above if entry[0] < depth]
        if match := re.match(r'Parser key "([^"]+)":\s*', text):
            above.append((depth, match[1], ""))
            text = text[match.end() :]
        if match := re.match(r"Problem with given class_path '([^']+)'", text):
            above.append((depth, "", match[1]))
        if text.startswith("Given value: "):
            value = text.removeprefix("Given value: ").partition(". Got value: ")[0]
            reasons = [r._replace(value=value) if r.depth > depth and not r.value else r for r in reasons]
        if text and not text.startswith(HEADINGS):
            text, _, value = text.partition(". Got value: ")
            key = ".".join(key for _, key, _ in above if key)
            owner = next((owner for *_, owner in reversed(above) if owner), "")
            reasons.append(Reason(depth, key, owner, text, value))
    return reasons


def shorten(report: str) -> str:
    """Answer a report of the parser in one line.

    A wrong key or class outranks all other reasons: the other branches of a union fail because of it.
    """
    reasons = read_report(report)
    numbers = {reason.key for reason in reasons if re.match(r"Expected a <class '(int|float)'>", reason.text)}
    reasons = [r for r in reasons if not (r.key in numbers and r.text.startswith("Expected a dot import path"))]
    for pattern, answer in ANSWERS.items():
        for reason in reasons:
            if match := re.match(pattern, reason.text):
                return answer(reason, match)
    if not reasons:
        return " ".join(report.split())
    depth = max(reason.depth for reason in reasons)
    innermost = [reason for reason in reasons if reason.depth == depth]
    key, value = innermost[0].key, innermost[-1].value
    texts = list(dict.fromkeys(reason.text for reason in innermost))
    found = f", got {value}" if 0 < len(value) < 60 else ""
    if key and all(text.startswith("Expected a ") for text in texts):
        return f"{key} must be {' or '.join(map(type_in_words, texts))}{found}"
    return (f"{key}: " if key else "") + " or ".join(texts) + found


def type_in_words(expected: str) -> str:
    """What the parser expected, as one would say it."""
    kind = re.sub(r"^Expected a (<class '([\w.]+)'>|(.+))", lambda match: match[2] or match[3], expected)
    if options := re.fullmatch(r"typing\.Literal\[(.+)\]", kind):
        return options[1].replace("'", "")
    return TYPES.get(kind, kind)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The key and the nearest valid one, if any is near; a dotted key is corrected part by part."""
    names = [name.split(".") for name in known]
    if full := [".".join(name) for name in names if len(name) == 2 and name[1] == key]:
        return f"unknown key {key!r}; did you mean {full[0]!r}?"
    corrected: list[str] = []
    for i, part in enumerate(key.split(".")):
        level = {name[i] for name in names if len(name) > i and name[:i] == corrected}
        near = part if part in level or not level else nearest(part, level)
        if near is None:
            return f"unknown key {key!r}"
        corrected.append(near)
    answer = ".".join(corrected)
    return f"unknown key {key!r}" + (f"; did you mean {answer!r}?" if answer != key else "")


def unknown_class(name: str, key: str) -> str:
    """The class, and the nearest one that fits the key, if any is near, or the extra that it comes with."""
    last = name.rpartition(".")[2]
    if missing := missing_extra(last):
        return f"{last} needs {missing[1]}, which is not installed: pip install 'pl_prefopt[{missing[0]}]'"
    classes = known_classes(key)
    near = last if last in classes else nearest(last, classes)
    return f"unknown class {name!r} for {key!r}" + (f"; did you mean {near!r}?" if near else "")


def _wrong_key(reason: Reason, match: re.Match[str]) -> str:
    """A nested parser has named the key already; add the keys that lead to it.

    Arguments of a base class are unknown because the entry does not say, or says at the wrong level, which class it is.
    """
    if reason.owner.rpartition(".")[2] in {base.__name__ for base in FAMILIES.values()}:
        return _wrong_level(reason, match)
    wrong, near = (f"{reason.key}.{name}" if reason.key and name else name for name in match.groups())
    return f"unknown key {wrong!r}" + (f"; did you mean {near!r}?" if near else "")


def _wrong_import(reason: Reason, match: re.Match[str]) -> str:
    return f"{unknown_class(reason.owner, reason.key)} ({reason.text})"


def _wrong_class(reason: Reason, match: re.Match[str]) -> str:
    return unknown_class(match[1], reason.key)


def _wrong_level(reason: Reason, match: re.Match[str]) -> str:
    """A class entry with something beside `class_path` and `init_args`."""
    try:
        keys = list(ast.literal_eval(reason.value))
        wrong = next((key for key in keys if key not in CLASS_KEYS), None)
    except (SyntaxError, ValueError, TypeError):
        keys, wrong = [], None
    if keys and "class_path" not in keys:
        return f"{reason.key} must say which class it is, as class_path beside init_args, got only {', '.join(keys)}"
    if wrong is None:
        base = FAMILIES.get(reason.key.rpartition(".")[2])
        expected = f"the name of a class ({base.__name__})" if base else "the name of a class"
        return f"{reason.key} must be {expected}, or class_path and init_args, got {reason.value}"
    near = nearest(wrong, CLASS_KEYS, cutoff=0.7) or f"init_args.{wrong}"
    return f"unknown key '{reason.key}.{wrong}'; did you mean '{reason.key}.{near}'?"


def _wrong_arguments(reason: Reason, match: re.Match[str]) -> str:
    return f"{reason.key}.init_args must be a mapping of arguments to values"


ANSWERS: dict[str, Callable[[Reason, re.Match[str]], str]] = {
    r"unknown key '([^']+)'(?:; did you mean '([^']+)'\?)?": _wrong_key,
    r"No module named|module \S+ has no attribute": _wrong_import,
    r"Expected a dot import path string: ([\w.]+)": _wrong_class,
    r"Not a valid subclass of (\w+)": _wrong_level,
    r"'\w+' object has no attribute 'keys'": _wrong_arguments,
}
"""What the parser says -> our answer, the most telling first."""
