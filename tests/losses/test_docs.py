"""docs/losses.md and docs/trl-deviations.md name what exists, and all of it."""

from __future__ import annotations

import doctest
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
