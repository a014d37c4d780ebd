"""The layouts that people have, turned into one: a prompt, K completions (best first), numbers that belong to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pl_prefopt.datamodules.files.columns import parsed, per, read_numbers, refuse_reversed, renamed
from pl_prefopt.datamodules.text.turns import Message, Text, as_text, is_empty, read_text
from pl_prefopt.scores import COLUMNS
from pl_prefopt.utilities.rows import DROP_HINT, BadRow, abbreviate, encodable, missing_column
from pl_prefopt.utilities.suggestions import did_you_mean

__all__ = ["TEXT_COLUMNS", "Example", "Message", "Text", "as_text", "parse", "unused_columns"]

PROMPT_NAMES = ("question", "instruction", "query", "input")
"""Columns that plainly hold the prompt where none is called so."""
SYSTEM_NAMES = ("system", "system_prompt", "system_message")
"""Columns that hold a system turn."""
SCORE_NAMES = ("relevance", "rewards", "scores", "ratings")
"""Columns that say how good each completion of a list is, higher being better."""
PROMPT_WORDS = (
    *("article", "context", "conversation", "dialog", "dialogue", "document", "history", "input", "instruction"),
    *("messages", "passage", "post", "problem", "prompt", "query", "question", "request"),
)
"""Last words of columns that may be the prompt: where none is named, they stop the run instead of being ignored."""
MERIT_WORDS = (
    *("best", "chosen", "index", "label", "labels", "order", "preference", "preferences", "preferred", "quality"),
    *("rank", "ranking", "rankings", "ranks", "rating", "reward", "score", "winner"),
)
"""Last words of columns that may say which completion of a list is best: they stop the run where nothing else does."""
TEXT_COLUMNS = (
    *("prompt", "chosen", "rejected", "completions", "conversations", *SYSTEM_NAMES, "tools", "chat_template_kwargs"),
    *(*per("row"), *per("sample"), *SCORE_NAMES, "chosen_margins", "rejected_margins"),
)
"""Columns that rows of text may have."""


@dataclass(slots=True)
class Example:
    """One row in the common shape.

    Args:
        prompt: None means the common beginning of the completions.
        completions: K >= 2, best first.
        numbers: data columns.
        tools: tools for the chat template.
        template_kwargs: variables for the chat template.
        events: what was done that deserves to be counted.
    """

    prompt: Text | None
    completions: list[Text]
    numbers: dict[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    events: set[str] = field(default_factory=set)

    @property
    def conversational(self) -> bool:
        """Whether the row consists of turns and needs a chat template."""
        return not isinstance(self.completions[0], str)

    @property
    def graded(self) -> bool:
        """Whether numbers say how good each completion is."""
        return "relevance" in self.numbers or "targets" in self.numbers


def parse(
    raw: dict[str, Any],
    columns: dict[str, str] | None = None,
    *,
    allow_empty_prompt: bool = False,
    keep_reversed: bool = False,
) -> Example:
    """Read a raw row in any accepted layout.

    Accepted: TRL's standard and conversational pairs with explicit or implicit prompt; `conversations` + `chosen` +
    `rejected` (ShareGPT); `prompt` + `completions`, a list of K >= 2, best first or with `relevance` / `rewards` /
    `scores` / `targets` / `ranks`. Without `prompt`, one of `PROMPT_NAMES` is the prompt. `system` begins the prompt.

    Args:
        raw: the row of the file.
        columns: our column name -> the file's.
        allow_empty_prompt: whether the prompt may be empty.
        keep_reversed: whether a pair may have scores that say the opposite; the event `reversed_scores` then says so.

    Raises:
        BadRow: a column is missing or holds what cannot be used, or columns contradict each other.
    """
    row = renamed(raw, columns or {})
    reader = next((read for key, read in LAYOUTS if row.get(key) is not None), None)
    if reader is None and any(key in row for key, _ in LAYOUTS):
        reader = _read_pair  # which says that chosen is null
    if reader is None:
        hint = did_you_mean("chosen", row) or "Name your columns with columns: {chosen: ..., rejected: ...}."
        raise missing_column("chosen", row, hint)
    alias = _find_prompt(row) if reader is not _read_sharegpt else None
    example = reader(row)
    if alias:
        example.events.add(f"prompt_from_{alias}")
    if example.prompt is None and not example.conversational:
        _stop_at(row, PROMPT_WORDS, "prompt", "Say which one it is with columns: {prompt: ...}, or leave it out.")
    _add_system(example, _one_of(row, SYSTEM_NAMES))
    _refuse_empty(example, allow_empty_prompt)
    _refuse_identical(example)
    scores = _one_of(row, SCORE_NAMES) if reader is _read_list else None
    if reader is not _read_list:
        try:
            refuse_reversed(row)
        except BadRow:
            if not keep_reversed:
                raise
            example.events.add("reversed_scores")
    merits = {} if scores is None else {"relevance": scores}
    example.numbers |= read_numbers(row | merits, len(example.completions), "completion")
    example.tools = _tools(row.get("tools"))
    example.template_kwargs = _template_kwargs(row.get("chat_template_kwargs"))
    if reader is not _read_list:
        return example
    if not example.graded and "ranks" not in example.numbers:
        hint = "Name it with columns: {scores: ...} (higher is better) or {ranks: ...}, or leave it out."
        _stop_at(row, MERIT_WORDS, "scores", hint)
    return _best_first(example, ranked="ranks" in example.numbers and (row.get("scores") or not example.graded))


def unused_columns(raw: Iterable[str], columns: dict[str, str], example: Example) -> set[str]:
    """Return the columns of a row that `parse` did not read, by the file's names."""
    alias = {event.removeprefix("prompt_from_") for event in example.events}
    return set(raw) - (set(TEXT_COLUMNS) - columns.keys()) - set(columns.values()) - alias


