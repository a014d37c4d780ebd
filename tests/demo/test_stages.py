"""What must be made first is made first, once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pl_prefopt import cli
from pl_prefopt.demo.stages import ROOT, RunFirst, find_config, start_method


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A config, and a stand-in for the command line that records its calls in a file and writes the result."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.yaml").write_text("a: 1")
    told = tmp_path / "calls.jsonl"
    made = SimpleNamespace(code=0, writes=True, folder=tmp_path)
    made.calls = lambda: [json.loads(line) for line in told.read_text().splitlines()] if told.is_file() else []

    def main(args: list[str]) -> None:
        with told.open("a") as file:
            call = {"args": args, "env": dict(os.environ), "pid": os.getpid(), "threads": torch.get_num_threads()}
            file.write(json.dumps(call) + "\n")
        if made.writes:
            Path("out").mkdir(exist_ok=True)
        raise SystemExit(made.code)

    monkeypatch.setattr(cli, "main", main)
    return made


def test_it_runs_once_and_again_when_the_config_changes(stage: SimpleNamespace) -> None:
    first = RunFirst("first.yaml", "out")
    first.run()
    first.run()
    (call,) = stage.calls()
    assert call["args"] == ["fit", "--config", "first.yaml"]
    assert call["threads"] == 1
    assert call["pid"] != os.getpid()
    (stage.folder / "first.yaml").write_text("a: 2")
    first.run()
    assert len(stage.calls()) == 2


def test_the_process_does_not_inherit_a_place_in_a_group(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("KEPT", "yes")
    RunFirst("first.yaml", "out").run()
    environment = stage.calls()[0]["env"]
    assert "KEPT" in environment
    assert not {"LOCAL_RANK", "WORLD_SIZE"} & set(environment)
    assert os.environ["WORLD_SIZE"] == "2"


@pytest.mark.parametrize(("code", "writes"), [(1, True), (0, False)])
def test_a_failed_stage_stops_the_run_and_is_tried_again(stage: SimpleNamespace, code: int, writes: bool) -> None:
    stage.code, stage.writes = code, writes
    for _ in range(2):
        with pytest.raises(ValueError, match=f"status {code}.*pl-prefopt fit --config first.yaml"):
            RunFirst("first.yaml", "out").run()
    assert len(stage.calls()) == 2


def test_only_the_first_process_runs_it_and_all_wait(stage: SimpleNamespace) -> None:
    waited: list[str] = []
    for rank in (1, 0):
        strategy = SimpleNamespace(barrier=waited.append)
        trainer: Any = SimpleNamespace(is_global_zero=rank == 0, strategy=strategy)
        RunFirst("first.yaml", "out").setup(trainer, None, "fit")  # type: ignore[arg-type]
        assert len(stage.calls()) == 1 - rank
    assert len(waited) == 2


def test_configs_are_found_beside_the_package_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/demo/text-sft.yaml") == ROOT / "configs/demo/text-sft.yaml"
    with pytest.raises(ValueError, match=r"nothing\.yaml.*neither"):
        find_config("nothing.yaml")


@pytest.mark.parametrize(
    ("platform", "cuda", "group", "method"),
    [
        ("linux", False, False, "fork"),
        ("linux", True, False, "spawn"),
        ("linux", False, True, "spawn"),
        ("darwin", False, False, "spawn"),
    ],
)
def test_a_process_that_cannot_be_forked_safely_is_spawned(
    platform: str, cuda: bool, group: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: cuda)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: group)
    assert start_method() == method
