"""Real photographs from raw files to pairs, to a fitted adapter, to a diffusers pipeline that loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.image.photos import main
from pl_prefopt.policies import Diffusion

ROOT = Path(__file__).parents[3]


def pairs(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "pairs.jsonl").open()]


def test_from_photographs_to_a_loaded_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(tmp_path / "cache"))
    main(["photos"])
    rows = pairs(Path("photos"))
    better = [r["image_0"] if r["label_0"] == 1 else r["image_1"] for r in rows]
    blurred = [b for b, r in zip(better, rows, strict=True) if "blurred" in f"{r['image_0']}{r['image_1']}"]
    assert len(blurred) == 6
    assert all(str(b).endswith(".png") for b in blurred), "the photograph is sharper than its blurred copy"
    ended = cli(["fit", "--config", str(ROOT / "configs/examples/image-photos.yaml"), "--trainer.max_epochs=2"])
    pipe = Diffusion(tiny="sd").pipeline(Diffusion(tiny="sd")())
    given = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 8))
    with torch.no_grad():
        before = pipe.unet(*given).sample
        pipe.load_lora_weights("runs/image-photos/export")
        after, expected = pipe.unet.eval()(*given).sample, ended.model.policy(*given).sample
    assert torch.allclose(after, expected, atol=1e-6)
    assert not torch.allclose(before, after, atol=1e-5)


def test_the_other_judge_prefers_colour(tmp_path: Path) -> None:
    main([str(tmp_path), "--judge", "colourfulness"])
    for row in pairs(tmp_path):
        if "pale" in f"{row['image_0']}{row['image_1']}":
            assert ".png" in str(row["image_0"] if row["label_0"] == 1 else row["image_1"])
