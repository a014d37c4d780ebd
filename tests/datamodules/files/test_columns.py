from __future__ import annotations

from typing import Any

import pytest

from pl_prefopt.datamodules.files.columns import SameColumns, per, read_numbers
from pl_prefopt.scores import COLUMNS
from pl_prefopt.utilities.rows import BadRow


def test_the_columns_are_those_of_scores() -> None:
    assert {*per("row"), *per("sample"), *per("token")} == set(COLUMNS)


def test_rows_and_samples_and_other_names() -> None:
    row = {"weight": "2", "rewards": [1, 2], "chosen_margins": [0.5], "rejected_margins": [1], "id": 3, "targets": None}
    assert read_numbers(row, 2, "completion") == {"weight": 2.0, "relevance": [1, 2], "margins": [[0.5], [1]]}
    assert read_numbers({"ranks": [1, 2]}, 2, "image", skip=("ranks",)) == {}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"weight": -1}, "field 'weight' must be a finite number >= 0, got -1"),
        ({"preference_prob": 2}, r"field 'preference_prob' must be a number in \[0, 1\], got 2"),
        ({"relevance": [1]}, r"field 'relevance' must be a list of 2 numbers, one per image, got \[1\]"),
        ({"targets": [1, None]}, r"field 'targets\[1\]' must be a finite number, got None"),
        ({"token_weights": [[1.0], [1.0]]}, "'token_weights' must be absent, since values per token cannot be read"),
    ],
)
def test_bad_numbers(row: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        read_numbers(row, 2, "image")


def test_all_rows_have_the_same_columns() -> None:
    check = SameColumns()
    check({"weight": 1.0, "margins": [[1.0, 2.0], [3.0, 4.0]]})
    check({"margins": [[1.0, 2.0], [3.0, 4.0]], "weight": 2.0})
    for numbers in ({"weight": 1.0}, {"weight": 1.0, "margins": [[1.0], [3.0]]}):
        with pytest.raises(BadRow, match="field 'margins' must be alike in all rows"):
            check(numbers)
