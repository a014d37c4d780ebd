"""The shipped bases are what the present code makes: its settings, its data, and what they can do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pl_prefopt.demo.bases import FOLDER, MAX_BYTES, RECORD, maker, names, read_record
from pl_prefopt.demo.image import base as image_base

IMAGE = ("image", "image-sdxl", "image-flow")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def layout(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """File and tensor -> dtype and shape."""
    tensors = {}
    for path in files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as content:
                for key in content.keys():  # noqa: SIM118, the file is no mapping
                    part = content.get_slice(key)
                    tensors[f"{path.relative_to(folder)} {key}"] = (part.get_dtype(), tuple(part.get_shape()))
    return tensors


def test_every_base_is_shipped() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(names())


@pytest.mark.parametrize("name", names())
def test_a_base_is_small_and_says_nothing_about_a_machine(name: str) -> None:
    sizes = [path.stat().st_size for path in files(FOLDER / name)]
    assert sum(sizes) <= MAX_BYTES
    assert {path.suffix for path in files(FOLDER / name)} <= {".json", ".safetensors"}
    for path in files(FOLDER / name):
        if path.suffix == ".json" and path.name != RECORD:
            assert not {"_name_or_path", "name_or_path"} & json.loads(path.read_text()).keys()
            assert "/tmp" not in path.read_text()


@pytest.mark.parametrize("name", names())
def test_a_base_was_made_from_the_present_settings_and_data(name: str) -> None:
    record, made_by = read_record(name), maker(name)
    assert record.settings == made_by.settings_digest(name), f"make it again: {record.command}"
    assert record.data == made_by.data_digest(name), f"make it again: {record.command}"
    assert record.command == f"python -m pl_prefopt.demo make-base {name}"


@pytest.mark.parametrize("name", names())
def test_a_base_can_do_what_its_record_says(name: str) -> None:
    torch.set_num_threads(1)
    measured = maker(name).measure_base(FOLDER / name)
    assert measured == pytest.approx(read_record(name).measured, abs=0.02)


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_base_draws_clear_shapes_and_follows_less_than_half_of_the_captions(name: str) -> None:
    measured = read_record(name).measured
    assert measured["clear"] >= 0.95
    assert 0.25 <= measured["both"] <= 0.5


def test_all_image_bases_have_one_vae() -> None:
    weights = {name: (FOLDER / name / "vae/diffusion_pytorch_model.safetensors").read_bytes() for name in IMAGE}
    assert len(set(weights.values())) == 1


@pytest.mark.parametrize("name", ["image", "image-flow"])
def test_making_a_base_again_gives_the_same_networks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command with two steps of everything: the same files, tensors, dtypes and shapes."""
    short = {k: tuple(replace(p, steps=2, rows=12, batch_size=4) for p in v) for k, v in image_base.PHASES.items()}
    monkeypatch.setattr(image_base, "PHASES", short)
    monkeypatch.setattr(image_base, "VAE", replace(image_base.VAE, steps=2, images=64))
    monkeypatch.setattr(image_base, "SAMPLES", 1)
    image_base.make_base(name, tmp_path / name)
    remade, shipped = tmp_path / name, FOLDER / name
    assert layout(remade) == layout(shipped)
    assert [path.relative_to(remade) for path in files(remade)] == [
        path.relative_to(shipped) for path in files(shipped)
    ]
