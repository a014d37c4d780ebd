"""Configuration files: read once before the parser, so that what is wrong with the file is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from pl_prefopt.cli.errors import ConfigurationError

PLAIN = "tag:yaml.org,2002:"
TAGS = {PLAIN + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")}
"""Tags of plain values; all others would build objects."""
ENTRIES = 100_000
"""Most values of a configuration file, aliases written out."""


def read_document(path: str) -> str:
    """Read a configuration file and check that it is YAML of plain values.

    Returns:
        Its text.

    Raises:
        ConfigurationError: it is no regular file, no UTF-8 text, empty, no YAML or no mapping; it has tags, a key
            twice, an alias within its own value, a NUL character or too many values. The file and the line are named.
    """
    if not Path(path).is_file():  # a pipe can be read only once, or never ends
        raise ConfigurationError(f"{path}: must be a regular file of YAML")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: must be UTF-8 text, got byte {error.object[error.start]:#04x} at position {error.start}. "
            "Save it as UTF-8"
        ) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise ConfigurationError(f"{path}: must hold keys such as trainer, model and data, got an empty file")
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            raise ConfigurationError(f"{path}: must be a mapping of keys such as trainer, model and data, got {kind}")
        for count, node in enumerate(nodes(root)):
            problem = node_problem(node) or ("more values than a configuration can have" if count > ENTRIES else "")
            if problem:
                raise ConfigurationError(f"{path}, line {node.start_mark.line + 1}: {problem}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        begun = f" ({error.context} in line {error.context_mark.line + 1})" if error.context_mark else ""
        raise ConfigurationError(f"{path}{line}: must be YAML, but {error.problem}{begun}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: must be YAML, but {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path}: must be YAML of some levels, got more than can be read") from error
    return text


def nodes(node: yaml.Node, above: tuple[yaml.Node, ...] = ()) -> Iterator[yaml.Node]:
    """A node and all below it, aliases written out.

    Raises:
        ConfigurationError: an alias stands within the value that it names.
    """
    if any(node is ancestor for ancestor in above):
        raise yaml.MarkedYAMLError(None, None, "an alias stands within the value that it names", node.start_mark)
    yield node
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for value in child if isinstance(child, tuple) else (child,):
                yield from nodes(value, (*above, node))


def node_problem(node: yaml.Node) -> str:
    """What is wrong with a node itself, empty if nothing is."""
    if node.tag not in TAGS:
        return f"tags are not read, got {node.tag.replace(PLAIN, '!!')!r}. Write a plain value"
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        return f"text must not hold NUL characters, got {node.value!r}"
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                line = next(k.start_mark.line for k, _ in reversed(node.value) if k.value == key) + 1
                return f"key {key!r} must be written once, got it again in line {line}. Remove one of the two"
    return ""
