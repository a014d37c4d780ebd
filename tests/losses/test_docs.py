"""docs/losses.md and docs/trl-deviations.md name what exists, and all of it."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

from pl_prefopt import losses, objectives
from pl_prefopt.losses import pairwise

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "losses.md").read_text()
DEVIATIONS = (ROOT / "docs" / "trl-deviations.md").read_text()


@pytest.mark.parametrize("name", [*losses.__all__, *objectives.__all__])
def test_everything_exported_stands_in_the_index(name: str) -> None:
    if name not in ("Objective", "modpo_weights"):
        assert re.search(rf"\b{name}\b", PAGE)


def test_every_function_and_file_in_the_index_exists() -> None:
    for name in re.findall(r"`(\w+_loss)[(`]", PAGE):
        assert hasattr(losses, name)
    for path in re.findall(r"`((?:configs|tests)/[\w./-]+)`", PAGE + DEVIATIONS):
        assert (ROOT / path).exists(), path


INDEX = PAGE.split("## Paper index")[1].split("## How they are tested")[0]
ROWS = [[c.strip() for c in line.strip("|").split("|")] for line in INDEX.splitlines() if line.startswith("| ")][1:]
AXES = ("data", "framework", "constraint", "property")


def resolve(dotted: str) -> object:
    """What `pl_prefopt.<dotted>` names: a module first, then an attribute of it."""
    module, _, name = f"pl_prefopt.{dotted}".rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("row", ROWS, ids=[r[0] for r in ROWS])
def test_what_the_paper_index_names_exists(row: list[str]) -> None:
    paper, _, functions, classes, tests, configs, shown, axes = row
    names = re.findall(r"`([\w.]+)`", f"{functions} {classes}")
    assert names, paper
    assert all(callable(resolve(name)) for name in names)
    assert "`configs/" in configs or "config" in configs
    for path in re.findall(r"`((?:configs|benchmarks|pl_prefopt)/[\w./-]+)`", f"{configs} {shown}"):
        assert (ROOT / path).is_file(), path
    files = re.findall(r"`(tests/[\w./-]+)`", tests)
    assert files
    sources = "".join((ROOT / path).read_text() for path in [*files, "tests/losses/pairs.py"])
    assert any(name.rpartition(".")[2] in sources for name in names), f"{tests} tests none of {names}"
    for objective in re.findall(r"`objective: (\w+)`", configs):
        assert f"objectives.{objective}" in classes
    assert all(part.split(":")[0].strip() in AXES for part in axes.split(";")), axes
    assert re.search(r"\d{4}\.\d{5}", paper)


def test_the_paper_index_holds_every_claim_and_every_text_demo() -> None:
    scripts = {p.name for p in (ROOT / "benchmarks" / "claims").glob("text_*.py")}
    assert scripts == set(re.findall(r"`benchmarks/claims/(text_\w+\.py)`", INDEX))
    demos = {p.name for p in (ROOT / "configs" / "demo").glob("text-*.yaml")}
    assert demos == set(re.findall(r"`configs/demo/(text-[\w-]+\.yaml)`", INDEX))


def test_every_test_that_the_deviations_name_exists() -> None:
    sources = "".join(p.read_text() for p in (ROOT / "tests" / "losses").glob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", DEVIATIONS)
    assert len(names) > 4
    for name in names:
        assert f"def {name}(" in sources


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(pairwise)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_loss_its_objective_and_their_tests_have_the_same_file_name() -> None:
    helpers = {"__init__", "math", "base", "mixture"}
    files = {p.stem for p in (ROOT / "pl_prefopt" / "losses").glob("*.py")} - helpers
    classes = {p.stem for p in (ROOT / "pl_prefopt" / "objectives").glob("*.py")} - helpers
    assert classes == files - {"fast_slow"}, "OFS-DPO is a callback"
    assert files <= {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "losses").glob("test_*.py")}
    assert classes <= {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "objectives").glob("test_*.py")}
