"""Whole runs of the text module: killed and resumed, on two processes, with a cached reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import runs


@pytest.mark.parametrize("kind", ["full", "lora", "moving", "moving-lora", "dropout"])
def test_killed_and_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    """Kill -9 after step 5 of 6 in the first epoch; the last checkpoint is that of step 4, in mid-epoch."""
    runs.start(tmp_path / "whole", kind=kind)
    killed = runs.start(tmp_path / "cut", check=False, kind=kind, kill_at=5)
    assert killed.returncode == -9
    checkpoint = tmp_path / "cut/checkpoints/step=4.ckpt"
    assert checkpoint.exists()
    assert not (tmp_path / "cut/weights.pt").exists()
    runs.start(tmp_path / "cut", kind=kind, resume=str(checkpoint))
    whole, resumed = runs.weights(tmp_path / "whole"), runs.weights(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []
    assert runs.metrics(tmp_path / "whole") == runs.metrics(tmp_path / "cut")


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "full"), ("fsdp2", "full"), ("fsdp2", "lora")])
def test_two_processes_equal_one(strategy: str, kind: str, tmp_path: Path) -> None:
    """Two ranks of batch 2 against one process of batch 4: same rows a step, an odd evaluation set of 7 rows."""
    runs.start(tmp_path / "one", batch_size=4, kind=kind)
    runs.start(tmp_path / "two", batch_size=2, devices=2, strategy=strategy, kind=kind)
    one, two = runs.weights(tmp_path / "one"), runs.weights(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=0, atol=5e-5)
    a, b = runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two")
    assert a.keys() == b.keys()
    assert a["val/length_chosen"] == b["val/length_chosen"]
    for key, value in a.items():
        assert b[key] == pytest.approx(value, abs=2e-4), key


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    runs.start(tmp_path / "one", batch_size=4)
    runs.start(tmp_path / "many", batch_size=1, accumulate=4)
    one, many = runs.weights(tmp_path / "one"), runs.weights(tmp_path / "many")
    for key, value in one.items():
        torch.testing.assert_close(value, many[key], rtol=0, atol=5e-5)


def test_cached_reference_equals_online_also_over_two_processes(tmp_path: Path) -> None:
    runs.start(tmp_path / "online")
    cache = str(tmp_path / "reference")
    runs.start(tmp_path / "two", devices=2, batch_size=2, cache=cache)
    runs.start(tmp_path / "cached", cache=cache)
    online, cached = runs.weights(tmp_path / "online"), runs.weights(tmp_path / "cached")
    for key, value in online.items():
        torch.testing.assert_close(value, cached[key], rtol=0, atol=5e-5)
    assert runs.metrics(tmp_path / "cached")["val/loss"] == pytest.approx(
        runs.metrics(tmp_path / "online")["val/loss"], abs=1e-4
    )
