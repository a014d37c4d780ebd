"""What both callbacks of rounds share: registration, references, folders, and states of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_prefopt.callbacks import PreferenceRounds, ReferenceSync, SelfPlayRounds
from pl_prefopt.callbacks.support.round_cycle import RoundCycle
from pl_prefopt.judges import LengthJudge
from pl_prefopt.utilities.digests import file_digest
from tests.callbacks import test_preference_rounds as judged
from tests.callbacks import test_self_play_rounds as played
from tests.callbacks.test_reference_sync import trainer


def cases(folder: Path, **options: Any) -> dict[str, tuple[RoundCycle[Any], Any, Any]]:
    """Both callbacks, each with a foreign module and a datamodule that it works with."""
    return {
        "judged": (PreferenceRounds(judged.Near(), **options), judged.Bandit(), judged.Points()),
        "played": (
            SelfPlayRounds(played.Mean(), samples=8, **options),
            played.Painter(),
            played.data(folder / "data"),
        ),
    }


NAMES = ["judged", "played"]


@pytest.mark.parametrize("name", NAMES)
def test_the_datamodule_is_asked_during_the_fit_only(name: str, tmp_path: Path) -> None:
    callback, module, data = cases(tmp_path)[name]
    calls: list[Any] = []
    provide = data.provide_train
    data.provide_train = lambda files: (calls.append(files), provide(files))
    run = trainer(tmp_path, callback, max_epochs=1, limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert [files is None for files in calls] == [False, True]
    assert callback.round == 0
    assert run.reload_dataloaders_every_n_epochs == 1  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="during a fit only"):
        _ = callback.trainer


@pytest.mark.parametrize("name", NAMES)
def test_a_cached_reference_is_refused(name: str, tmp_path: Path) -> None:
    callback, module, data = cases(tmp_path)[name]
    module.reference.cached = True
    with pytest.raises(ValueError, match="new rows, for which no reference values are cached"):
        trainer(tmp_path, callback, max_epochs=1).fit(module, datamodule=data)


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_that_cannot_move_is_refused(name: str, tmp_path: Path) -> None:
    class Still(torch.nn.Linear):
        def pairs(self, policy: torch.nn.Module) -> Any:
            raise ValueError("this reference cannot move")

    callback, module, data = cases(tmp_path)[name]
    module.reference = Still(1, 1)
    with pytest.raises(ValueError, match="cannot move"):
        trainer(tmp_path, callback, max_epochs=1).fit(module, datamodule=data)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    callback, module, data = cases(tmp_path)[name]
    del module.reference
    with pytest.raises(TypeError, match=rf"{type(callback).__name__} requires \w+\.reference, .* is not defined"):
        trainer(tmp_path, callback, max_epochs=1).fit(module, datamodule=data)
    callback, module, data = cases(tmp_path)[name]
    with pytest.raises(ValueError, match=rf"datamodule must be given to {type(callback).__name__}, got loaders only"):
        trainer(tmp_path, callback, max_epochs=1).fit(module, torch.utils.data.DataLoader([0]))  # type: ignore


@pytest.mark.parametrize("name", NAMES)
def test_a_training_file_that_has_changed_is_refused(name: str, tmp_path: Path) -> None:
    callback, module, data = cases(tmp_path)[name]
    trainer(tmp_path / "run", callback, max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
    state = callback.state_dict()
    file = tmp_path / "run/rounds/round-000/pairs.jsonl"
    assert state["root"] == str(tmp_path / "run/rounds")
    assert state["digest"] == file_digest(file)
    again, *_ = cases(tmp_path)[name]
    again.load_state_dict(state)
    assert again.round == 0
    with file.open("a") as out:
        out.write("\n")
    with pytest.raises(ValueError, match=r"pairs\.jsonl has changed, but the checkpoint lies in round 0"):
        again.load_state_dict(state)
    file.unlink()
    with pytest.raises(ValueError, match=r"pairs\.jsonl is missing"):
        again.load_state_dict(state)


def test_states_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Self-play saved neither folder nor digest; judged rounds had the present keys."""
    history = [{"step": 0, "round": -1, "fid": 0.5}]
    best = {**history[0], "weights": {"weight": torch.ones(1)}}
    play = SelfPlayRounds(played.Mean())
    play.load_state_dict({"round": 0, "history": history, "best": best})
    assert (play.round, play.history, play.best) == (0, history, best)
    play.load_state_dict({"round": -1, "history": [], "best": {}})
    assert play.best is None
    rounds = PreferenceRounds(LengthJudge(3))
    rounds.load_state_dict({"round": -1, "root": str(tmp_path), "digest": None})
    assert rounds.state_dict() == {"round": -1, "root": str(tmp_path), "digest": None}
    assert rounds.state_key == "PreferenceRounds"
    assert play.state_key == "SelfPlayRounds"


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_of_the_round_is_in_the_checkpoint_under_the_key_of_earlier_versions(
    name: str, tmp_path: Path
) -> None:
    callback, module, _ = cases(tmp_path)[name]
    checkpoint: dict[str, Any] = {}
    callback.on_save_checkpoint(pl.Trainer(logger=False), module, checkpoint)
    assert list(checkpoint) == [ReferenceSync(every_n_steps=1, alpha=1.0).state_key]
    saved = module.reference.weight.detach().clone()
    torch.nn.init.zeros_(module.reference.weight)
    callback.on_load_checkpoint(pl.Trainer(logger=False), module, checkpoint)
    assert torch.equal(module.reference.weight, saved)
    with pytest.raises(ValueError, match="no moving reference"):
        callback.on_load_checkpoint(pl.Trainer(logger=False), module, {})
