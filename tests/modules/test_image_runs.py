"""Whole runs of the image module: resumed, spread over processes, and with every callback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pl_prefopt.callbacks import AdapterExport, CHESFilter, FastSlowLoRA, ReferenceSync, SamplePreview
from tests.image_runs import image_run, metrics, spread, weights
from tests.pictures import tiny_diffusion

KEPT = ("val/loss", "val/accuracy", "val/margin", "val/chosen_error", "val/rejected_ref_error", "val/gradient_factor")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, two epochs of three steps."""
    folder = tmp_path_factory.mktemp("plain")
    image_run(folder)
    return folder


def test_learns_and_reports(plain: Path) -> None:
    found = metrics(plain)
    assert set(KEPT) <= found.keys()
    assert all(v == v for v in found.values())
    assert 0 < found["val/gradient_factor"] < 1
    assert abs(found["val/chosen_logratio"]) > 1e-4


def test_resumed_in_the_middle_of_an_epoch_equals_uninterrupted(plain: Path, tmp_path: Path) -> None:
    image_run(tmp_path, resume=str(plain / "checkpoints" / "epoch=1-step=4.ckpt"))
    expected, found = weights(plain), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(v, found[k]) for k, v in expected.items())
    assert metrics(plain) == metrics(tmp_path)


def test_two_processes_equal_one(plain: Path, tmp_path: Path) -> None:
    spread(tmp_path, devices=2, batch_size=2)
    expected, found = weights(plain), weights(tmp_path)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-5)
    for key in KEPT:
        assert metrics(tmp_path)[key] == pytest.approx(metrics(plain)[key], rel=1e-3, abs=1e-5), key


def test_two_processes_play_against_themselves_as_one_does(tmp_path: Path) -> None:
    """Samples are shared out and equal those of one process; both see one FID and keep one set of weights."""
    one, two = tmp_path / "one", tmp_path / "two"
    image_run(one, self_play=True, moving=True)
    spread(two, self_play=True, moving=True, devices=2, batch_size=2)
    drawn = [sorted((f / "rounds/round-000/samples").rglob("*.png")) for f in (one, two)]
    assert [p.relative_to(one) for p in drawn[0]] == [p.relative_to(two) for p in drawn[1]]
    assert len(drawn[0]) == 12
    for a, b in zip(*drawn, strict=True):
        assert np.abs(np.asarray(Image.open(a), int) - np.asarray(Image.open(b), int)).max() <= 1
    lines = [(f / "rounds/round-000/pairs.jsonl").read_text() for f in (one, two)]
    assert lines[0] == lines[1]
    history = [json.loads((two / f"history-{rank}.json").read_text()) for rank in (0, 1)]
    assert history[0] == history[1]
    steps = [h["step"] for h in history[0]]
    assert steps[:4] == [0, 1, 2, 3]
    assert json.loads((two / "rounds/fid.json").read_text()) == history[0]


def test_moving_reference_previews_and_exports(tmp_path: Path) -> None:
    export = tmp_path / "export"
    watch = [ReferenceSync(2, 0.5), SamplePreview(["caption 1"], every_n_steps=2), AdapterExport(str(export), False)]
    trainer = image_run(tmp_path, watch, moving=True, max_steps=4, name="sd3")
    module: Any = trainer.lightning_module
    assert (tmp_path / "samples.png").stat().st_size > 500
    pairs = list(module.reference.pairs(module.policy))
    assert any((a != b).any() for a, b in pairs)
    assert any(a.abs().sum() > 0 for a, _ in pairs)
    pipe = tiny_diffusion("sd3").pipeline(tiny_diffusion("sd3", lora=False)())
    pipe.load_lora_weights(str(export))
    own = {k for k, _ in module.policy.named_parameters() if "lora_" in k and ".default." in k}
    loaded = {k for k, _ in pipe.transformer.named_parameters() if "lora_" in k}
    assert len(own) == len(loaded) > 0


def test_filter_and_two_adapters(tmp_path: Path) -> None:
    trainer = image_run(tmp_path, [CHESFilter(rank=8, path=str(tmp_path / "ches")), FastSlowLoRA(100.0)])
    assert trainer.global_step == 4
    assert len(trainer.datamodule.datasets["train"]) == 8  # type: ignore[attr-defined]
    saved = weights(tmp_path)
    assert any(".slow." in k for k in saved)
    fast = [v for k, v in saved.items() if ".default." in k]
    assert not all(
        torch.equal(a, saved[k.replace(".default.", ".slow.")])
        for a, k in zip(fast, [k for k in saved if ".default." in k], strict=True)
    )
