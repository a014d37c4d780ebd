"""Every callback on a foreign denoiser and on text: alone in a process, interrupted and resumed, on two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.callbacks import everywhere
from tests.runs import ROOT

KINDS = list(everywhere.KINDS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of every kind, and the same on two processes."""
    folder = tmp_path_factory.mktemp("everywhere")
    two = start_two(folder / "two")
    try:
        for kind in KINDS:
            everywhere.run(kind, folder / "one" / kind)
        for process in two:
            out, _ = process.communicate(timeout=280)
            assert process.returncode == 0, out[-4000:]
    finally:
        for process in two:
            process.kill()
    return folder


def start_two(folder: Path) -> list[subprocess.Popen[str]]:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    command = [sys.executable, "-m", "tests.callbacks.everywhere", str(folder), *KINDS, "text@fsdp2"]
    env = os.environ | shared | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            command, env=env | {"LOCAL_RANK": str(rank)}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip


def alike(a: Any, b: Any, atol: float, path: str = "") -> None:
    """Compare nested plain values and tensors."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key, value in a.items():
            alike(value, b[key], atol, f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            alike(x, y, atol, f"{path}[{i}]")
    elif isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda m: f"{path}: {m}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=atol), path
    else:
        assert a == b, path


@pytest.mark.parametrize("kind", [*KINDS, "text@fsdp2"])
def test_two_processes_end_where_one_does(kind: str, whole: Path) -> None:
    folders = whole / "one" / kind.partition("@")[0], whole / "two" / kind
    one, two = map(everywhere.result, folders)
    assert len(one["callbacks"]) >= 4
    alike(one, two, atol=3e-4)
    names, again = (sorted(str(p.relative_to(folder)) for p in files(folder)) for folder in folders)
    assert names == again
    for name in (n for n in names if n.endswith(".safetensors")):
        alike(*(load_file(folder / name) for folder in folders), atol=3e-4)


def files(folder: Path) -> list[Path]:
    """What the callbacks wrote."""
    other = {"checkpoints", "cache", "resumed"}
    found = [p for p in folder.rglob("*") if p.is_file() and not other & set(p.parts)]
    return [p for p in found if not p.name.startswith("predictions") and "-0" not in p.name]


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_is_uninterrupted(kind: str, whole: Path, tmp_path: Path) -> None:
    """The run dies after step 5; the last checkpoint is that of step 4."""
    with pytest.raises(KeyError, match="crash"):
        everywhere.run(kind, tmp_path, crash_at=5)
    for file in tmp_path.glob("ches/*.parquet"):
        file.unlink()  # the moved policy must not score again
    everywhere.run(kind, tmp_path, resume=tmp_path / "checkpoints/step=4.ckpt")
    alike(everywhere.result(whole / "one" / kind), everywhere.result(tmp_path), atol=0.0)


def test_a_sharded_run_goes_on_from_its_middle(whole: Path) -> None:
    folder = whole / "two/text@fsdp2"
    uninterrupted, resumed = everywhere.result(folder), everywhere.result(folder / "resumed")
    # the resumed run writes into a folder of its own, which holds its own exports only
    exports = [result["callbacks"].pop("AdapterExport")["steps"] for result in (uninterrupted, resumed)]
    assert exports == [[2, 4, 6], [6]]
    alike(uninterrupted, resumed, atol=0.0)


@pytest.mark.parametrize("kind", ["denoiser", "text"])
def test_what_the_callbacks_for_whole_weights_left(kind: str, whole: Path) -> None:
    folder = whole / "one" / kind
    found = everywhere.result(folder)
    states, tensors = found["callbacks"], found["tensors"]
    assert len(states["CHESFilter"]["kept"]) == 12
    scores = pq.read_table(folder / "ches/scores.parquet").to_pydict()
    lowest = np.argsort(scores["ches"], kind="stable")[:12]
    assert sorted(lowest.tolist()) == states["CHESFilter"]["kept"] == np.flatnonzero(scores["kept"]).tolist()
    assert (folder / "ches/pairs.png").exists() == (kind == "denoiser")
    assert [h["step"] for h in states["LikelihoodDisplacementMonitor"]["history"]] == [3, 6]
    assert len(states["LikelihoodDisplacementMonitor"]["start"]) == (8 if kind == "denoiser" else 7)
    assert list(states["SamplePreview"]["shown"]) == [0, 2, 4, 6]
    assert sorted(p.name for p in (folder / "export").glob("step-*")) == ["step-2", "step-4", "step-6"]
    moved = {k.removeprefix("reference."): v for k, v in tensors.items() if k.startswith("reference.")}
    assert moved
    assert len(found["predictions"]) == (8 if kind == "denoiser" else 9)


@pytest.mark.parametrize("kind", ["denoiser-lora", "text-lora"])
def test_what_the_callbacks_for_adapters_left(kind: str, whole: Path) -> None:
    folder = whole / "one" / kind
    found = everywhere.result(folder)
    mixture = found["callbacks"]["GroupInfluenceMixture"]["history"]
    assert [h["step"] for h in mixture] == [3, 6]
    assert json.loads((folder / "mixture.json").read_text()) == mixture
    assert found["callbacks"]["FastSlowLoRA"]["step"] == 6
    if kind == "denoiser-lora":
        assert all(h["weights"]["a"] > 0.6 for h in mixture), "b prefers what validation does not"
    assert any(".slow." in k for k in found["tensors"])


def test_the_frozen_parts_of_a_foreign_module_stay_in_eval_mode(tmp_path: Path) -> None:
    trainer = everywhere.run("denoiser", tmp_path)
    assert trainer.lightning_module.modes == {False}


@pytest.mark.parametrize("kind", ["denoiser", "text"])
def test_looking_does_not_change_training(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitor, preview and export on or off: the same weights and the same random state at the end."""
    module, data, callbacks, lora = everywhere.KINDS[kind]
    ends = []
    for first in (2, 5):  # all that only look, or none
        monkeypatch.setitem(everywhere.KINDS, kind, (module, data, lambda f, first=first: callbacks(f)[first:], lora))
        trainer = everywhere.run(kind, tmp_path / str(first))
        ends.append((everywhere.outcome(trainer)["tensors"], torch.get_rng_state()))
    alike(*ends, atol=0.0)
