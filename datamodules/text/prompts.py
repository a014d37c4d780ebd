"""The prompts of a text split: what is sampled for, and what a new pair is written under."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pl_prefopt.datamodules.text.formats import Example, as_text
from pl_prefopt.datamodules.text.rows import TokenizedRows


class PromptBook:
    """Distinct prompts of the rows of a split, in their order, each with the first row that shows it.

    A prompt is named by its text; a conversation by the JSON text of its turns, or of {"prompt": turns, "tools": ...,
    "chat_template_kwargs": ...} where it has those.

    Args:
        rows: the split's rows.
        example: row number -> the parsed row.

    Raises:
        ValueError: a row without a prompt of its own.
    """

    def __init__(self, rows: TokenizedRows, example: Callable[[int], Example]) -> None:
        self.rows, self.example = rows, example
        self.first: dict[str, int] = {}
        for i in range(len(rows)):
            self.first.setdefault(self._name(i), i)

    def _name(self, index: int) -> str:
        columns = prompt_columns(self.example(index))
        prompt = columns["prompt"]
        if prompt is None:
            raise ValueError(
                f"row {index} must have a prompt column to be sampled for, got a prompt that is the common beginning "
                "of the completions"
            )
        if isinstance(prompt, str) and len(columns) == 1:
            return prompt
        return json.dumps(prompt if len(columns) == 1 else columns, ensure_ascii=False)

    def ids(self, name: str) -> list[int] | None:
        """Token ids of a prompt, cut as in training; None where no row shows it."""
        return self.rows[self.first[name]]["prompt_ids"] if name in self.first else None

    def truth(self, name: str) -> str:
        """The chosen completion of the first row that shows the prompt."""
        best = self.example(self.first[name]).completions[0]
        return best if isinstance(best, str) else as_text(best[-1]["content"] if len(best) == 1 else best)

    def columns(self, name: str) -> dict[str, Any]:
        """The columns of a row about this prompt, without completions."""
        return prompt_columns(self.example(self.first[name]))


def prompt_columns(example: Example) -> dict[str, Any]:
    """Prompt, and tools and template arguments where the row has them."""
    extra = {"tools": example.tools, "chat_template_kwargs": example.template_kwargs}
    return {"prompt": example.prompt, **{k: v for k, v in extra.items() if v}}
