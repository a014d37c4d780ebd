"""The self-play demos from end to end with less of everything: from the shipped base, rounds, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.image.report import ShapesReport
from pl_prefopt.demo.listing import config_path

SMALL = ("--data.rows=16", "--data.eval_rows=4", "--data.batch_size=8")


@pytest.mark.parametrize("name", ["image-lightgen", "image-ddo"])
def test_rounds_are_measured_and_reported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ShapesReport.__init__, "__defaults__", (None, 1, 0, 2, 1.0, 1))
    cli(["fit", "--config", str(config_path(name)), *SMALL])
    run = tmp_path / "runs/demo" / name / "lightning_logs/version_0"
    fids = json.loads((run / "rounds/fid.json").read_text())
    assert fids[0]["step"] == 0
    assert len(fids) >= 2
    first, last = json.loads((run / "report.json").read_text())
    assert first["step"] == 0 < last["step"]
    assert (run / "rounds/round-000/pairs.jsonl").read_text().count("\n") >= 15
    assert (run / "before_after.png").is_file()
