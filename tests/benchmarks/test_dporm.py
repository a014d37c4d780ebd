"""The protocol of implicit against explicit reward: the table by hand, and a run on a few of the real pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.quality import dporm

ROOT = Path(__file__).parents[2]
needs_data = pytest.mark.skipif(not (ROOT / dporm.DATA).is_dir(), reason=f"{dporm.DATA} is not there")


def test_intervals_by_hand() -> None:
    """Student t for two degrees of freedom: 4.3027; for .6, .7, .8 the half is 4.3027 * .1 / sqrt(3)."""
    assert dporm.told([0.6, 0.7, 0.8]) == "0.700 ± 0.248"
    assert dporm.told([0.6], "+") == "+0.600 ± inf"


def test_the_gap_is_paired_by_seed() -> None:
    results = [{name: {kind: base + 0.1 * i + 0.02 * ("expl" in name) for kind in dporm.SETS} for name in dporm.REWARDS}
               for i, base in enumerate((0.5, 0.55))]  # fmt: skip
    rows = dporm.table(results).splitlines()
    assert rows[0] == "| accuracy, 2 seeds | film reviews, in distribution | product reviews, out of distribution |"
    assert rows[2].startswith("| implicit (DPO) | 0.575 ± ")
    assert rows[3].startswith("| explicit (Bradley-Terry) | 0.595 ± ")
    assert rows[4] == "| gap, explicit - implicit | +0.020 ± 0.000 | +0.020 ± 0.000 |"


@needs_data
def test_both_rewards_are_tested_in_and_out_of_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(tmp_path / "cache"))
    small = ("--data.limit=64", "--trainer.max_epochs=1", "--data.truncation.max_length=32")
    found = dporm.run(0, tmp_path, *small)
    assert found.keys() == dporm.REWARDS.keys()
    assert all(0 < found[name][kind] < 1 for name in dporm.REWARDS for kind in dporm.SETS)


def test_absent_data_end_it_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is not there; the pairs are not part of this repository"):
        dporm.main([])
