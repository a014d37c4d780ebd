from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pl_prefopt.datamodules.files.splits import Splits, split_indices


def test_sets_have_names_and_stages() -> None:
    splits = Splits("t.jsonl", {"film": "f.jsonl", "book": ["a.jsonl", "b.jsonl"]}, "x.jsonl", {"train": 5})
    assert splits.files == {
        "train": "t.jsonl", "val/film": "f.jsonl", "val/book": ["a.jsonl", "b.jsonl"], "test": "x.jsonl",
    }  # fmt: skip
    assert splits.of_stage("fit") == ["train", "val/film", "val/book"]
    assert splits.of_stage("validate") == ["val/film", "val/book"]
    assert splits.of_stage("predict") == splits.of_stage("test") == ["test"]
    assert splits.of_stage(None) == list(splits.files)
    assert (splits.limit("train"), splits.limit("val/film")) == (5, None)
    assert not splits.splits_train("fit")


def test_named_sources_are_one_list_of_files() -> None:
    splits = Splits({"x": "a.jsonl", "y": ["b.jsonl", "c.jsonl"]}, 0.1)
    assert splits.files["train"] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert splits.sources == ["x", "y", "y"]
    assert splits.splits_train("fit")
    assert splits.splits_train("validate")
    assert not splits.splits_train("test")


def test_generated_rows_have_no_sources_and_no_limit() -> None:
    splits = Splits({"x": "a.jsonl", "y": "b.jsonl"}, limit=3)
    splits.replace_train(["round.jsonl"])
    assert (splits.files["train"], splits.sources, splits.generated) == (["round.jsonl"], [], True)
    assert (splits.limit("train"), splits.limit("val")) == (None, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "train, val or test must be a path or dataset name, got none of the three"),
        ({"train": {"x": "a"}}, r"at least two named sources, got the sources \['x'\]"),
        ({"val": 0.5}, r"val must be files, or a fraction in \(0, 1\) of the rows of train, got 0.5"),
        ({"train": "a", "limit": {"tran": 1}}, "limit must be one of train, val, test, got 'tran'"),
        ({"train": "a", "limit": -1}, "limit must be an integer >= 1 or None, got -1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Splits(**options)


def test_a_share_of_the_rows_is_drawn_by_the_seed() -> None:
    train, val = split_indices(20, 0.25, 0)
    assert sorted([*train, *val]) == list(range(20))
    assert len(val) == 5
    assert not np.array_equal(val, split_indices(20, 0.25, 1)[1])
    with pytest.raises(ValueError, match=r"at least one row on both sides, got 0.01 of 20 rows, which is 0"):
        split_indices(20, 0.01, 0)