def _find_prompt(row: dict[str, Any]) -> str | None:
    """Put the prompt under its name where a column of `PROMPT_NAMES` holds it; return the name of that column."""
    if "prompt" in row:
        return None
    candidates = [name for name in PROMPT_NAMES if row.get(name) not in (None, "", [])]
    if not candidates:
        return None
    if len(candidates) > 1:
        found = f"no such column, but {' and '.join(map(repr, candidates))}"
        hint = "Say which one it is with columns: {prompt: ...}, or join them into one column."
        raise BadRow("ambiguous_prompt", "prompt", found, "one column", hint)
    row["prompt"] = row[candidates[0]]
    return candidates[0]


def _required(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise missing_column(name, row)
    if row[name] is None:
        raise BadRow("missing_column", name, "null", "text, a turn, or a list of turns", DROP_HINT)
    return row[name]


def _prompt(row: dict[str, Any], name: str = "prompt") -> Text | None:
    if name not in row:
        return None
    if row[name] is None:
        hint = "Leave the column out of all rows if both completions begin with the prompt. " + DROP_HINT
        raise BadRow("missing_prompt", name, "null", "text or a list of turns", hint)
    return read_text(row[name], name)


def _read_pair(row: dict[str, Any]) -> Example:
    return _joined(_prompt(row), [read_text(_required(row, name), name) for name in ("chosen", "rejected")])


def _read_list(row: dict[str, Any]) -> Example:
    completions = parsed(_required(row, "completions"))
    if not isinstance(completions, list) or len(completions) < 2:
        raise BadRow("bad_type", "completions", abbreviate(completions), "a list of at least two completions")
    if row.get("chosen") is not None or row.get("rejected") is not None:
        hint = "Leave one of the layouts out."
        raise BadRow("conflict", "completions", "it beside 'chosen' or 'rejected'", "alone, or absent", hint)
    return _joined(_prompt(row), [read_text(c, f"completions[{i}]") for i, c in enumerate(completions)])


def _read_sharegpt(row: dict[str, Any]) -> Example:
    turns = _prompt(row, "conversations")
    if isinstance(turns, str):
        raise BadRow("bad_type", "conversations", abbreviate(turns), "a list of turns")
    if row.get("prompt") is not None:
        raise BadRow("conflict", "prompt", "it beside 'conversations'", "absent", "Leave one of the two out.")
    return _joined(turns, [read_text(_required(row, name), name) for name in ("chosen", "rejected")])


LAYOUTS: tuple[tuple[str, Callable[[dict[str, Any]], Example]], ...] = (
    ("conversations", _read_sharegpt),
    ("completions", _read_list),
    ("chosen", _read_pair),
)


def _joined(prompt: Text | None, completions: list[Text]) -> Example:
    turns = [c for c in completions if not isinstance(c, str)]
    if turns and len(turns) != len(completions):
        raise BadRow("bad_type", "rejected", "text beside turns", "like the other completions, all text or all turns")
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
        if is_empty(completion):
            raise BadRow(
                "empty_completion", name, abbreviate(completion), "text with at least one visible character", DROP_HINT
            )
    if example.prompt is not None and not allow_empty_prompt and is_empty(example.prompt):
        raise BadRow(
            "empty_prompt",
            "prompt",
            abbreviate(example.prompt),
            "text",
            "Set allow_empty_prompt: true to start from BOS alone, or on_bad_row: drop.",
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


def _add_system(example: Example, system: object) -> None:
    """Begin the prompt with the column `system`: as a turn, or before a blank line where the prompt is text."""
    if system is None or system == "":
        return
    if not isinstance(system, str):
        raise BadRow("bad_type", "system", abbreviate(system), "text")
    encodable("system", system)
    if isinstance(example.prompt, str):
        example.prompt = f"{system}\n\n{example.prompt}"
        example.events.add("system_before_prompt")
    elif example.prompt is None:
        hint = "Write it into the completions, or name the prompt with columns: {prompt: ...}."
        raise BadRow("conflict", "system", "text, but no prompt that it could begin", "absent", hint)
    elif example.prompt[0]["role"] not in ("system", "developer"):
        example.prompt = [{"role": "system", "content": system}, *example.prompt]
    elif example.prompt[0]["content"] != system:
        found = f"{abbreviate(system)} beside another system turn, {abbreviate(example.prompt[0]['content'])}"
        raise BadRow("conflict", "system", found, "absent, or equal to the system turn of the conversation")


def _one_of(row: dict[str, Any], names: Sequence[str]) -> Any:
    """The value of the one column of `names` that a row has, None without one; several must be equal."""
    present = [name for name in names if row.get(name) not in (None, "")]
    for name in present[1:]:
        if row[name] != row[present[0]]:
            raise _conflict(name, row[name], present[0], row[present[0]])
    return row[present[0]] if present else None


def _stop_at(row: dict[str, Any], words: Collection[str], name: str, hint: str) -> None:
    """Refuse a row with a column that plainly means something, but that nothing reads."""
    for other, value in row.items():
        last = re.split(r"[\W_]+", other.lower())[-1]
        if last in words and other not in (*TEXT_COLUMNS, *PROMPT_NAMES) and value not in (None, "", []):
            raise BadRow(f"ambiguous_{name}", name, f"no such column, but {other!r}", "one column", hint)


def _conflict(name: str, values: object, other: str, others: object) -> BadRow:
    found = f"{abbreviate(values)} beside {other!r} {abbreviate(others)}"
    return BadRow("conflict", name, found, f"in agreement with {other!r}", "Leave the column out that is wrong.")


def _tools(value: object) -> list[Any] | None:
    tools = parsed(value)
    if tools is None or tools in ([], ""):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(
            "bad_type", "tools", abbreviate(tools), "a list of objects that describe functions, or its JSON text"
        )
    return tools


def _template_kwargs(value: object) -> dict[str, Any]:
    variables = parsed(value)
    if variables is None or variables == "":
        return {}
    if not isinstance(variables, dict):
        raise BadRow("bad_type", "chat_template_kwargs", abbreviate(variables), "an object with named values")
    for name, item in variables.items():
        if item is not None and not isinstance(item, (str, bool, int, float)):
            accepted = "a plain value (text, number, true, false)"
            raise BadRow("bad_type", f"chat_template_kwargs.{name}", abbreviate(item), accepted)
    # datasets of fixed columns fill the variables that a row lacks with None
    return {name: item for name, item in variables.items() if item is not None}


def _best_first(example: Example, *, ranked: bool) -> Example:
    """Sort a list by relevance, else by targets, else by ranks (lower is better), so that index 0 is the best.

    Args:
        example: the list.
        ranked: whether `ranks` says which completion is better; else these are the positions of display.
    """
    merits = {name: example.numbers[name] for name in ("relevance", "targets") if name in example.numbers}
    if ranked:
        merits["ranks"] = [-rank for rank in example.numbers["ranks"]]
    if not merits:
        return example
    (name, key), *others = merits.items()
    for other, values in others:
        pairs = ((i, j) for i in range(len(key)) for j in range(i))
        if any((key[i] - key[j]) * (values[i] - values[j]) < 0 for i, j in pairs):
            raise _conflict(other, values, name, key)
    if len(set(key)) == 1:  # objectives of lists know ties; those of pairs take the first for the best
        example.events.add("tied_list")
    order = sorted(range(len(key)), key=lambda i: -key[i])
    example.completions = [example.completions[i] for i in order]
    for name, values in example.numbers.items():
        if COLUMNS[name].per == "sample":
            example.numbers[name] = [values[i] for i in order]
    return example
