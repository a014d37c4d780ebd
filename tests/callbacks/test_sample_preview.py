"""Previews: the same draws every time, training untouched, texts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt.callbacks import SamplePreview
from pl_prefopt.generation import generate
from pl_prefopt.modules import TextPreferenceModule
from tests.callbacks.test_adapter_export import data
from tests.callbacks.test_reference_sync import Foreign, loader, trainer
from tests.tiny import tiny_lm

PROMPTS = ["ash bay", "elm fog gum"]


def fitted(folder: Path, *callbacks: Any) -> TextPreferenceModule:
    module = TextPreferenceModule(
        tiny_lm(lora=True, dropout=True), optimizer=lambda p: torch.optim.SGD(p, lr=0.5), seed=3
    )
    trainer(folder, *callbacks, max_epochs=1).fit(module, datamodule=data(folder))
    return module


def test_texts_before_during_and_after_without_touching_training(tmp_path: Path) -> None:
    preview = SamplePreview(PROMPTS, every_n_steps=1, path=str(tmp_path / "out"))
    torch.manual_seed(5)
    with_preview = fitted(tmp_path, preview)
    torch.manual_seed(5)
    without = fitted(tmp_path)
    for a, b in zip(with_preview.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
    assert list(preview.shown) == [0, 1, 2]
    again = SamplePreview(PROMPTS, path=str(tmp_path / "again"))
    fitted(tmp_path, again)
    assert again.shown[0] == preview.shown[0]
    table = (tmp_path / "out/samples.md").read_text().splitlines()
    assert table[0] == "| condition | step 0 | step 1 | step 2 |"
    assert len(table) == 4


def test_pictures_of_a_foreign_module(tmp_path: Path) -> None:
    class Painter(Foreign):
        def preview(self, conditions: Sequence[str], seed: int) -> torch.Tensor:
            return self.policy.weight.mean().detach().expand(len(conditions), 3, 4, 4)

    preview = SamplePreview(["a", "b"], path=str(tmp_path / "out"))
    trainer(tmp_path, preview, max_steps=3).fit(Painter(), loader())
    assert list(preview.shown) == [0, 3]
    assert (tmp_path / "out/samples.png").stat().st_size > 1000


def test_generation_is_keyed_and_bounded() -> None:
    network = tiny_lm()()
    prompts = [[3, 4], [5], [6, 7, 8]]
    before = torch.get_rng_state()
    first = generate(network, prompts, count=2, max_new_tokens=5, seed=1, eos=2, batch_size=2)
    assert torch.equal(before, torch.get_rng_state())
    assert first == generate(network, prompts, count=2, max_new_tokens=5, seed=1, eos=2, batch_size=2)
    assert first != generate(network, prompts, count=2, max_new_tokens=5, seed=2, eos=2, batch_size=2)
    assert first[2:] == generate(network, prompts, count=2, max_new_tokens=5, seed=1, eos=2, batch_size=2)[2:]
    assert all(1 <= len(row) <= 5 and 2 not in row[:-1] for rows in first for row in rows)
    assert network.training


def test_greedy_decoding_does_not_depend_on_the_padding() -> None:
    network = tiny_lm()()
    together = generate(network, [[3, 4, 5, 6], [7]], temperature=0.0, max_new_tokens=6)
    assert together[1] == generate(network, [[7]], temperature=0.0, max_new_tokens=6)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"count": 0}, "count"), ({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p")],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tiny_lm()(), [[3]], **options)
    with pytest.raises(ValueError, match=r"prompts \[1\] hold no token"):
        generate(tiny_lm()(), [[3], []])


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        SamplePreview([])
    with pytest.raises(ValueError, match="every_n_steps"):
        SamplePreview(["a"], every_n_steps=0)
    with pytest.raises(TypeError, match="preview"):
        trainer(tmp_path, SamplePreview(["a"]), max_steps=1).fit(Foreign(), loader())
