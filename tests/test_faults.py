"""What a run survives: kills, signals, damaged files, other rows; and what it says about each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from benchmarks.faults.run import TINY, text_rows
from pl_prefopt.callbacks import AdapterExport
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.modules.checkpoint_io import CheckedCheckpointIO, check_intact
from pl_prefopt.policies import CausalLM, Diffusion
from pl_prefopt.references.cache import LogpCache
from pl_prefopt.utilities.checksums import check_folder

ROOT = Path(__file__).parent.parent


class EndAfter(pl.Callback):
    """Raise, or send a signal to this process, after some micro-batches of the process."""

    def __init__(self, batches: int, number: int = 0) -> None:
        self.batches, self.number = batches, number

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches -= 1
        if self.batches == 0 and self.number:
            os.kill(os.getpid(), self.number)
        elif self.batches == 0:
            raise InterruptedError


def fit(folder: Path, *callbacks: pl.Callback, ckpt_path: Path | None = None, **options: Any) -> TextPreferenceModule:
    """Two epochs on 16 rows in micro-batches of two, with a checkpoint after every optimizer step."""
    lr = options.pop("lr", 1e-2)
    module = TextPreferenceModule(CausalLM(config=TINY), optimizer=lambda p: torch.optim.SGD(p, lr=lr))
    data = TextPreferenceDataModule(
        train=options.pop("train", None) or text_rows(folder / "train.jsonl", 16),
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=2,
        cache_dir=str(folder / "cache"),
    )
    saving = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=1, save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[*callbacks, saving],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether all weights have the same bits."""
    after = other.state_dict()
    return all(torch.equal(value, after[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("first", [1, 4, 7])
def test_a_second_interruption_within_an_accumulation_window_loses_no_gradient(first: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = fit(tmp_path / "whole", accumulate_grad_batches=2)
    last = tmp_path / "cut/checkpoints/last.ckpt"
    with pytest.raises(InterruptedError):
        fit(tmp_path / "cut", EndAfter(2 * first + 1), accumulate_grad_batches=2)
    for _ in range(2):  # ModelCheckpoint writes last.ckpt again after the first micro-batch of a resumed run
        with pytest.raises(InterruptedError):
            fit(tmp_path / "cut", EndAfter(2), ckpt_path=last, accumulate_grad_batches=2)
    assert same(whole, fit(tmp_path / "cut", ckpt_path=last, accumulate_grad_batches=2))


def test_a_run_interrupted_after_the_last_batch_of_an_epoch_can_be_interrupted_again(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", accumulate_grad_batches=2)
    last = tmp_path / "checkpoints/last.ckpt"
    with pytest.raises(SystemExit):
        fit(tmp_path, EndAfter(8, signal.SIGTERM), accumulate_grad_batches=2)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            fit(tmp_path, EndAfter(3), ckpt_path=last, accumulate_grad_batches=2)
    assert same(whole, fit(tmp_path, ckpt_path=last, accumulate_grad_batches=2))


def test_a_checkpoint_between_two_steps_is_that_of_the_step_before(tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.fit_loop.total_batch_idx + 1}.ckpt")

    fit(tmp_path, Save(), accumulate_grad_batches=3, max_steps=2)
    files = {int(f.stem): torch.load(f, weights_only=True) for f in tmp_path.glob("*.ckpt")}
    positions = {n: c["TextPreferenceDataModule"]["train_loader"]["position"] for n, c in files.items()}
    assert positions == {1: 0, 2: 0, 3: 3, 4: 3, 5: 3, 6: 6}
    ready = {n: c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] for n, c in files.items()}
    assert ready == positions


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sigterm_saves_at_the_next_step_and_ends_as_killed(accumulate: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", accumulate_grad_batches=accumulate)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as error:
        fit(tmp_path, EndAfter(3, signal.SIGTERM), accumulate_grad_batches=accumulate)
    assert error.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    last = tmp_path / "checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == {1: 3, 2: 2}[accumulate]
    assert same(whole, fit(tmp_path, ckpt_path=last, accumulate_grad_batches=accumulate))


def test_slurm_saves_and_requeues_between_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.pytorch.trainer.connectors import signal_connector

    calls: list[list[str]] = []
    monkeypatch.setattr(signal_connector, "call", lambda command: calls.append(command) or 0)
    for name, value in {"JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NTASKS": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    plugin = SLURMEnvironment(requeue_signal=signal.SIGUSR1)
    fit(tmp_path, EndAfter(3, signal.SIGUSR1), accumulate_grad_batches=2, plugins=[plugin])
    assert calls == [["scontrol", "requeue", "7"]]
    assert torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == 2


def test_a_position_is_refused_on_rows_of_other_content(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        fit(tmp_path, EndAfter(3))
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    equal = [row for row in rows if len(row["chosen"].split()) == len(row["rejected"].split())]
    assert equal, "a pair whose completions have the same length"
    equal[0]["chosen"], equal[0]["rejected"] = equal[0]["rejected"], equal[0]["chosen"]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = tmp_path / "checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=r"(content|order) of the training rows must be that of the checkpoint"):
        fit(tmp_path, ckpt_path=last, train=str(other))
    checkpoint = torch.load(last, weights_only=True)  # one of an earlier version has no key of the content
    del checkpoint["TextPreferenceDataModule"]["train_loader"]["content"]
    del checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["content"]
    torch.save(checkpoint, last)
    fit(tmp_path, ckpt_path=last)


def test_a_damaged_checkpoint_is_refused_with_the_newest_intact_one(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=3)
    last, intact = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/epoch=0-step=3.ckpt"
    assert intact.exists()
    content = last.read_bytes()
    weights = max(torch.load(last)["state_dict"].values(), key=torch.Tensor.numel).numpy().tobytes()
    at = content.index(weights)
    for damaged in (
        content[: at + 9] + bytes(b ^ 255 for b in content[at + 9 : at + 12]) + content[at + 12 :],
        content[: len(content) // 2],
        b"",
    ):
        last.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.ckpt must be an intact file.* Resume from .*step=3\.ckpt"):
            fit(tmp_path, ckpt_path=last)
        with pytest.raises(ValueError, match="must be an intact file"):
            TextPreferenceModule.load_from_checkpoint(last)
    intact.unlink()
    with pytest.raises(ValueError, match="There is no intact checkpoint in this folder"):
        check_intact(last)


def test_checkpoints_are_written_beside_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[Path, Path]] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moves.append((Path(a), Path(b))), replace(a, b)))
    CheckedCheckpointIO().save_checkpoint({"a": torch.ones(2)}, tmp_path / "sub/a.ckpt")
    [(temporary, target)] = moves
    assert temporary.parent == target.parent == tmp_path / "sub"
    assert torch.equal(CheckedCheckpointIO().load_checkpoint(tmp_path / "sub/a.ckpt")["a"], torch.ones(2))


def test_a_plugin_of_the_user_stays(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        saved = 0

        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            self.saved += 1
            super().save_checkpoint(*args, **kwargs)

    plugin = Own()
    fit(tmp_path, max_steps=1, plugins=[plugin])
    assert plugin.saved


def test_weights_that_are_not_finite_reach_neither_checkpoint_nor_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights must be finite to be saved"):
        fit(tmp_path, AdapterExport(str(tmp_path / "export")), lr=float("inf"))
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_there_are_as_many_exports_as_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "export/step-99").mkdir(parents=True)
    (tmp_path / "export/step-99/of-another-run").touch()
    with pytest.raises(InterruptedError):
        fit(tmp_path, AdapterExport(str(tmp_path / "export")), EndAfter(4))
    fit(tmp_path, AdapterExport(str(tmp_path / "export")), ckpt_path=tmp_path / "checkpoints/last.ckpt")
    steps = {torch.load(f, weights_only=True)["global_step"] for f in (tmp_path / "checkpoints").iterdir()}
    assert {f.name for f in (tmp_path / "export").glob("step-*")} == {f"step-{n}" for n in steps} | {"step-99"}
    check_folder(tmp_path / "export")
    weights = tmp_path / "export/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"model\.safetensors must have the checksum"):
        check_folder(tmp_path / "export")


def test_data_workers_die_with_their_parent(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pl_prefopt.datamodules.loading.loader import start_worker
from torch.utils.data import DataLoader, IterableDataset
class Large(IterableDataset):
    def __iter__(self):
        while True:
            yield [list(range(100_000))]
batches = iter(DataLoader(Large(), batch_size=None, num_workers=2, worker_init_fn=start_worker, collate_fn=list))
next(batches)
print(*(w.pid for w in batches._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, check=False, timeout=60)
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    for _ in range(100):
        if not any(is_running(pid) for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"workers {workers} outlive their parent")


def is_running(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_short_form_of_the_benchmark_ends_with_identical_runs() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--runs", "accumulation", "streaming", "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("identical") == 2


def test_pretrained_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    CausalLM(config=TINY)().save_pretrained(tmp_path)  # type: ignore[operator]
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of them \(model\.layers\.0\.mlp\.up_proj\.weight\)"):
        CausalLM(pretrained=str(tmp_path))()


def test_a_pipeline_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    policy = Diffusion(tiny="sd")
    policy.pipeline(policy()).save_pretrained(tmp_path)
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_out.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"/unet must hold all weights of \w+, but lacks 1 of them \(conv_out\.bias"):
        Diffusion(pretrained=str(tmp_path))()


@pytest.mark.parametrize("damage", [lambda b: b[:-3] + b"\x01\x02\x03", lambda b: b[: len(b) // 2]])
def test_a_damaged_reference_cache_is_refused_by_the_name_of_its_file(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    cache = LogpCache(tmp_path, {"weights": "a"}, 3)
    cache.fill(lambda items: (torch.rand(len(items), 2, 4), torch.full((len(items), 2), 4)))
    cache.load()
    file = tmp_path / "000000.safetensors"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with pytest.raises(ValueError, match=r"000000\.safetensors must .* Delete this file"):
        cache.load()


def test_training_metrics_are_means_over_the_rows_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TextPreferenceModule(CausalLM(config=TINY))
    other = {"loss": torch.tensor([4.0, 6.0]), "ndcg": torch.ones(2)}

    class Strategy:
        def reduce(self, sums: torch.Tensor, reduce_op: str) -> torch.Tensor:
            theirs = torch.zeros_like(sums)
            for i, name in enumerate(module.metric_names):
                if name in other:
                    theirs[0, i], theirs[1, i] = other[name].sum(), len(other[name])
            return sums + theirs

    module._trainer = SimpleNamespace(world_size=2, strategy=Strategy())  # type: ignore[assignment]
    means = module.means_of_ranks({"loss": torch.tensor([1.0]), "margin": torch.tensor([3.0])})
    assert means == {"loss": pytest.approx(11 / 3), "margin": 3.0}
