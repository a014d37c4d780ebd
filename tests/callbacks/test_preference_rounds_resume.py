"""Rounds that were killed and resumed, and rounds on two processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs

EPOCHS = 3
EVERY = {"every_n_train_steps": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("whole")
    runs.run(folder, {"kind": "rounds", "epochs": EPOCHS, "save": EVERY})
    return folder


def ends(folder: Path) -> list[int]:
    """Optimizer steps after each round."""
    epochs = {int(f.stem.split("=")[1]): torch.load(f)["epoch"] for f in (folder / "checkpoints").glob("step=*.ckpt")}
    return [max(step for step, epoch in epochs.items() if epoch == n) for n in range(EPOCHS)]


def pairs(folder: Path, number: int) -> list[dict[str, Any]]:
    text = (folder / f"rounds/round-{number:03d}/pairs.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def same(a: Path, b: Path) -> None:
    for number in range(EPOCHS):
        assert pairs(a, number) == pairs(b, number)
    one, other = runs.weights(a), runs.weights(b)
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    assert runs.metrics(a) == runs.metrics(b)


def test_a_resumed_run_is_the_same_wherever_it_was_interrupted(whole: Path, tmp_path: Path) -> None:
    borders = ends(whole)
    assert len({b - a for a, b in zip([0, *borders], borders, strict=False)}) > 1, "rounds of different length"
    for step in (1, borders[0], borders[0] + 1, borders[1], borders[2] - 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        for number in range(sum(step > b for b in borders) + 1):
            shutil.copytree(whole / f"rounds/round-{number:03d}", folder / f"rounds/round-{number:03d}")
        resume = str(whole / f"checkpoints/step={step}.ckpt")
        runs.run(folder, {"kind": "rounds", "epochs": EPOCHS, "resume": resume})
        same(whole, folder)


@pytest.mark.parametrize("when", [{"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}])
def test_checkpoints_of_epochs_lead_into_the_next_round(when: dict[str, bool], whole: Path, tmp_path: Path) -> None:
    runs.run(tmp_path, {"kind": "rounds", "epochs": 1, "save": when})
    resume = str(tmp_path / f"checkpoints/step={ends(whole)[0]}.ckpt")
    runs.run(tmp_path, {"kind": "rounds", "epochs": EPOCHS, "resume": resume})
    same(whole, tmp_path)


def test_a_run_killed_while_it_sampled_makes_only_what_is_missing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILL_JUDGE_AT", "5")
    killed = runs.start(tmp_path, check=False, kind="rounds", epochs=EPOCHS, save=EVERY)
    monkeypatch.delenv("KILL_JUDGE_AT")
    assert killed.returncode != 0
    assert len(list((tmp_path / "rounds/round-001").glob("piece-*"))) == 1
    resume = str(tmp_path / f"checkpoints/step={ends(whole)[0]}.ckpt")
    runs.run(tmp_path, {"kind": "rounds", "epochs": EPOCHS, "resume": resume})
    same(whole, tmp_path)
    made = (tmp_path / "judged.txt").read_text().splitlines()
    expected = (whole / "judged.txt").read_text().splitlines()
    assert len(expected) == 3 * EPOCHS
    assert made == [*expected[:5], *expected[4:]]


def test_pairs_that_are_gone_or_changed_are_told(whole: Path, tmp_path: Path) -> None:
    options = {"kind": "rounds", "epochs": EPOCHS, "resume": str(whole / "checkpoints/step=1.ckpt")}
    with pytest.raises(ValueError, match=r"round-000/pairs\.jsonl is missing, but the checkpoint lies in round 0"):
        runs.run(tmp_path, options)
    shutil.copytree(whole / "rounds", tmp_path / "rounds")
    with (tmp_path / "rounds/round-000/pairs.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="has changed"):
        runs.run(tmp_path, options)


def test_two_processes_sample_their_shares_and_see_the_same_pairs(whole: Path, tmp_path: Path) -> None:
    runs.start(tmp_path, kind="rounds", devices=2, batch_size=2, epochs=2)
    assert pairs(tmp_path, 0) == pairs(whole, 0), "samples do not depend on who makes them"
    made = (tmp_path / "judged.txt").read_text().splitlines()
    expected = (whole / "judged.txt").read_text().splitlines()
    assert sorted(made[:3]) == sorted(expected[:3])
    assert len(made) == 6
