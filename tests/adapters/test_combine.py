"""Combinations are linear in the adapter parameters, and load where the adapters do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from pl_prefopt.adapters import adapter_parameters, combine_adapters
from tests.tiny import nudge, tiny_lm


def saved(folder: Path, seed: int, **lora: object) -> Path:
    network = tiny_lm(lora=True)()
    nudge(network, seed=seed)
    network.save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_combination_is_linear_and_loads_in_peft(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2)
    out = combine_adapters([a, b], [0.25, 0.75], tmp_path / "mix")
    loaded = [PeftModel.from_pretrained(tiny_lm()(), p) for p in (a, b, out)]
    first, second, mixed = (adapter_parameters(m, "default") for m in loaded)
    assert first
    for key, value in mixed.items():
        torch.testing.assert_close(value, 0.25 * first[key] + 0.75 * second[key], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0], "equally many"), ([1.0, float("nan")], "finite")],
)
def test_bad_weights_are_refused(tmp_path: Path, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine_adapters([tmp_path, tmp_path], weights, tmp_path / "mix")


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors or pytorch_lora"):
        combine_adapters([tmp_path], [1.0], tmp_path / "mix")


def test_adapters_of_other_layers_or_configurations_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    a, b, c = (saved(tmp_path / name, seed) for seed, name in enumerate("abc"))
    config = json.loads((b / "adapter_config.json").read_text())
    (b / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    with pytest.raises(ValueError, match=r"adapters must have one configuration, but they differ in lora_alpha: .*99"):
        combine_adapters([a, b], [0.5, 0.5], tmp_path / "mix")
    tensors = load_file(c / "adapter_model.safetensors")
    missing = sorted(tensors)[0]
    del tensors[missing]
    save_file(tensors, c / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"c must have the tensors of .*a, got other ones: {missing}"):
        combine_adapters([a, c], [0.5, 0.5], tmp_path / "mix")
    assert not (tmp_path / "mix").exists()
