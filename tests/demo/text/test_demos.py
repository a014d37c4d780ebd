"""The text demos from end to end, with less data: from the shipped base to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt.demo.__main__ import main

SMALL = ("--data.rows=64", "--data.batch_size=32", "--data.eval_rows=20", "--trainer.max_epochs=1",
         "--trainer.val_check_interval=1", "--data.world=pl_prefopt.demo.text.world.SentimentWorld",
         "--data.world.max_words=3")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that the demos share, with their cache."""
    return tmp_path_factory.mktemp("demo")


MEASURES = {
    "text-dpo": {},
    "text-tdpo": {},
    "text-ld-dpo": {},
    "text-f-dpo": {"entropy": "entropy, nats (exact)"},
    "text-adpo": {},
    "text-modpo": {"sentiment": "expected sentiment (exact)", "restraint": "expected restraint (exact)"},
    "text-pama": {"sentiment": "expected sentiment (exact)", "restraint": "expected restraint (exact)"},
    "text-irpo": {"ndcg": "NDCG of held-out lists"},
}
"""Demo -> what it measures besides accuracy, reward and KL, and how the summary calls it."""


@pytest.mark.parametrize(("name", "also"), MEASURES.items(), ids=MEASURES)
def test_a_demo_ends_with_its_report(
    name: str, also: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(folder / "cache"))
    main([name, *SMALL])
    output = capsys.readouterr().out
    run = folder / "runs/demo" / name / "lightning_logs/version_0"
    assert "accuracy on held-out pairs" in output
    assert f"figures, samples and numbers: {run.relative_to(folder)}" in output
    history = json.loads((run / "report.json").read_text())
    assert [h["step"] for h in history] == [0, 1, 2]
    assert [h["kl"] > 0 for h in history] == [False, True, True]
    assert history[0]["accuracy"] == 0.5
    for key, label in also.items():
        assert all(key in h for h in history)
        assert label in output
    assert all(0 <= h["accuracy"] <= 1 for h in history)
    for figure in ("reward_kl.png", "curves.png"):
        assert (run / figure).read_bytes()[:4] == b"\x89PNG"
    table = (run / "samples.md").read_text().splitlines()
    assert len(table) == 2 + 2 * 10
    assert _tags(run) >= {"demo/reward", "demo/kl", "demo/reward_kl", "demo/curves", "demo/samples/text_summary"}


def _tags(run: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run))
    tags: dict[str, Any] = board.Reload().Tags()
    return {*tags["scalars"], *tags["images"], *tags["tensors"]}


def test_the_demo_of_rounds_reports_every_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(folder / "cache"))
    small = [a for a in SMALL if "val_check_interval" not in a and "max_epochs" not in a]
    main(["text-dno", *small, "--trainer.max_epochs=2", "--trainer.limit_train_batches=3"])
    run = folder / "runs/demo/text-dno/lightning_logs/version_0"
    history = json.loads((run / "report.json").read_text())
    assert [h["step"] for h in history] == [0, 6]
    assert history[1]["reward"] > history[0]["reward"]
    assert {"rounds/score", "rounds/best", "rounds/pairs"} <= _tags(run)
    for number in range(2):
        assert (run / f"rounds/round-{number:03d}/pairs.jsonl").stat().st_size > 0
