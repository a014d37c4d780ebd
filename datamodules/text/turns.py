"""One cell of a row: text, or the turns of a conversation, in the forms in which files hold them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from pl_prefopt.utilities.rows import BadRow, abbreviate, encodable, is_visible

Message = dict[str, Any]
Text = str | list[Message]
SAME_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
ROLES = {role: role for role in SAME_ROLES} | OTHER_ROLES
"""Role, as files write it (OpenAI, ShareGPT) -> role for the chat template."""
TURN = "a turn {role, content} or {from, value}"
WRITTEN_TURNS = re.compile(
    r"\s*(?:array\()?\s*\[?\s*\{\s*(?:'(?:role|from|content|value)'|\"(?:role|from|content|value)\")\s*:"
)
"""Beginning of turns that were written as text: JSON, or what Python prints of lists, dicts and NumPy arrays."""


def read_text(value: object, name: str) -> Text:
    """Return the text or the turns of the cell `name`.

    Turns that a table holds as text (JSON, or Python's own writing of a list) are read as turns.

    Raises:
        BadRow: it is neither text nor turns, a role is unknown, or text cannot be encoded.
    """
    if isinstance(value, str):
        if not WRITTEN_TURNS.match(value):
            return encodable(name, value)
        value = _written_turns(value, name)
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise BadRow("bad_type", name, abbreviate(value), "text, a turn, or a list of turns")
    return [_turn(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]


def _written_turns(text: str, name: str) -> object:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    hint = (
        "Write the column as lists: JSON lines or Parquet, as pandas does with to_json(lines=True, orient='records')."
    )
    raise BadRow("turns_as_text", name, f"a conversation written as text, {abbreviate(text)}", "a list of turns", hint)


def _turn(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("bad_type", name, abbreviate(turn), TURN)
    role, content = (turn.get("role"), turn.get("content")) if "role" in turn else (turn.get("from"), turn.get("value"))
    if not isinstance(role, str):
        raise BadRow("bad_type", name, abbreviate(turn), TURN)
    if role not in ROLES:
        raise BadRow("unknown_role", f"{name}.role", abbreviate(role), f"one of {', '.join(ROLES)}")
    if content is None and not turn.get("tool_calls"):
        raise BadRow("empty_turn", f"{name}.content", "None", "text")
    rest = {k: v for k, v in turn.items() if k not in ("role", "content", "from", "value") and v is not None}
    return {"role": ROLES[role], "content": _content(content, f"{name}.content"), **rest}


def _content(content: object, name: str) -> str | None:
    """The text of a turn; a list of parts of type "text" is joined, other parts are refused."""
    if content is None:
        return None
    if isinstance(content, list) and content:
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else content
    if not isinstance(content, str):
        raise BadRow("bad_type", name, abbreviate(content), "text, or a list of parts {type: text, text: ...}")
    return encodable(name, content)


def is_empty(text: Text) -> bool:
    """Whether nothing can be seen of a text, or of any turn."""
    if isinstance(text, str):
        return not is_visible(text)
    return not any(turn.get("tool_calls") or is_visible(turn["content"] or "") for turn in text)


def as_text(text: Text) -> str:
    """Return text as it is, turns as "role: content" lines."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)
