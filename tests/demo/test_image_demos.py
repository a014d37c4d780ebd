"""The image demos from end to end with less of everything: three stages, report, picture; reports on their own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.__main__ import main
from pl_prefopt.demo.image.base import write_pipeline
from pl_prefopt.demo.image.report import ShapesReport, measure
from pl_prefopt.demo.image.world import ShapesWorld
from pl_prefopt.demo.stages import ROOT, STAMP
from pl_prefopt.diffusion.tiny import tiny_component

SMALL = (
    "--data.rows=16",
    "--data.eval_rows=4",
    "--data.batch_size=8",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
)
KINDS = {"image-sft": "shapes", "image-sdxl-sft": "shapes-xl", "image-flow-sft": "shapes-flow"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(ShapesReport.__init__, "__defaults__", (None, 1, 0, 2, 1.0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the second stages seem to have run: untrained pipelines, with their stamps."""
    made = tmp_path_factory.mktemp("demo")
    for stage, kind in KINDS.items():
        place = made / f"runs/demo/{stage}/export"
        write_pipeline(kind, tiny_component(kind, "vae", 0), 1.0, place, 0)
        text = (ROOT / f"configs/demo/{stage}.yaml").read_bytes()
        (place / STAMP).write_text(hashlib.sha256(text).hexdigest())
    return made


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(folder / "cache"))


@pytest.mark.parametrize("name", ["image-dpo", "image-sdxl-dpo", "image-flow-dpo"])
def test_a_demo_ends_with_its_report(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, *SMALL])
    said = capsys.readouterr().out
    run = Path("runs/demo") / name / "lightning_logs/version_0"
    assert "pictures with both right" in said
    assert f"pictures and numbers: {run}" in said
    first, last = json.loads((run / "report.json").read_text())
    assert (first["step"], last["step"]) == (0, 2)
    assert first["win_rate"] == first["accuracy"] == 0.5
    assert 0 <= last["accuracy"] <= 1
    assert (run / "before_after.png").read_bytes()[:4] == b"\x89PNG"
    assert (run / "export/pytorch_lora_weights.safetensors").is_file()
    assert _tags(run) >= {"demo/both", "demo/win_rate", "demo/before_after"}


def test_both_first_stages_run_before_the_caches_are_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage's datamodule needs the VAE that the first one trains: it is run in `prepare_data`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/demo").mkdir(parents=True)
    config = yaml.safe_load((ROOT / "configs/demo/image-base.yaml").read_text())
    config["trainer"] |= {"max_steps": 2, "enable_progress_bar": False, "callbacks": []}
    config["data"]["init_args"] |= {"count": 16, "batch_size": 8}
    config["model"]["init_args"]["kinds"] = ["shapes"]
    (tmp_path / "configs/demo/image-base.yaml").write_text(yaml.safe_dump(config))
    cli(["fit", "--config", str(ROOT / "configs/demo/image-sft.yaml"), *SMALL])
    first = tmp_path / "runs/demo/image-base/export/shapes"
    second = tmp_path / "runs/demo/image-sft/export"
    before, after = (load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (first, second))
    assert any(not torch.equal(before[k], after[k]) for k in before), "the second stage trains the denoiser"
    before, after = (load_file(f / "vae/diffusion_pytorch_model.safetensors") for f in (first, second))
    assert all(torch.equal(before[k], after[k]) for k in before)
    untrained: Any = tiny_component("shapes", "vae", 0)
    start = untrained.state_dict()
    assert any(not torch.equal(before[k], start[k]) for k in before), "the first stage trains the VAE"


def test_another_objective_and_the_adapter_reads_back() -> None:
    """`--model.objective IPO`, and the exported adapter gives diffusers the trained network's outputs."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    ended = cli(["fit", "--config", str(ROOT / "configs/demo/image-dpo.yaml"), "--model.objective=IPO", *SMALL])
    assert type(ended.model.objective).__name__ == "IPO"
    pipe = StableDiffusionPipeline.from_pretrained("runs/demo/image-sft/export")
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
