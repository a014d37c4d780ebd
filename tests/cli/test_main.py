"""The command line: bare names, overlays, short errors, saved configurations, resuming."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml

from pl_prefopt.cli import PrefOptCLI, main
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import DPO, IPO, SFT, WPO, Mixture
from tests.runs import write_pairs
from tests.tiny import QWEN2


def config(folder: Path) -> dict[str, Any]:
    """A run of a few steps on a two-layer model, by bare names wherever they are allowed."""
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "version": "run"}},
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(folder), "filename": "a"}}],
        },
        "model": {
            "class_path": "TextPreferenceModule",
            "init_args": {
                "policy": {"class_path": "CausalLM", "init_args": {"config": dict(QWEN2)}},
                "objective": "IPO",
                "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01}},
                "lr_scheduler": {"class_path": "LinearLR", "init_args": {"total_iters": 4}},
            },
        },
        "data": {
            "class_path": "TextPreferenceDataModule",
            "init_args": {
                "train": write_pairs(folder / "train.jsonl", 12),
                "tokenizer": {"class_path": "TrainedTokenizer", "init_args": {"vocab_size": 60, "kind": "word"}},
                "batch_size": 4,
                "cache_dir": str(folder / "cache"),
            },
        },
    }


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set a dotted key; numbers index lists."""
    *way, last = key.split(".")
    place: Any = values
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value
    return values


