"""`DemoReport`: what a run on the sentiment world learned, in exact numbers, figures and samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.demo.plots import curves_figure, reward_kl_figure
from pl_prefopt.demo.text.exact import Enumeration, enumerate_policy, frontier, measure, reward_table, sample
from pl_prefopt.demo.text.world import TOPICS, UNSEEN_TOPICS, SentimentWorld

TEMPERATURES = [100.0 * 0.93**i for i in range(110)]
SHOWN = 2
LABELS = {
    "accuracy": "accuracy on held-out pairs",
    "ndcg": "NDCG of held-out lists",
    "reward": "expected reward (exact)",
    "reward_unseen": "the same, on topics no pair was about",
    "kl": "KL to the reference, nats (exact)",
    "length": "expected length, words (exact)",
    "leak": "probability of leaving the language",
    "entropy": "entropy, nats (exact)",
    "kl_from_reference": "KL from the reference, nats (exact)",
    "sentiment": "expected sentiment (exact)",
    "brevity": "expected brevity (exact)",
    "restraint": "expected restraint (exact)",
}
"""What is measured -> what the summary calls it."""
HELD_OUT = ("accuracy", "ndcg")
ALWAYS = ("accuracy", "reward", "reward_unseen", "kl", "length", "leak")


class DemoReport(pl.Callback):
    """Exact reward and KL every few steps; at the end samples, figures and a summary in the run folder.

    Logs `demo/reward`, `demo/kl`, `demo/length` and the other entries of `pl_prefopt.demo.text.exact.measure`, and
    `demo/reward_unseen` for topics that no pair is about. The KL is taken to the policy that the run began with.
    `val/accuracy` and `val/ndcg` are kept beside them. Writes report.json, samples.md, reward_kl.png and curves.png,
    and the same to TensorBoard. Works with any module that has a `policy`, a causal language model, when the
    datamodule has a `world` and a `tokenizer`. With `num_sanity_val_steps: -1` the held-out numbers begin at step 0.

    Args:
        also: entries of the history that summary and curves show besides accuracy, reward, KL and length: ndcg,
            entropy, kl_from_reference, sentiment, brevity, restraint.
        every_n_steps: optimizer steps between two measurements; about a second each.
        samples: rows of the table that are drawn per topic.
        threads: torch threads of the run; for models this small one is fastest, by far on a busy machine.

    Raises:
        ValueError: an unknown entry in `also`, or, in `setup`, a datamodule without `world`.
    """

    def __init__(
        self, also: list[str] | None = None, every_n_steps: int = 25, samples: int = SHOWN, threads: int = 1
    ) -> None:
        unknown = set(also or ()) - LABELS.keys()
        if unknown:
            raise ValueError(f"also names entries of {', '.join(LABELS)}; got {sorted(unknown)}")
        self.also = also
        self.every_n_steps = every_n_steps
        self.samples = samples
        self.threads = threads
        self.history: list[dict[str, float]] = []
        self._untrained: dict[str, float] = {}
        self._start: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there is a world to measure on."""
        torch.set_num_threads(self.threads)
        if not isinstance(getattr(self._data(trainer), "world", None), SentimentWorld):
            raise ValueError(
                f"DemoReport measures on the sentiment world, but {type(self._data(trainer)).__name__} has no `world`; "
                "use data: pl_prefopt.demo.text.data.SentimentDataModule, or leave the callback out"
            )

    def state_dict(self) -> dict[str, Any]:
        """Measurements so far and the distribution of the first policy."""
        return {"history": self.history, "start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history, self._start = state_dict["history"], state_dict["start"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the policy that the run begins with."""
        if trainer.is_global_zero and self._start is None:
            self._start = self._written_out(trainer, pl_module).logps
            self._measure(trainer, pl_module)
            if trainer.enable_validation and getattr(pl_module, "reference", None) is not None:
                self.history[0]["accuracy"] = 0.5  # every log-ratio is 0: all ties
            self.history[0] |= self._untrained

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every few optimizer steps."""
        due = trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self.history[-1]["step"]
        if trainer.is_global_zero and due:
            self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the held-out numbers beside the exact ones."""
        metrics = trainer.callback_metrics
        held_out = {name: float(metrics[f"val/{name}"]) for name in HELD_OUT if f"val/{name}" in metrics}
        if not trainer.is_global_zero or not held_out:
            return
        if trainer.sanity_checking:
            self._untrained = held_out if trainer.num_sanity_val_steps == float("inf") else {}
            return
        if self.history[-1]["step"] != trainer.global_step:
            self._measure(trainer, pl_module)
        self.history[-1] |= held_out

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write samples and figures, print the summary."""
        folder = run_folder(trainer)
        if not trainer.is_global_zero or not self.history:
            return
        if self.history[-1]["step"] != trainer.global_step:
            self._measure(trainer, pl_module)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.history, indent=1), encoding="utf-8")
        rows = self.sample_rows(trainer, pl_module)
        table = markdown(rows)
        (folder / "samples.md").write_text(table, encoding="utf-8")
        figures = {
            "reward_kl": reward_kl_figure(self.history, self._frontier(trainer)),
            "curves": curves_figure(self.history, ("reward", "kl", "accuracy", "length", *(self.also or ()))),
        }
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")
        if isinstance(trainer.logger, TensorBoardLogger):
            board = trainer.logger.experiment
            board.add_text("demo/samples", table, trainer.global_step)
            for name, figure in figures.items():
                board.add_figure(f"demo/{name}", figure, trainer.global_step, close=False)
        print_summary(self.history, rows, folder, (*ALWAYS, *(self.also or ())))

    def sample_rows(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[dict[str, Any]]:
        """Continuations of the first and the present policy at equal quantiles, with their rewards."""
        world, topics = self._data(trainer).world, (*TOPICS, *UNSEEN_TOPICS)
        draws = torch.rand(len(topics), self.samples, generator=torch.Generator().manual_seed(0))
        assert self._start is not None
        sides = [sample(world, e, draws) for e in (Enumeration(self._start, self._start.new_zeros(len(topics))),
                                                   self._written_out(trainer, pl_module))]  # fmt: skip
        rows = []
        for i, topic in enumerate(topics):
            for before, after in zip(*(side[i] for side in sides), strict=True):
                both = {"before": before, "after": after}
                values = {f"reward_{k}": float(world.rewards(topic)[world.index(v)]) for k, v in both.items()}
                rows.append({"topic": topic, **both, **values})
        return rows

    def _frontier(self, trainer: pl.Trainer) -> list[tuple[float, float]]:
        return frontier(self._data(trainer).world, tuple(TOPICS), self._reference(), TEMPERATURES)

    def _reference(self) -> Enumeration:
        assert self._start is not None
        logps = self._start[: len(TOPICS)]
        return Enumeration(logps, logps.new_zeros(len(logps)))

    def _written_out(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Enumeration:
        data = self._data(trainer)
        policy = pl_module.policy
        assert isinstance(policy, torch.nn.Module)
        return enumerate_policy(policy, data.tokenizer, data.world, (*TOPICS, *UNSEEN_TOPICS))

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        world, count = self._data(trainer).world, len(TOPICS)
        now = self._written_out(trainer, pl_module)
        seen = Enumeration(now.logps[:count], now.leak[:count])
        values = measure(world, tuple(TOPICS), seen, self._reference())
        unseen = (now.logps[count:].exp() * reward_table(world, tuple(UNSEEN_TOPICS))).sum(1).mean()
        values["reward_unseen"] = float(unseen)
        self.history.append({"step": float(trainer.global_step), **values})
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"demo/{k}": v for k, v in values.items()}, step=trainer.global_step)

    @staticmethod
    def _data(trainer: pl.Trainer) -> Any:
        return getattr(trainer, "datamodule", None)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The samples as a table."""
    head = "| topic | before | reward | after | reward |\n|---|---|---:|---|---:|\n"
    return head + "".join(
        f"| {r['topic']} | {r['before']} | {r['reward_before']:+.2f} | {r['after']} | {r['reward_after']:+.2f} |\n"
        for r in rows
    )


def print_summary(
    history: list[dict[str, float]], rows: list[dict[str, Any]], folder: Path, names: tuple[str, ...]
) -> None:
    """What was learned, and where the files lie."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    title = f"What {int(history[-1]['step'])} steps taught"
    table = Table("", "before", "after", title=title, title_justify="left")
    for name in names:
        values = [h[name] for h in history if name in h]
        if values:
            before = f"{values[0]:.3f}" if name in history[0] else ""
            table.add_row(LABELS[name], before, f"[bold]{values[-1]:.3f}[/]")
    samples = Table("topic", "before", "", "after", "", title="Samples at equal quantiles", title_justify="left")
    for r in rows[::SHOWN]:
        samples.add_row(r["topic"], r["before"], f"{r['reward_before']:+.1f}", r["after"], f"{r['reward_after']:+.1f}")
    console.print(table, samples)
    console.print(f"figures, samples and numbers: {folder}", soft_wrap=True, highlight=False)
