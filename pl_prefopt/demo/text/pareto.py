"""`pl-prefopt demo pareto`: MODPO's front over weights, PAMA, and both objectives alone, as one figure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.listing import config_path
from pl_prefopt.demo.plots import front_figure
from pl_prefopt.demo.text.exact import Enumeration, data_enumeration, measure, reward_table, tilted
from pl_prefopt.demo.text.report import DemoReport
from pl_prefopt.demo.text.world import TOPICS, SentimentWorld

PAIR = ("sentiment", "restraint")
BETA, TEMPERATURE = 0.5, 0.5
"""Those of configs/demo/text-modpo.yaml."""

Row = dict[str, float]


def train(name: str, folder: Path, *options: str) -> list[Row]:
    """Run one demo without figures; return the exact measures before and after.

    Args:
        name: of configs/demo/NAME.yaml.
        folder: where the run's files go.
        options: further command-line arguments.
    """
    arguments = (
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.limit_val_batches=0",
        f"--trainer.default_root_dir={folder}",
        "--trainer.callbacks.every_n_steps=100000",
    )
    run = cli(["fit", "--config", str(config_path(name)), *arguments, *options])
    report = next(c for c in run.trainer.callbacks if isinstance(c, DemoReport))  # pyright: ignore
    return [report.history[0], report.history[-1]]


def best_front(world: SentimentWorld, reference: Enumeration, weights: Sequence[float]) -> list[Row]:
    """What MODPO asks for: pi proportional to pi_ref exp((w_0 s / temperature + w_1 m) / beta), measured exactly.

    The labels follow sigmoid of the sentiment gap over the temperature, so R = s / temperature is what the loss fits.
    """
    s, m = (reward_table(world, tuple(TOPICS), name) for name in PAIR)
    tilts = (tilted(reference, w * s / TEMPERATURE + (1 - w) * m, BETA) for w in weights)
    return [measure(world, tuple(TOPICS), p, reference) for p in tilts]


def front(folder: Path, weights: Sequence[float], *options: str) -> dict[str, list[Row]]:
    """Train all points.

    Args:
        folder: for the runs' files.
        weights: of sentiment, in (0, 1); the rest is restraint's.
        options: further command-line arguments of every run.

    Returns:
        Label -> rows of measures: the reference, each objective alone, MODPO in the order of the weights, PAMA.
    """
    objective = "--model.objective.init_args.weights"
    pair = [train("text-modpo", folder, f"{objective}=[{w}, {1 - w:.6g}]", *options) for w in weights]
    alone = [
        train("text-modpo", folder, "--model.objective=DPO", f"--data.weights={json.dumps({name: 1.0})}", *options)
        for name in PAIR
    ]
    pama = train("text-pama", folder, *options)
    labels = {f"{name} alone": [run[1]] for name, run in zip(PAIR, alone, strict=True)}
    return {"before": [pama[0]], **labels, "MODPO": [run[1] for run in pair], "PAMA": [pama[1]]}


def main(args: list[str] | None = None) -> None:
    """Train, draw pareto.png and write pareto.json."""
    parser = argparse.ArgumentParser(prog="pl-prefopt demo pareto", description=main.__doc__)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.8, 0.6, 0.4, 0.2], metavar="W",
                        help="weights of sentiment in (0, 1)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/demo/pareto"))
    chosen, rest = parser.parse_known_args(args)
    if not all(0 < w < 1 for w in chosen.weights):
        parser.error(f"--weights must lie in (0, 1), got {chosen.weights}")
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    points = front(chosen.out / "runs", chosen.weights, *rest)
    world = SentimentWorld()
    points["optimum"] = best_front(world, data_enumeration(world, tuple(TOPICS)), [i / 20 for i in range(21)])
    (chosen.out / "pareto.json").write_text(json.dumps(points, indent=1), encoding="utf-8")
    front_figure(points, PAIR).savefig(chosen.out / "pareto.png")
    for label, rows in points.items():
        for row in rows if label != "optimum" else ():
            print(f"{label:18} " + "  ".join(f"{name} {row[name]:+.3f}" for name in (*PAIR, "kl")))
    print(f"figure and numbers: {chosen.out}")
