"""The self-play demos from end to end with less of everything: first stage, rounds, report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.image.report import ShapesReport
from pl_prefopt.demo.stages import ROOT, STAMP

SMALL = ("--data.rows=16", "--data.eval_rows=4", "--data.batch_size=8")
BASE = ROOT / "configs/demo/image-lightgen-base.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the first stage has run for two steps."""
    made = tmp_path_factory.mktemp("self-play")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setenv("PL_PREFOPT_CACHE", str(made / "cache"))
        torch.set_num_threads(1)
        cli(["fit", "--config", str(BASE), *SMALL, "--trainer.max_epochs=1"])
    export = made / "runs/demo/image-lightgen-base/export"
    assert (export / "diffusion_pytorch_model.safetensors").is_file()
    (export / STAMP).write_text(hashlib.sha256(BASE.read_bytes()).hexdigest())
    return made


@pytest.mark.parametrize("name", ["image-lightgen", "image-ddo"])
def test_rounds_are_measured_and_reported(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(folder / "cache"))
    monkeypatch.setattr(ShapesReport.__init__, "__defaults__", (None, 1, 0, 2, 1.0, 1))
    cli(["fit", "--config", str(ROOT / f"configs/demo/{name}.yaml"), *SMALL])
    run = folder / "runs/demo" / name / "lightning_logs/version_0"
    fids = json.loads((run / "rounds/fid.json").read_text())
    assert fids[0]["step"] == 0
    assert len(fids) >= 2
    first, last = json.loads((run / "report.json").read_text())
    assert first["step"] == 0 < last["step"]
    assert (run / "rounds/round-000/pairs.jsonl").read_text().count("\n") >= 15
    assert (run / "before_after.png").is_file()
