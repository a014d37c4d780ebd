"""What is in the data, before anything is trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pl_prefopt.datamodules.text.rows import TokenizedRows

ALIAS = "changed/prompt_from_"
"""Beginning of the counts of rows whose prompt is a column of another name."""
QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


def statistics(rows: TokenizedRows) -> dict[str, Any]:
    """Return counts, quantiles of token lengths, duplicates and contradictions.

    Keys: rows; counts (read, kept, dropped/<reason>, changed/<what>); tokens (prompt, chosen, rejected: quantiles and
    mean, in tokens, EOS included); chosen_longer, rejected_longer (shares of rows); duplicates (rows beyond the first
    of equal prompt, chosen and rejected), same_prompt_and_chosen (rows beyond the first), contradictory (rows whose
    pair also stands the other way round), distinct_prompts.
    """
    chosen, rejected = rows.completion_lengths(0), rows.completion_lengths(1)
    lengths = {"prompt": rows.prompt_lengths, "chosen": chosen, "rejected": rejected}
    return {
        "rows": len(rows),
        "counts": rows.counts,
        "tokens": {name: _quantiles(values) for name, values in lengths.items()},
        "chosen_longer": float(np.mean(chosen > rejected)),
        "rejected_longer": float(np.mean(chosen < rejected)),
        **_repeats(rows),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    marks = {f"q{100 * q:g}": float(np.quantile(values, q)) for q in QUANTILES}
    return marks | {"mean": float(np.mean(values))}


def _repeats(rows: TokenizedRows) -> dict[str, int]:
    pairs: Counter[tuple[int, int, int]] = Counter()
    for row in map(rows.__getitem__, range(len(rows))):
        prompt, chosen, rejected = (hash(tuple(ids)) for ids in (row["prompt_ids"], *row["completion_ids"][:2]))
        pairs[prompt, chosen, rejected] += 1
    sides: dict[tuple[int, int], int] = defaultdict(int)
    for (prompt, chosen, _), count in pairs.items():
        sides[prompt, chosen] += count
    return {
        "distinct_prompts": len({prompt for prompt, _, _ in pairs}),
        "duplicates": len(rows) - len(pairs),
        "same_prompt_and_chosen": len(rows) - len(sides),
        "contradictory": sum(n for (p, c, r), n in pairs.items() if (p, r, c) in pairs),
    }


def describe(name: str, stats: dict[str, Any]) -> str:
    """Return the statistics as a table of plain text."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}: {stats['rows']} rows", title_justify="left")
    marks = list(stats["tokens"]["prompt"])
    for heading in ("tokens", *marks):
        table.add_column(heading, justify="left" if heading == "tokens" else "right")
    for part, values in stats["tokens"].items():
        table.add_row(part, *(f"{values[m]:.0f}" for m in marks))
    out = StringIO()
    Console(file=out, width=100).print(table)
    return "\n" + out.getvalue() + ", ".join(_remarks(stats))


def _remarks(stats: dict[str, Any]) -> list[str]:
    flat = {k: v for k, v in stats.items() if k not in ("rows", "counts", "tokens")} | stats["counts"]
    return [
        f"{k.replace('_', ' ')} {v:.2f}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
        for k, v in flat.items()
    ]


def notes(counts: Mapping[str, int], unused: Collection[str]) -> list[str]:
    """Return sentences about what a reader of the log should not miss."""
    sentences = []
    if unused:
        sentences.append(f"columns that are not used: {', '.join(map(repr, unused))}")
    for name, count in counts.items():
        if name.startswith(ALIAS):
            sentences.append(f"the prompt of {count} rows is their column {name.removeprefix(ALIAS)!r}")
    if systems := counts.get("changed/system_before_prompt"):
        sentences.append(f"the column 'system' of {systems} rows begins their prompt, before a blank line")
    if ties := counts.get("changed/tied_list"):
        sentences.append(
            f"all completions of {ties} lists are equally good; objectives of pairs take the first for better"
        )
    if escaped := counts.get("changed/special_tokens_escaped"):
        sentences.append(
            f"{escaped} rows hold special tokens of the tokenizer as text, and were tokenised as text; set "
            "special_tokens: allow if they were written for this tokenizer"
        )
    return sentences
