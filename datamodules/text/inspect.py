"""Rows as the model sees them, for a person to read."""

from __future__ import annotations

from typing import Any, Protocol

from pl_prefopt.datamodules.text.literals import Ids
from pl_prefopt.datamodules.text.rows import TokenizedRows
from pl_prefopt.datamodules.text.tokenize import Encoded
from pl_prefopt.datamodules.tokenizers import Tokenizer
from pl_prefopt.utilities.checks import choice, integer


class InspectableData(Protocol):
    """What is asked of a text datamodule after `setup`."""

    datasets: dict[str, Any]

    @property
    def tokenizer(self) -> Tokenizer: ...
    def encoded(self, split: str, index: int) -> Encoded: ...
    def where(self, split: str, index: int) -> str: ...


def inspect_rows(data: InspectableData, split: str = "train", count: int = 3) -> str:
    """Return the first rows of a split: tokens, the border between prompt and completions, what was cut, numbers.

    Tokens are separated by "|"; line breaks in them are escaped. What is trained is every token of a completion,
    EOS included, and none of the prompt.

    Args:
        data: the datamodule, after `setup`.
        split: name of a data set.
        count: number of rows, >= 1.

    Raises:
        ValueError: no such data set, or count < 1.
    """
    integer("count", count)
    choice("split", split, data.datasets)
    rows: TokenizedRows = data.datasets[split]
    lines = [f"{split}: rows 0 to {min(count, len(rows)) - 1} of {len(rows)}, as the model sees them"]
    for index in range(min(count, len(rows))):
        row, whole = rows[index], data.encoded(split, index)
        lines += ["", f"row {index} ({data.where(split, index)})"]
        lines += _part(data.tokenizer, "prompt", row["prompt_ids"], whole.prompt)
        names = ("chosen", "rejected") if len(row["completion_ids"]) == 2 else ()
        for k, (ids, uncut) in enumerate(zip(row["completion_ids"], whole.completions, strict=True)):
            lines += _part(data.tokenizer, names[k] if names else f"completion {k}", ids, uncut)
        lines += [f"  {name}: {row[name]}" for name in rows.numbers]
    return "\n".join(lines)


def _part(tokenizer: Tokenizer, name: str, ids: Ids, uncut: Ids) -> list[str]:
    missing = len(uncut) - len(ids)
    cut = f", {missing} of {len(uncut)} cut off at the {'end' if ids == uncut[: len(ids)] else 'start'}" * bool(missing)
    pieces = "|".join(tokenizer.decode([token]).replace("\n", "\\n") for token in ids)
    return [f"  {name} ({len(ids)} tokens{cut}): {pieces}", f"    ids: {' '.join(map(str, ids))}"]
