"""Previews: the same draws every time, training untouched, every form of samples."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pl_prefopt.callbacks import SamplePreview
from pl_prefopt.callbacks.support.preview_forms import table
from pl_prefopt.logprobs.generation import generate
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


G = torch.Generator().manual_seed(0)
FORMS: dict[str, Any] = {
    "texts": ["one|two", "three"],
    "ranked lists": [["first", "second"], ["only"]],
    "images": torch.rand(2, 3, 4, 5, generator=G),
    "grey images": torch.rand(2, 1, 4, 5, generator=G),
    "sounds": 0.5 * torch.sin(torch.arange(2000) * torch.tensor([[0.1], [0.3]])),
    "point clouds": torch.randn(2, 50, 3, generator=G),
}


class Shower(Foreign):
    """Shows the same thing every time, and draws from the global random state."""

    sample_rate = 8000

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made

    def preview(self, conditions: Sequence[str], seed: int) -> Any:
        assert not self.training
        torch.manual_seed(seed)
        return self.made


def _checked(key: str, things: Any = None, **given: Any) -> dict[str, Any]:
    """W&B wants one value of every option per image or sound."""
    options = {k: v for k, v in given.items() if k in ("caption", "sample_rate")}
    assert all(len(v) == len(things) for v in options.values()), options
    return given


class RecordingWandb(WandbLogger):
    """A logger of W&B's class that keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("log_text", "log_image", "log_audio"):
            return lambda *things, **given: self.calls.append((name, _checked(*things, **given)))
        if name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint"):
            return lambda *_, **__: None
        return (
            None
            if name in ("experiment", "log_dir", "save_dir", "name", "version")
            else object.__getattribute__(self, name)
        )


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_reaches_the_run_folder_and_the_loggers(form: str, tmp_path: Path) -> None:
    board, wandb = TensorBoardLogger(tmp_path, name="", version=""), RecordingWandb()
    preview = SamplePreview(["a", "b"], path=str(tmp_path / "out"))
    run = pl.Trainer(
        accelerator="cpu", logger=[board, wandb], callbacks=[preview], max_steps=2, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(Shower(FORMS[form]), loader())
    assert list(preview.shown) == [0, 2]
    written = {p.name for p in (tmp_path / "out").iterdir()}
    texts = form in ("texts", "ranked lists")
    wavs = {f"sample-{i}-step-{s}.wav" for i in (0, 1) for s in (0, 2)}
    assert written == ({"samples.md"} if texts else {"samples.png"} | (wavs if form == "sounds" else set()))
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert ("samples/text_summary" in tags["tensors"]) == texts
    assert any(t.startswith("samples") for t in tags["images"]) != texts
    assert tags["audio"] == (["samples/0", "samples/1"] if form == "sounds" else [])
    kind = "log_text" if texts else "log_audio" if form == "sounds" else "log_image"
    assert [(name, given["step"]) for name, given in wandb.calls] == [(kind, 0), (kind, 2)]
    if form == "sounds":
        assert wandb.calls[0][1]["sample_rate"] == [8000, 8000]


def test_sounds_are_written_as_they_are(tmp_path: Path) -> None:
    trainer(tmp_path, SamplePreview(["a", "b"], path=str(tmp_path)), max_steps=1).fit(Shower(FORMS["sounds"]), loader())
    with wave.open(str(tmp_path / "sample-1-step-0.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 2000)
        heard = np.frombuffer(file.readframes(2000), dtype="<i2") / 32767
    assert np.abs(heard - FORMS["sounds"][1].numpy()).max() < 1e-4


def test_a_table_shows_ranked_lists_in_order() -> None:
    lines = table(["q"], {0: [["best", "next"]], 5: ["plain|text"]}).splitlines()
    assert lines[2] == r"| q | 1. best<br>2. next | plain\|text |"


@pytest.mark.parametrize("made", [["only one"], torch.zeros(2, 4, 3, 3), torch.zeros(3, 3, 2, 2), "ab", [1, 2]])
def test_another_form_is_told_before_the_first_step(made: Any, tmp_path: Path) -> None:
    run = trainer(tmp_path, SamplePreview(["a", "b"]), max_steps=1)
    with pytest.raises(TypeError, match=r"one sample for each of 2 conditions as texts: list of str; .*, got"):
        run.fit(Shower(made), loader())
    assert run.global_step == 0


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
    with pytest.raises(TypeError, match=r"SamplePreview requires Foreign\.preview\(conditions, seed\)"):
        trainer(tmp_path, SamplePreview(["a"]), max_steps=1).fit(Foreign(), loader())
