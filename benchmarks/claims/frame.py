"""`Claim`, intervals over seeds, results on disk, and the page they become."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from matplotlib.figure import Figure

from benchmarks.intervals import Interval, interval
from pl_prefopt.utilities.files import write_json

HERE = Path(__file__).parent
SHARED = ("train", "fit")
Result = dict[str, Any]
"""The result of one seed: plain JSON values."""


@dataclass(frozen=True)
class Effect:
    """One number per seed, and the range that its 95% interval must lie in for the claim to hold.

    Args:
        name: what it is, with its unit.
        of: result of a seed -> number.
        low: the whole interval must lie above; None: no lower bound.
        high: the whole interval must lie below; None: no upper bound.
        digits: decimals in the table.

    With neither bound the number is reported and decides nothing.
    """

    name: str
    of: Callable[[Result], float]
    low: float | None = None
    high: float | None = None
    digits: int = 2

    @property
    def decides(self) -> bool:
        """Whether the claim depends on it."""
        return self.low is not None or self.high is not None

    def holds(self, interval: Interval) -> bool:
        """Whether the whole interval lies inside the bounds."""
        above = self.low is None or interval.low > self.low
        below = self.high is None or interval.high < self.high
        return above and below

    def bounds(self) -> str:
        """The bounds in words."""
        parts = [f"> {self.low:g}" if self.low is not None else "", f"< {self.high:g}" if self.high is not None else ""]
        return " and ".join(p for p in parts if p)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, the experiment that tests it, and when it holds.

    Args:
        statement: the claim.
        paper: its source.
        setup: what is run, in one or two sentences.
        run: seed -> plain JSON values; all randomness comes from the seed.
        effects: numbers over seeds; the claim holds when all that decide lie inside their bounds.
        figure: results of all seeds -> figure.
        tried: what else was tried, with its result; for a claim that does not show, a possible reason.
        cost: relative cost of one seed, so that the most expensive ones start first.
        seeds: how many; more than five where the effect is small.
    """

    statement: str
    paper: str
    setup: str
    run: Callable[[int], Result]
    effects: tuple[Effect, ...]
    figure: Callable[[Sequence[Result]], Figure]
    tried: str = ""
    cost: float = 1.0
    seeds: int = 5


def names() -> list[str]:
    """All claims, text first."""
    claims = [m.name for m in iter_modules([str(HERE)]) if m.name.startswith(("text_", "callbacks_"))]
    return sorted(claims, key=lambda n: (not n.startswith("text_"), n))


def load(name: str) -> Claim:
    """The claim of a module of this package."""
    return import_module(f"benchmarks.claims.{name}").CLAIM


# ---- results on disk ---------------------------------------------------------------------------------------------


def digest(name: str) -> str:
    """Key of what runs: the claim's file without `CLAIM` (texts, effects, figure) and comments, and what trains."""
    files = [HERE / f"{n}.py" for n in (name, *SHARED)]
    body = "\n".join(ast.unparse(_running_part(ast.parse(f.read_text(encoding="utf-8")))) for f in files)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _running_part(tree: ast.Module) -> ast.Module:
    described = {"CLAIM", "figure", "effects"}
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in described)
        and not (isinstance(node, ast.FunctionDef) and node.name in described)
    ]
    return tree


def result_file(folder: Path, name: str, seed: int) -> Path:
    """The file of a seed's result."""
    return folder / f"{name}-{seed}.json"


def write_result(folder: Path, name: str, seed: int, values: Result, seconds: float) -> None:
    """Write a seed's result atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"claim": name, "seed": seed, "code": digest(name), "seconds": seconds, "values": values}
    write_json(result_file(folder, name, seed), body)


def read_result(folder: Path, name: str, seed: int, *, stale: bool = False) -> dict[str, Any] | None:
    """A seed's file, or None if the present code has not written one; `stale` accepts that of any code."""
    file = result_file(folder, name, seed)
    if not file.exists():
        return None
    body = json.loads(file.read_text(encoding="utf-8"))
    return body if stale or body["code"] == digest(name) else None


# ---- the page ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A claim with the results of its seeds."""

    name: str
    claim: Claim
    results: list[Result]
    seconds: float

    @property
    def intervals(self) -> list[tuple[Effect, Interval]]:
        """Every effect with its interval."""
        return [(e, interval([e.of(r) for r in self.results])) for e in self.claim.effects]

    @property
    def holds(self) -> bool:
        """Whether all deciding effects lie inside their bounds."""
        return all(e.holds(i) for e, i in self.intervals if e.decides)


def page(outcomes: Sequence[Outcome], how: Mapping[str, str]) -> str:
    """docs/claims.md.

    Args:
        outcomes: claims in the order of the table.
        how: facts about the run, name -> value.
    """
    head = [
        "# Claims of the papers, in miniature",
        "",
        "Written by `python -m benchmarks.claims`; do not edit. Small language models are trained in the sentiment",
        "world (`pl_prefopt.demo`), where reward, KL, entropy and length are exact sums over every text, so the spread",
        "between seeds (start, data, order) is the only noise. An effect is the mean over seeds with its 95%",
        "Student-t interval; a claim holds when the whole interval of every deciding effect lies inside the bound that",
        "its script states. A claim that holds here holds in this small world only, and one that does not show may",
        "still be true elsewhere.",
        "",
        *(f"- {k}: {v}" for k, v in how.items()),
        "",
        "| claim | effect, mean (95% interval) | here |",
        "|---|---|---|",
        *(table_row(o) for o in outcomes),
    ]
    return "\n".join([*head, *(line for o in outcomes for line in section(o))]) + "\n"


def table_row(outcome: Outcome) -> str:
    """One row of the table."""
    decide = [(e, i) for e, i in outcome.intervals if e.decides]
    effects = "<br>".join(f"{e.name}: {i.text(e.digits)}, {'yes' if e.holds(i) else 'no'}" for e, i in decide)
    link = f"[{outcome.name}](#{outcome.name}): {outcome.claim.statement}"
    return f"| {link} | {effects} | {'holds' if outcome.holds else 'does not show'} |"


def section(outcome: Outcome) -> list[str]:
    """A claim's own part of the page."""
    claim = outcome.claim
    lines = ["", f"## {outcome.name}", "", f"{claim.statement} ({claim.paper})", "", claim.setup, ""]
    lines += ["| effect | mean (95% interval) | bound | inside |", "|---|---|---|---|"]
    for e, i in outcome.intervals:
        inside = ("yes" if e.holds(i) else "no") if e.decides else ""
        lines.append(f"| {e.name} | {i.text(e.digits)} | {e.bounds()} | {inside} |")
    lines += ["", f"![{outcome.name}](images/claims/{outcome.name}.png)"]
    lines += ["", f"What was tried: {claim.tried}"] if claim.tried else []
    tail = (
        f"{len(outcome.results)} seeds, {outcome.seconds:.0f} CPU seconds, script benchmarks/claims/{outcome.name}.py."
    )
    return [*lines, "", tail]


def write_page(docs: Path, outcomes: Sequence[Outcome], how: Mapping[str, str]) -> Path:
    """Write docs/claims.md and one small figure per claim."""
    folder = docs / "images" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    for o in outcomes:
        o.claim.figure(o.results).savefig(folder / f"{o.name}.png", dpi=80)
    target = docs / "claims.md"
    target.write_text(page(outcomes, how), encoding="utf-8")
    return target
