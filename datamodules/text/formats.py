"""The layouts that people have, turned into one: a prompt, K completions (best first), numbers that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pl_prefopt.datamodules.files.columns import parsed, per, read_numbers, renamed
from pl_prefopt.scores import COLUMNS
from pl_prefopt.utilities.rows import DROP_HINT, BadRow, abbreviate, missing_column
from pl_prefopt.utilities.suggestions import did_you_mean

Message = dict[str, Any]
Text = str | list[Message]
ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
TEXT_COLUMNS = (
    *("prompt", "chosen", "rejected", "completions", "conversations", "system", "tools", "chat_template_kwargs"),
    *(*per("row"), *per("sample"), "rewards", "chosen_margins", "rejected_margins"),
)
"""Columns that rows of text may have."""


@dataclass(slots=True)
class Example:
    """One row in the common shape. `prompt` None means: the common beginning of the completions."""

    prompt: Text | None
    completions: list[Text]
    numbers: dict[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def conversational(self) -> bool:
        """Whether the row consists of turns and needs a chat template."""
        return not isinstance(self.completions[0], str)


def parse(raw: dict[str, Any], columns: dict[str, str] | None = None, *, allow_empty_prompt: bool = False) -> Example:
    """Read a raw row in any accepted layout.

    Accepted: TRL's standard and conversational pairs with explicit or implicit prompt; `conversations` + `chosen` +
    `rejected` (ShareGPT); `prompt` + `completions`, a list of K >= 2, best first or with `relevance` / `rewards` /
    `targets`. `columns` maps our name to the file's.

    Raises:
        BadRow: a column is missing or holds what cannot be used.
    """
    row = renamed(raw, columns or {})
    reader = next((read for key, read in LAYOUTS if row.get(key) is not None), None)
    if reader is None:
        hint = did_you_mean("chosen", row) or "Name your columns with columns: {chosen: ..., rejected: ...}."
        raise missing_column("chosen", row, hint)
    example = reader(row)
    _refuse_empty(example, allow_empty_prompt)
    _refuse_identical(example)
    example.numbers |= read_numbers(row, len(example.completions), "completion")
    example.tools = row.get("tools") or None
    example.template_kwargs = row.get("chat_template_kwargs") or {}
    return _best_first(example) if reader is _read_list else example


def _read_pair(row: dict[str, Any]) -> Example:
    if row.get("rejected") is None:
        raise missing_column("rejected", row)
    return _joined(row.get("prompt"), [_text(row["chosen"], "chosen"), _text(row["rejected"], "rejected")])


def _read_list(row: dict[str, Any]) -> Example:
    completions = parsed(row["completions"])
    if not isinstance(completions, list) or len(completions) < 2:
        raise BadRow("bad_type", "completions", abbreviate(completions), "a list of at least two completions")
    return _joined(row.get("prompt"), [_text(c, f"completions[{i}]") for i, c in enumerate(completions)])


def _read_sharegpt(row: dict[str, Any]) -> Example:
    example = _read_pair(row | {"prompt": row["conversations"]})
    if row.get("system"):
        assert isinstance(example.prompt, list)
        example.prompt.insert(0, {"role": "system", "content": row["system"]})
    return example


LAYOUTS: tuple[tuple[str, Callable[[dict[str, Any]], Example]], ...] = (
    ("conversations", _read_sharegpt),
    ("completions", _read_list),
    ("chosen", _read_pair),
)


def _text(value: Any, name: str) -> Text:
    if isinstance(value, str):
        return value
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise BadRow("bad_type", name, abbreviate(value), "text, a turn, or a list of turns")
    return [_turn(t, f"{name}[{i}]") for i, t in enumerate(turns)]


def _turn(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("bad_type", name, abbreviate(turn), "a turn {role, content} or {from, value}")
    role, content = (turn.get("role"), turn.get("content")) if "role" in turn else (turn.get("from"), turn.get("value"))
    if not isinstance(role, str):
        raise BadRow("bad_type", name, abbreviate(turn), "a turn {role, content} or {from, value}")
    if content is None and not turn.get("tool_calls"):
        raise BadRow("empty_turn", f"{name}.content", "None", "text")
    rest = {k: v for k, v in turn.items() if k not in ("role", "content", "from", "value") and v is not None}
    return {"role": ROLES.get(role, role), "content": content, **rest}


def _joined(raw_prompt: Any, completions: list[Text]) -> Example:
    turns = [c for c in completions if not isinstance(c, str)]
    if turns and len(turns) != len(completions):
        raise BadRow("bad_type", "rejected", "text beside turns", "like the other completions, all text or all turns")
    prompt = None if raw_prompt is None else _text(raw_prompt, "prompt")
    if not turns:
        if prompt is not None and not isinstance(prompt, str):
            completions = [[{"role": "assistant", "content": c}] for c in completions]
        return Example(prompt, completions)
    if prompt is None:
        return Example(*_split_turns(turns))
    start = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Example(start, [_without(start, c, i) for i, c in enumerate(turns)])


def _split_turns(turns: list[list[Message]]) -> tuple[list[Message], list[Text]]:
    """Cut off the longest beginning of whole turns that all completions share, leaving each at least one turn."""
    shortest = min(map(len, turns)) - 1
    shared = next((i for i in range(shortest) if any(t[i] != turns[0][i] for t in turns)), shortest)
    if shared < 1:
        raise BadRow(
            "no_prompt",
            "prompt",
            "no column and no common first turn",
            "a column, or the turns with which all completions begin",
        )
    return turns[0][:shared], [t[shared:] for t in turns]


def _without(prompt: list[Message], turns: list[Message], index: int) -> list[Message]:
    """Drop the prompt from a completion that repeats it; refuse one that begins with another conversation."""
    if turns[: len(prompt)] == prompt:
        rest = turns[len(prompt) :]
    elif turns[0]["role"] == "system" or (turns[0]["role"] == "user" and prompt[-1]["role"] != "assistant"):
        raise BadRow(
            "prompt_not_prefix",
            ("chosen", "rejected")[index] if index < 2 else f"completions[{index}]",
            f"a conversation that begins with {abbreviate(turns[0])}",
            f"a conversation that begins with the prompt {abbreviate(prompt[0])}, or only the answer",
        )
    else:
        rest = turns
    return rest or [{"role": "assistant", "content": ""}]


def _refuse_empty(example: Example, allow_empty_prompt: bool) -> None:
    names = (
        ["chosen", "rejected"]
        if len(example.completions) == 2
        else [f"completions[{i}]" for i in range(len(example.completions))]
    )
    for name, completion in zip(names, example.completions, strict=True):
        if _is_empty(completion):
            raise BadRow(
                "empty_completion", name, abbreviate(completion), "text with at least one visible character", DROP_HINT
            )
    if example.prompt is not None and not allow_empty_prompt and _is_empty(example.prompt):
        raise BadRow(
            "empty_prompt",
            "prompt",
            abbreviate(example.prompt),
            "text",
            "Set allow_empty_prompt: true to start from BOS alone, or on_bad_row: drop.",
        )


def _is_empty(text: Text) -> bool:
    if isinstance(text, str):
        return not text.strip()
    return all(
        not t.get("tool_calls") and (not t["content"] or (isinstance(t["content"], str) and not t["content"].strip()))
        for t in text
    )


def _refuse_identical(example: Example) -> None:
    if all(c == example.completions[0] for c in example.completions):
        raise BadRow(
            "identical",
            "rejected",
            f"the same as chosen, {abbreviate(example.completions[0])}",
            "different from the other completions",
            DROP_HINT,
        )


def _best_first(example: Example) -> Example:
    """Sort a list by relevance, else by targets, so that index 0 is the best; without either keep the file's order."""
    key = example.numbers.get("relevance") or example.numbers.get("targets")
    if key is None:
        return example
    order = sorted(range(len(key)), key=lambda i: -key[i])
    example.completions = [example.completions[i] for i in order]
    for name, values in example.numbers.items():
        if COLUMNS[name].per == "sample":
            example.numbers[name] = [values[i] for i in order]
    return example


def as_text(text: Text) -> str:
    """Return text as it is, turns as "role: content" lines."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)
