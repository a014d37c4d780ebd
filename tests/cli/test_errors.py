"""Common mistakes on the command line: each ends in one to three lines that name what is wrong, without a traceback."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pl_prefopt.cli import console, main
from pl_prefopt.cli.errors import DEBUG, ConfigurationError, brief, cut
from tests.cli.console import Failing, failing
from tests.cli.test_main import config, put, write

__all__ = ["failing"]
MODEL, DATA, POLICY = "model.init_args", "data.init_args", "model.init_args.policy.init_args"

NO_BETA = {"class_path": "DPO", "init_args": {"beta": 0}}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration that works."""
    return config(tmp_path_factory.mktemp("errors"))


MISTAKES: list[tuple[str, Any, int, str]] = [
    # of the kind of a value
    (f"{MODEL}.optimizer.init_args.lr", "abc", 2, "model.optimizer.lr must be a number, got abc"),
    (f"{MODEL}.optimizer.init_args.lr", "0,001", 2, "model.optimizer.lr must be a number, got 0,001"),
    (f"{DATA}.batch_size", "4.5", 2, "data.batch_size must be an integer, got 4.5"),
    (f"{DATA}.batch_size", [4], 2, "data.batch_size must be an integer, got [4]"),
    (f"{DATA}.tokenizer.init_args.vocab_size", "many", 2, "data.tokenizer.vocab_size must be an integer, got many"),
    ("trainer.precision", "7", 2, "trainer.precision must be 64, 32, 16 or"),
    (f"{MODEL}.objective", 3, 2, "model.objective must be the name of a class (Objective), or class_path"),
    (POLICY, "x", 2, "model.policy.init_args must be a mapping of arguments"),
    # of its size
    (f"{MODEL}.optimizer.init_args.lr", 0, 2, "model.optimizer.lr must be a number > 0 and <= 1e6, got 0"),
    (f"{MODEL}.optimizer.init_args.lr", -0.1, 2, "model.optimizer.lr must be a number > 0"),
    (f"{MODEL}.optimizer.init_args.lr", 1e10, 2, "model.optimizer.lr must be a number > 0 and <= 1e6"),
    (f"{MODEL}.optimizer.init_args.weight_decay", -1.0, 2, "AdamW: Invalid weight_decay value: -1.0"),
    ("trainer.gradient_clip_val", -1, 2, "trainer.gradient_clip_val must be a number >= 0, or null, got -1"),
    ("trainer.accumulate_grad_batches", 0, 2, "trainer.accumulate_grad_batches must be an integer >= 1, got 0"),
    ("trainer.accumulate_grad_batches", -1, 2, "trainer.accumulate_grad_batches must be an integer >= 1, got -1"),
    ("trainer.val_check_interval", 0, 2, "trainer.val_check_interval must be a number > 0, got 0"),
    ("trainer.max_steps", -7, 2, "trainer: `max_steps` must be"),
    ("seed_everything", -1, 2, "seed_everything must be an integer from 0 to 4294967295, got -1"),
    (f"{DATA}.seed", -1, 2, "data.seed must be an integer >= 0, got -1"),
    (f"{DATA}.num_workers", -1, 2, "data.num_workers must be an integer >= 0, got -1"),
    (f"{DATA}.batch_size", 0, 2, "data.batch_size"),
    (f"{DATA}.limit", 0, 2, "data.limit"),
    ("--model.objective.beta=-1", None, 2, "model.objective.beta must be a finite number > 0, got -1.0"),
    ("--model.objective.beta=.nan", None, 2, "model.objective.beta must be a finite number > 0, got nan"),
    ("--model.objective.beta=1e30", None, 2, "model.objective.beta must be at most 1e+06, got 1e+30"),
    (
        f"{MODEL}.objective",
        {
            "class_path": "Mixture",
            "init_args": {"objectives": ["SFT", {"class_path": "DPO", "init_args": {"beta": 0}}]},
        },
        2,
        "model.objective.objectives.beta must be a finite number > 0, got 0",
    ),
    (
        f"{MODEL}.lr_scheduler",
        {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 0}},
        2,
        "model.lr_scheduler.T_max must be an integer >= 1, got 0",
    ),
    (
        "trainer.callbacks.0.init_args.save_top_k",
        -7,
        2,
        "trainer.callbacks: Invalid value for save_top_k=-7. Must be >= -1",
    ),
    # of names
    (f"{MODEL}.objective", "KTO", 2, "unknown class 'KTO' for 'model.objective'"),
    ("--optimizer=AdamW", None, 2, "unknown key 'optimizer'"),
    ("--max_epochs=3", None, 2, "unknown key 'max_epochs'; did you mean 'trainer.max_epochs'?"),
    ("--model.objectiv=IPO", None, 2, "did you mean 'model.objective'?"),
    ("trainer.strategy", "ddpp", 2, "trainer: You selected an invalid strategy name: `strategy='ddpp'`"),
    (f"{POLICY}.lora", {"rr": 4}, 2, "model.policy.lora option 'rr'"),
    (
        f"{POLICY}.config",
        {"model_type": "qwenn"},
        1,
        "config.model_type must be a model type of trans",
    ),
    (f"{POLICY}.config", {"model_type": "qwen2"}, 1, "config must give sizes beside model_type"),
    (f"{POLICY}.config.hidden_size", "x", 1, "config must hold what qwen2 accepts"),
    ("trainer", None, 2, "trainer: 'NoneType' object is not a mapping"),
    # of files, folders and machines
    ("trainer.accelerator", "gpu", 2, "trainer: "),
    (POLICY, {"pretrained": "/nonexistent"}, 1, "model.policy.pretrained must be a folder or a name on the hub"),
    (POLICY, {"pretrained": "nobody/nothing"}, 1, "model.policy.pretrained must be a folder or a name on the hub"),
    (f"{DATA}.train", "nope.jsonl", 1, "nope.jsonl"),
    (f"{DATA}.train", "a" * 5000, 1, "File name too long"),
    (
        f"{DATA}.cache_dir",
        "/dev/null/x",
        1,
        "data.cache_dir must be a path that can be used, got '/dev/null/x'",
    ),
    (f"{DATA}.cache_dir", "/proc/x", 1, "data.cache_dir must be a path that can be used, got '/proc/x'"),
    (
        f"{MODEL}.reference",
        {"class_path": "CachedReference", "init_args": {"path": "/proc/nope"}},
        1,
        "model.reference.path must be a path that can be used, got '/proc/nope'",
    ),
    ("--config=absent.yaml", None, 2, "config: File does not exist"),
    ("--ckpt_path=absent.ckpt", None, 1, "ckpt_path must be a checkpoint, got 'absent.ckpt'"),
]


