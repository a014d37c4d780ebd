"""The image demos from end to end with less of everything, from the shipped base to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.__main__ import main
from pl_prefopt.demo.image.report import ShapesReport, measure
from pl_prefopt.demo.image.world import ShapesWorld
from pl_prefopt.demo.listing import config_path
from pl_prefopt.utilities.files import resolve_package

SMALL = (
    "--data.rows=16",
    "--data.eval_rows=4",
    "--data.batch_size=8",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(ShapesReport.__init__, "__defaults__", (None, 1, 0, 2, 1.0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that the demos share, with their cache."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(folder / "cache"))


@pytest.mark.parametrize("name", ["image-dpo", "image-sdxl-dpo", "image-flow-dpo"])
def test_a_demo_ends_with_its_report(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, *SMALL])
    output = capsys.readouterr().out
    run = Path("runs/demo") / name / "lightning_logs/version_0"
    assert "images with both right" in output
    assert f"images and numbers: {run}" in output
    first, last = json.loads((run / "report.json").read_text())
    assert (first["step"], last["step"]) == (0, 2)
    assert first["win_rate"] == first["accuracy"] == 0.5
    assert 0 <= last["accuracy"] <= 1
    assert (run / "before_after.png").read_bytes()[:4] == b"\x89PNG"
    assert (run / "export/pytorch_lora_weights.safetensors").is_file()
    assert _tags(run) >= {"demo/both", "demo/win_rate", "demo/before_after"}


def test_another_objective_and_the_adapter_reads_back() -> None:
    """`--model.objective IPO`, and the exported adapter gives diffusers the trained network's outputs."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    ended = cli(["fit", "--config", str(config_path("image-dpo")), "--model.objective=IPO", *SMALL])
    assert type(ended.model.objective).__name__ == "IPO"
    pipe = StableDiffusionPipeline.from_pretrained(
        resolve_package("package://pl_prefopt/demo/bases/image"), torch_dtype=torch.float32
    )
    given = (torch.randn(1, 4, 4, 4), torch.tensor([300]), torch.randn(1, 8, 32))
    with torch.no_grad():
        before = pipe.unet(*given).sample
        pipe.load_lora_weights(str(Path(ended.trainer.log_dir or "") / "export"))
        after = pipe.unet.eval()(*given).sample
        expected = ended.model.policy.eval()(*given).sample
    assert torch.allclose(after, expected, atol=1e-6)
    assert not torch.allclose(before, after, atol=1e-4)


def test_measured_by_hand() -> None:
    world = ShapesWorld()
    right = torch.stack([world.render(*_names(c), 0.5, 0.5, 0.3) for c in world.captions])[:, None]
    wrong = torch.stack([world.render(_other(_names(c)[0]), _names(c)[1], 0.5, 0.5, 0.3) for c in world.captions])[
        :, None
    ]
    found = measure(world, wrong, right)
    assert (found["colour"], found["shape"], found["both"], found["win_rate"]) == (0, 1, 0, 0)
    half = torch.cat([right[:6], wrong[6:]])
    found = measure(world, half, wrong)
    assert (found["colour"], found["shape"], found["both"]) == (0.5, 1, 0.5)
    assert found["win_rate"] == pytest.approx(0.5 + 0.5 * 0.5)


def test_a_datamodule_without_a_world_is_refused(tmp_path: Path) -> None:
    class Trainer:
        datamodule = None

    with pytest.raises(ValueError, match=r"use data: pl_prefopt\.demo\.image\.data\.ShapesDataModule"):
        ShapesReport().setup(Trainer(), None, "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count and every_n_steps must be >= 1, got 0"):
        ShapesReport(count=0)


def _names(caption: str) -> tuple[str, str]:
    _, colour, shape = caption.split()
    return colour, shape


def _other(colour: str) -> str:
    return "blue" if colour != "blue" else "red"


def _tags(run: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, Any] = EventAccumulator(str(run)).Reload().Tags()
    return {*found["scalars"], *found["images"]}
