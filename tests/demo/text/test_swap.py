"""One demo config, another `objective:`, another method: for every objective that works on pairs."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt import objectives
from pl_prefopt.cli import main
from pl_prefopt.demo.listing import config_path
from pl_prefopt.demo.text.data import sentiment_tokenizer
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import Objective
from tests.tiny import tiny_lm

CONFIG = config_path("text-modpo")
SMALL = (
    "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1",
    "--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.callbacks=[]",
    "--trainer.enable_progress_bar=false",
    "--data.world=pl_prefopt.demo.text.world.SentimentWorld", "--data.world.max_words=2",
    "--data.rows=64", "--data.eval_rows=8", "--data.batch_size=32",
)  # fmt: skip
WRITTEN: dict[str, Any] = {"weights": [0.5, 0.5], "beta": 0.5}
NESTED = {"Mixture": {"objectives": ["DPO", "SFT"]}, "WPO": {"objective": "IPO"}}


def on_pairs() -> list[type[Objective]]:
    """Every exported objective that asks for nothing that only lists, or other modalities, have."""
    exported = (getattr(objectives, name) for name in objectives.__all__)
    classes = [c for c in exported if isinstance(c, type) and issubclass(c, Objective) and c is not Objective]
    return [c for c in classes if needs(c) <= TextPreferenceModule.provides - {"relevance"}]


def needs(cls: type[Objective]) -> frozenset[str]:
    """What the class asks for; nothing where it is made of others and has to be built to know."""
    return cls.needs if cls.__name__ not in NESTED else frozenset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory where the result of the first stage is there already."""
    made = tmp_path_factory.mktemp("swap")
    export = made / "runs/demo/text-sft/export"
    network: Any = tiny_lm()()
    network.save_pretrained(export)
    sentiment_tokenizer().save_pretrained(export)
    return made


def test_the_list_holds_the_family() -> None:
    names = {c.__name__ for c in on_pairs()}
    assert names >= {"DPO", "IPO", "TDPO", "LDDPO", "FDPO", "MODPO", "ADPO", "SimPO", "ORPO", "SFT", "WPO", "Mixture"}
    assert not names & {"IRPO", "PlackettLuce"}
    assert len(names) >= 25


@pytest.mark.parametrize("cls", on_pairs(), ids=lambda c: c.__name__)
def test_only_the_objective_changes(cls: type[Objective], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(folder / "cache"))
    nested = NESTED.get(cls.__name__)
    entry = cls.__name__ if nested is None else json.dumps({"class_path": cls.__name__, "init_args": nested})
    done = main(["fit", "--config", str(CONFIG), f"--model.objective={entry}", *SMALL])
    assert type(done.model.objective) is cls
    assert done.model.hparams["objective"]["class_path"].endswith(f".{cls.__name__}")
    if nested is None:  # what the file says travels where it fits, defaults of the other class do not
        kept = {k: v for k, v in WRITTEN.items() if k in inspect.signature(cls).parameters}
        assert done.model.objective == cls(**kept)
    assert done.trainer.global_step == 2
    metrics = {k: float(v) for k, v in done.trainer.callback_metrics.items()}
    assert all(math.isfinite(v) for v in metrics.values())
    assert {"train/loss", "val/loss", "val/accuracy"} <= metrics.keys()
    start = tiny_lm()().state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in done.model.policy.state_dict().items())
