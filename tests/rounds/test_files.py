"""Pieces of a round on disk: shared by ranks, complete or missing, and tied to what they were made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pl_prefopt.rounds.files import (
    RoundFiles,
    SampledRow,
    is_usable,
    pair_rows,
    round_name,
    score_range,
    score_table,
)

CONDITIONS = ["a", "b", "c", "d", "e"]


def rows(conditions: list[str]) -> list[SampledRow]:
    return [{"condition": c, "samples": [f"{c}0", f"{c}1"], "scores": [1.0, None]} for c in conditions]


def test_pieces_are_shared_by_ranks_and_read_in_order(tmp_path: Path) -> None:
    files = RoundFiles(tmp_path, 2, "key", CONDITIONS, 2)
    assert files.missing() == [0, 1, 2]
    assert (files.missing(0, 2), files.missing(1, 2)) == ([0, 2], [1])
    for index in (2, 0):
        files.write(index, rows(files.piece(index)))
    assert sorted(p.name for p in (tmp_path / "round-002").iterdir()) == ["piece-00000.json", "piece-00002.json"]
    assert files.missing() == [1]
    with pytest.raises(ValueError, match=r"piece-00001\.json is missing after all processes have sampled"):
        files.rows()
    files.write(1, rows(files.piece(1)))
    assert [row["condition"] for row in files.rows()] == CONDITIONS


def test_pieces_of_another_key_are_missing(tmp_path: Path) -> None:
    old = RoundFiles(tmp_path, 0, "old", CONDITIONS, 5)
    old.write(0, rows(CONDITIONS))
    assert RoundFiles(tmp_path, 0, "new", CONDITIONS, 5).missing() == [0]
    assert old.missing() == []


def test_the_layout_on_disk_is_that_of_earlier_versions(tmp_path: Path) -> None:
    file = tmp_path / round_name(3) / "piece-00000.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"key": "k", "rows": [{"condition": "a", "samples": ["x"], "scores": [None]}]}))
    assert RoundFiles(tmp_path, 3, "k", ["a"], 4).rows() == [{"condition": "a", "samples": ["x"], "scores": [None]}]


def test_samples_without_a_score_are_nan() -> None:
    table = score_table(rows(["a"]))
    assert table.isnan().tolist() == [[False, True]]
    assert score_range(table) == "between 1 and 1"
    assert score_range(torch.full((1, 2), torch.nan)) == "of no sample"


def test_whitespace_is_not_usable() -> None:
    assert [is_usable(s) for s in ("x", " \n\t", "", None, torch.zeros(2))] == [True, False, False, False, True]


def test_pairs_of_equal_samples_are_dropped() -> None:
    judged: list[SampledRow] = [{"condition": "q", "samples": ["a", "b", "a"], "scores": [1.0, 0.0, 2.0]}]
    pairs = pair_rows(judged, torch.tensor([[0, 2, 0], [0, 2, 1]]), number=3)
    assert [(p["chosen"], p["rejected"], p["round"]) for p in pairs] == [("a", "b", 3)]
