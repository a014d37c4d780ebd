"""Checkpoints of somebody else: nothing in them is executed, imported or fetched, and no file is touched."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt.cli import main
from pl_prefopt.modules import TextPreferenceModule
from tests.cli.console import Failing, failing
from tests.cli.test_main import config, write
from tests.runs import write_pairs

__all__ = ["failing"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run: c.yaml and a.ckpt."""
    folder = tmp_path_factory.mktemp("finished")
    main(["fit", "--config", write(folder, config(folder))])
    return folder


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("where", ["state_dict", "callbacks", "hyper_parameters", "extra"])
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_pickle_payload_is_never_executed(
    subcommand: str, where: str, finished: Path, tmp_path: Path, failing: Failing
) -> None:
    mark, bad = tmp_path / "mark", tmp_path / "bad.ckpt"
    saved: dict[str, Any] = torch.load(finished / "a.ckpt", weights_only=True)
    saved.setdefault(where, {})["x"] = Payload(os.system, f"touch {mark}")
    torch.save(saved, bad)
    val = write_pairs(tmp_path / "val.jsonl", 5)
    status, said = failing(
        subcommand, "--config", finished / "c.yaml", f"--data.val={val}", "--ckpt_path", bad, "--trainer.logger=false"
    )
    assert status == 1
    assert "names the program 'posix.system'; weights_only reads tensors and plain values and has run nothing" in said
    assert not mark.exists()
    with pytest.raises(pickle.UnpicklingError):
        TextPreferenceModule.load_from_checkpoint(bad)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_bare_pickle_is_never_executed(protocol: int, finished: Path, tmp_path: Path, failing: Failing) -> None:
    mark, bad = tmp_path / "mark", tmp_path / "bad.ckpt"
    bad.write_bytes(pickle.dumps(Payload(eval, f"open({str(mark)!r}, 'w')"), protocol=protocol))
    assert failing("fit", "--config", finished / "c.yaml", "--ckpt_path", bad)[0] == 1
    assert not mark.exists()


def changed(finished: Path, file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the finished run's checkpoint with other hyper-parameters."""
    saved = torch.load(finished / "a.ckpt", weights_only=True)
    change(saved["hyper_parameters"])
    torch.save(saved, file)
    torch.load(file, weights_only=True)  # plain values: torch sees nothing wrong
    return file


@pytest.mark.parametrize(
    "arguments",
    [
        {"trust_remote_code": True},
        {"trust_remote_code": "yes"},
        {"attention": "somebody/kernels"},
        {"config": {"model_type": "qwen2", "attn_implementation": "somebody/kernels"}},
        {"config": {"model_type": "qwen2", "_attn_implementation": "somebody/kernels"}},
        {"config": {"model_type": "qwen2", "trust_remote_code": True}},
    ],
    ids=str,
)
@pytest.mark.parametrize("nested", [False, True], ids=["policy", "reference"])
def test_code_of_others_is_never_asked_for_by_a_checkpoint(
    arguments: dict[str, Any], nested: bool, finished: Path, tmp_path: Path
) -> None:
    """The folder's own modelling file was run through load_from_checkpoint; kernels come from the hub as binaries."""
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    (tmp_path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "modeling.C"}}')
    policy = {
        "class_path": "pl_prefopt.policies.CausalLM",
        "init_args": {**({} if "config" in arguments else {"pretrained": str(tmp_path)}), **arguments},
    }
    frozen = {"class_path": "pl_prefopt.references.FrozenModel", "init_args": {"policy": policy}}
    entry = {"reference": frozen} if nested else {"policy": policy}
    bad = changed(finished, tmp_path / "bad.ckpt", lambda hparams: hparams.update(entry))
    with pytest.raises(ValueError, match="must not come from a stored configuration, because it runs code"):
        TextPreferenceModule.load_from_checkpoint(bad)
    assert not (tmp_path / "mark").exists()


def policy_of_the_working_directory(hparams: dict[str, Any]) -> None:
    hparams["policy"]["class_path"] = "stolen.CausalLM"


def objective_of_the_standard_library(hparams: dict[str, Any]) -> None:
    hparams["objective"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}


def builder_of_lightning(hparams: dict[str, Any]) -> None:
    hparams["_instantiator"] = "stolen.build"


def class_for_the_builder(hparams: dict[str, Any]) -> None:
    hparams |= {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "stolen.Module"}


@pytest.mark.parametrize(
    "change",
    [
        policy_of_the_working_directory,
        objective_of_the_standard_library,
        builder_of_lightning,
        class_for_the_builder,
    ],
)
def test_a_checkpoint_imports_no_module_by_name(
    change: Callable[[dict[str, Any]], None],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: Failing,
) -> None:
    (tmp_path / "stolen.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nCausalLM = build = Module = print\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    bad = changed(finished, tmp_path / "bad.ckpt", change)
    with pytest.raises(ValueError, match=r"is not a known|allowlist|already imported"):
        TextPreferenceModule.load_from_checkpoint(bad)
    status, said = failing("fit", "--config", finished / "c.yaml", "--ckpt_path", bad, "--trainer.max_epochs=2")
    assert (status, "hyper-parameters" in said) == (1, True)
    assert "stolen" not in sys.modules
    assert not (tmp_path / "mark").exists()


def test_a_checkpoint_cannot_have_files_elsewhere_removed(finished: Path, tmp_path: Path) -> None:
    """The state of ModelCheckpoint names files that it would replace by better ones."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    saved = torch.load(finished / "a.ckpt", weights_only=True)
    (key,) = (key for key in saved["callbacks"] if key.startswith("ModelCheckpoint"))
    target = tmp_path / "new"
    saved["callbacks"][key] |= {
        "dirpath": str(target),
        "best_model_path": str(precious),
        "kth_best_model_path": str(precious),
        "last_model_path": str(precious),
        "best_k_models": {str(precious): torch.tensor(9.0)},
    }
    torch.save(saved, tmp_path / "bad.ckpt")
    args = ["fit", "--config", str(finished / "c.yaml"), f"--ckpt_path={tmp_path / 'bad.ckpt'}"]
    main([*args, "--trainer.max_epochs=2", f"--trainer.callbacks.init_args.dirpath={target}"])
    assert precious.read_text() == "kept"
    assert list(target.glob("*.ckpt"))
