"""Small data files that the tests of this folder share."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "text"
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def word_pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of different random words, with different numbers of them."""
    rng = random.Random(seed)

    def words() -> str:
        return "".join(" " + rng.choice(WORDS) for _ in range(rng.randint(1, 6)))

    return [
        {"prompt": f"say{words()}:", "chosen": f"{words()} good", "rejected": f"{words()} bad"} for _ in range(count)
    ]


def copy_of(path: Path) -> str:
    """A file of the same rows beside `path`, for tests that compare training and validation: one more line break."""
    copy = path.with_stem(f"{path.stem}-copy")
    copy.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    return str(copy)