@pytest.mark.parametrize(
    ("key", "value", "status", "words"), MISTAKES, ids=[f"{k}={v}"[:50].replace("/", "_") for k, v, *_ in MISTAKES]
)
def test_a_mistake_ends_in_three_lines_at_most(
    key: str, value: Any, status: int, words: str, values: dict[str, Any], tmp_path: Path, failing: Failing
) -> None:
    options = [key] if key.startswith("--") else []
    changed = copy.deepcopy(values) if options else put(copy.deepcopy(values), key, value)
    ended, said = failing("fit", "--config", write(tmp_path, changed), *options)
    assert words in said
    assert ended == status


def test_an_entry_at_the_wrong_level_is_answered_with_the_right_one(
    values: dict[str, Any], tmp_path: Path, failing: Failing
) -> None:
    """The suggestion was the very key that was wrong."""
    model, data = values["model"], values["data"]
    for changed, answer in [
        (
            {"model": {"class_path": model["class_path"], "init_arg": model["init_args"]}},
            "unknown key 'model.init_arg'; did you mean 'model.init_args'?",
        ),
        (
            {"data": {"class_path": data["class_path"], "train": "x", "tokenizer": data["init_args"]["tokenizer"]}},
            "unknown key 'data.tokenizer'; did you mean 'data.init_args.tokenizer'?",
        ),
        (
            {"model": {"init_args": model["init_args"]}},
            "model must say which class it is, as class_path beside init_args, got only init_args",
        ),
    ]:
        assert failing("fit", "--config", write(tmp_path, values | changed))[1] == answer


def test_debug_shows_the_trace(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, values)
    for option in ("--model.objective.beta=-1", "--trainer.max_epoch=1"):
        monkeypatch.setenv(DEBUG, "0")
        monkeypatch.setattr(sys, "argv", ["pl-prefopt", "--debug", "fit", "--config", path, option])
        with pytest.raises(ConfigurationError):
            console()
        assert os.environ[DEBUG] == "1"
        assert "--debug" not in sys.argv
    assert not capsys.readouterr().err.startswith("pl-prefopt: error")


def test_in_python_the_errors_of_classes_and_of_runs_are_raised(values: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, values)
    with pytest.raises(ConfigurationError, match=r"^model\.objective\.beta must be a finite number > 0, got -1\.0$"):
        main(["fit", "--config", path, "--model.objective.beta=-1"])
    with pytest.raises((ValueError, FileNotFoundError), match=r"nope\.jsonl"):
        main(["fit", "--config", path, "--data.train=nope.jsonl"])


def test_a_mistake_of_a_program_keeps_its_traceback(values: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise KeyError("inside")

    monkeypatch.setattr("pl_prefopt.modules.text.TextPreferenceModule.configure_model", broken)
    monkeypatch.setattr(sys, "argv", ["pl-prefopt", "fit", "--config", write(tmp_path, values)])
    with pytest.raises(KeyError, match="inside"):
        console()


def test_messages_are_cut() -> None:
    assert cut("a\n\n b\nc\nd") == "a\nb\nc"
    assert len(cut("word " * 1000)) < 700
    assert cut(f"got '{'x' * 5000}'") == f"got '{'x' * 99}..."
    worker = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
    )
    assert brief(ValueError(worker + "ValueError: row 3: field 'a' must be text\n")) == "row 3: field 'a' must be text"
    assert brief(KeyboardInterrupt()) == "KeyboardInterrupt"