def write(folder: Path, values: dict[str, Any], name: str = "c.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after parsing: nothing is built, nothing runs."""
    monkeypatch.setattr(PrefOptCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(PrefOptCLI, "_run_subcommand", lambda self, subcommand: None)


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("pl-prefopt: error: ")


def test_a_run_from_bare_names_trains_saves_its_config_and_runs_again(tmp_path: Path) -> None:
    path = write(tmp_path, config(tmp_path))
    for _ in range(2):
        cli = main(["fit", "--config", path, "--model.objective.beta", "0.3"])
    model = cli.model
    assert isinstance(model, TextPreferenceModule)
    assert model.objective == IPO(beta=0.3)
    assert isinstance(cli.trainer.optimizers[0], torch.optim.AdamW)
    assert cli.trainer.global_step == 3
    rate = cli.trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.01 * (1 / 3 + 2 / 3 * 3 / 4)), "three optimizer steps, three scheduler steps"
    saved = yaml.safe_load((tmp_path / "lightning_logs/run/config.yaml").read_text())
    assert saved["model"]["init_args"]["objective"]["init_args"]["beta"] == 0.3
    assert saved["seed_everything"] == 0
    assert b"batch_size: 4" in b"".join(p.read_bytes() for p in tmp_path.glob("lightning_logs/run/events*"))


def test_the_optimizer_holds_trainable_parameters_only(tmp_path: Path) -> None:
    values = put(config(tmp_path), "model.init_args.policy.init_args.lora", {"r": 2, "target_modules": ["q_proj"]})
    cli = main(["fit", "--config", write(tmp_path, values), "--trainer.fast_dev_run", "true"])
    held = {id(p) for group in cli.trainer.optimizers[0].param_groups for p in group["params"]}
    trainable = {id(p) for n, p in cli.model.named_parameters() if "lora_" in n}
    assert held == trainable
    assert len(held) == 4


def test_later_configs_win_and_append_callbacks(tmp_path: Path, parsed: None) -> None:
    base = write(tmp_path, config(tmp_path))
    more = {"trainer": {"max_epochs": 7, "callbacks+": [{"class_path": "LearningRateMonitor"}]}}
    overlay = write(tmp_path, more, "overlay.yaml")
    cli = main(["fit", "--config", base, "--config", overlay, "--trainer.callbacks+=Timer"])
    names = [c.class_path.rpartition(".")[2] for c in cli.config.fit.trainer.callbacks]
    assert names == ["ModelCheckpoint", "LearningRateMonitor", "Timer"]
    assert cli.config.fit.trainer.max_epochs == 7


def test_another_objective_drops_the_old_one_s_arguments(tmp_path: Path, parsed: None) -> None:
    objective = {"class_path": "SimPO", "init_args": {"gamma": 0.9}}
    values = put(config(tmp_path), "model.init_args.objective", objective)
    cli = main(["fit", "--config", write(tmp_path, values), "--model.objective", "DPO"])
    chosen = cli.config.fit.model.init_args.objective
    assert chosen.class_path.endswith(".DPO")
    assert "gamma" not in chosen.init_args


def test_print_config_shows_every_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", write(tmp_path, config(tmp_path)), "--print_config"])
    assert stop.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"] == 0.01
    assert shown["data"]["init_args"]["truncation"]["max_length"] == 1024
    assert not {"optimizer", "lr_scheduler"} & shown.keys(), "no automatic optimizer"


def test_what_print_config_writes_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrefOptCLI, "_run_subcommand", lambda self, subcommand: None)
    parts = "[{class_path: WPO, init_args: {objective: {class_path: DPO, init_args: {beta: 0.2}}}}, SFT]"
    options = ["--model.objective=Mixture", f"--model.objective.objectives={parts}", "--model.objective.weights=[1, 2]"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", write(tmp_path, config(tmp_path)), *options, "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    objective = main(["fit", "--config", str(printed), "--model.policy.seed=3"]).model.objective
    assert objective == Mixture([WPO(DPO(0.2)), SFT()], [1.0, 2.0])


MODEL = "model.init_args"
WRONG_IN_FILE = [
    ("trainr", {"max_epochs": 1}, "unknown key 'trainr.max_epochs'; did you mean 'trainer.max_epochs'?"),
    ("trainer.max_epoch", 1, "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    ("seed", 1, "unknown key 'seed'; did you mean 'seed_everything'?"),
    (f"{MODEL}.polcy", 1, "unknown key 'model.polcy'; did you mean 'model.policy'?"),
    ("model.init_arg", {"seed": 1}, "unknown key 'model.init_arg'; did you mean 'model.init_args'?"),
    ("model.seed", 1, "unknown key 'model.seed'; did you mean 'model.init_args.seed'?"),
    (
        f"{MODEL}.objective",
        {"class_path": "IPO", "init_args": {"betas": 1}},
        "unknown key 'model.objective.betas'; did you mean 'model.objective.beta'?",
    ),
    (
        f"{MODEL}.policy.init_args.pretraind",
        "x",
        "unknown key 'model.policy.pretraind'; did you mean 'model.policy.pretrained'?",
    ),
    (f"{MODEL}.objective", "IP0", "unknown class 'IP0' for 'model.objective'; did you mean 'IPO'?"),
    (f"{MODEL}.objective", "dpo", "unknown class 'dpo' for 'model.objective'; did you mean 'DPO'?"),
    (f"{MODEL}.reference", "FrozenCop", "unknown class 'FrozenCop' for 'model.reference'; did you mean 'FrozenCopy'?"),
    (
        f"{MODEL}.objective",
        "nowhere.IPO",
        "unknown class 'nowhere.IPO' for 'model.objective'; did you mean 'IPO'? (No module named 'nowhere')",
    ),
    (
        f"{MODEL}.objective",
        {"class_path": "IPO", "init_args": {"beta": "high"}},
        "model.objective.beta must be a number, got high",
    ),
    (f"{MODEL}.optimizer.init_args.lrr", 1.0, "unknown key 'model.optimizer.lrr'; did you mean 'model.optimizer.lr'?"),
    (f"{MODEL}.optimizer.class_path", "AdamWW", "unknown class 'AdamWW' for 'model.optimizer'; did you mean 'AdamW'?"),
    (
        f"{MODEL}.lr_scheduler",
        {"class_path": "CosineAnnealingLR"},
        "model.lr_scheduler: the following arguments are required: T_max",
    ),
    (
        "model.class_path",
        "TextPreferenceModul",
        "unknown class 'TextPreferenceModul' for 'model'; did you mean 'TextPreferenceModule'?",
    ),
    ("data.init_args.batchsize", 4, "unknown key 'data.batchsize'; did you mean 'data.batch_size'?"),
    (
        "data.init_args.tokenizer.class_path",
        "TrainedTokeniser",
        "unknown class 'TrainedTokeniser' for 'data.tokenizer'; did you mean 'TrainedTokenizer'?",
    ),
    (
        "trainer.callbacks.0.init_args.monitr",
        "val/loss",
        "unknown key 'trainer.callbacks.monitr'; did you mean 'trainer.callbacks.monitor'?",
    ),
    (
        "trainer.callbacks.0.class_path",
        "ModelCheckpont",
        "unknown class 'ModelCheckpont' for 'trainer.callbacks'; did you mean 'ModelCheckpoint'?",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG_IN_FILE, ids=[m[:60] for *_, m in WRONG_IN_FILE])
def test_a_mistake_in_a_file_is_answered_in_one_line(
    key: str, value: Any, message: str, tmp_path: Path, parsed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, put(config(tmp_path), key, value))
    assert refused(["fit", "--config", path], capsys) == message


WRONG_IN_COMMAND = [
    ("--trainer.max_epoch=1", "unknown key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
    ("--modle.objective=IPO", "unknown key 'modle.objective'; did you mean 'model.objective'?"),
    ("--model.objectiv=IPO", "unknown key 'model.objectiv'; did you mean 'model.objective'?"),
    ("--model.objective=IP0", "unknown class 'IP0' for 'model.objective'; did you mean 'IPO'?"),
    ("--model.init_args.polcy=1", "unknown key 'model.polcy'; did you mean 'model.policy'?"),
    ("--data.batchsize=1", "unknown key 'data.batchsize'; did you mean 'data.batch_size'?"),
    ("--zebra=1", "unknown key 'zebra'"),
    ("--model.objective=Quagga", "unknown class 'Quagga' for 'model.objective'"),
    ("--model.objective.quagga=1", "unknown key 'model.objective.quagga'"),
    ("--trainer.max_epochs=two", "trainer.max_epochs must be an integer, got two"),
    (
        "--trainer.callbacks+=ModelCheckpont",
        "unknown class 'ModelCheckpont' for 'trainer.callbacks'; did you mean 'ModelCheckpoint'?",
    ),
]


@pytest.mark.parametrize(("argument", "message"), WRONG_IN_COMMAND, ids=[a for a, _ in WRONG_IN_COMMAND])
def test_a_mistake_in_the_command_is_answered_in_one_line(
    argument: str, message: str, tmp_path: Path, parsed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["fit", "--config", write(tmp_path, config(tmp_path)), argument], capsys) == message


def test_a_modality_without_its_extra_says_which(tmp_path: Path) -> None:
    """In a process of its own, because another test may have imported the class already."""
    path = write(tmp_path, put(config(tmp_path), "model.class_path", "ImagePreferenceModule"))
    hidden = "import sys; sys.modules['diffusers'] = None; from pl_prefopt.cli import main; "
    code = f"{hidden}main(['fit', '--config', {path!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "ImagePreferenceModule needs diffusers, which is not installed: pip install 'pl_prefopt[image]'"
    )


def test_a_missing_file_is_named(tmp_path: Path, parsed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["fit", "--config", "absent.yaml"], capsys).startswith("config: File does not exist")


def test_a_value_out_of_range_is_our_own_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"beta.* -1"):
        main(["fit", "--config", write(tmp_path, config(tmp_path)), "--model.objective.beta=-1"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run, with its configuration and checkpoint."""
    folder = tmp_path_factory.mktemp("finished")
    main(["fit", "--config", write(folder, config(folder))])
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.objective.beta=0.5"], r"objective\.init_args\.beta: 0\.1 != 0\.5"),
        (["--model.objective=DPO"], r"objective\.class_path: '\S+IPO' != '\S+DPO'"),
        (["--model.reference=NoReference"], r"reference\.class_path: '\S+AutoReference' != '\S+NoReference'"),
        (["--model.policy.lora={r: 2}"], r"policy\.init_args\.lora\.r: None != 2"),
        (["--model.optimizer.lr=0.5"], r"optimizer\.init_args\.lr: 0\.01 != 0\.5"),
        (["--model.lr_scheduler.total_iters=9"], r"lr_scheduler\.init_args\.total_iters: 4 != 9"),
        (["--trainer.accumulate_grad_batches=3"], r"trainer\.accumulate_grad_batches: 1 != 3"),
    ],
)
def test_a_checkpoint_beside_changed_hyper_parameters_is_refused(
    arguments: list[str], message: str, finished: Path
) -> None:
    args = ["fit", "--config", str(finished / "c.yaml"), "--ckpt_path", str(finished / "a.ckpt"), *arguments]
    with pytest.raises(ValueError, match=message):
        main([*args, "--trainer.max_epochs=2"])


def test_a_checkpoint_beside_the_same_hyper_parameters_continues(finished: Path, tmp_path: Path) -> None:
    args = ["--config", str(finished / "c.yaml"), "--ckpt_path", str(finished / "a.ckpt")]
    cli = main(["fit", *args, "--trainer.max_epochs=2", f"--trainer.callbacks.init_args.dirpath={tmp_path}"])
    assert cli.trainer.global_step == 6


def test_validation_of_a_checkpoint_keeps_what_was_typed(finished: Path) -> None:
    val = write_pairs(finished / "val.jsonl", 5)
    args = ["validate", "--config", str(finished / "c.yaml"), "--ckpt_path", str(finished / "a.ckpt")]
    args += [f"--data.val={val}", "--trainer.logger=false", f"--trainer.default_root_dir={finished}"]
    cli = main(args)
    assert 0 <= cli.trainer.callback_metrics["val/accuracy"] <= 1
    with pytest.raises(ValueError, match=r"objective\.class_path: '\S+IPO' != '\S+DPO'"):
        main([*args, "--model.objective=DPO"])


def test_a_checkpoint_of_the_command_line_loads_in_python(finished: Path) -> None:
    saved = torch.load(finished / "a.ckpt", weights_only=True)
    json.dumps(saved["hyper_parameters"])
    assert TextPreferenceModule.load_from_checkpoint(finished / "a.ckpt").objective == IPO()


class Foreign(pl.LightningModule):
    """A module of somebody else."""

    def __init__(self, objective: DPO = DPO(), width: int = 3) -> None:  # noqa: B008
        super().__init__()
        self.objective = objective
        self.width = width


def test_somebody_else_s_module_is_a_class_path_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefOptCLI, "_run_subcommand", lambda self, subcommand: None)
    values = config(tmp_path) | {"model": {"class_path": "tests.cli.test_main.Foreign", "init_args": {"width": 5}}}
    cli = main(["fit", "--config", write(tmp_path, values), "--model.objective.beta=0.7"])
    assert isinstance(cli.model, Foreign)
    assert (cli.model.width, cli.model.objective) == (5, DPO(beta=0.7))


def test_the_module_is_a_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "pl_prefopt", "--help"], capture_output=True, text=True, check=True)
    assert "{fit,validate,test,predict}" in done.stdout


def test_an_overlay_spreads_the_command_line_over_two_processes(tmp_path: Path) -> None:
    """Every process gets the arguments of the first."""
    values = put(config(tmp_path), "trainer.callbacks", [])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pl_prefopt", "fit", "--config", str(tmp_path / "run.yaml")]
    command += ["--config", "configs/strategy/ddp.yaml", "--trainer.devices=2", "--trainer.max_steps=2"]
    command += ["--data.init_args.batch_size=2", "--trainer.enable_checkpointing=false"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MEMBER: 2/2" in done.stderr + done.stdout
    assert done.stdout.count("files in ") == 1
