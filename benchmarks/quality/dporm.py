"""Implicit against explicit reward on real pairs, in and out of distribution (protocol of Lin et al. 2024, 2409.03650).

    python -m benchmarks.quality.dporm --seeds 5

The same SFT weights and the same film-review pairs, once DPO (accuracy of r_w > r_l), once a Bradley-Terry head
(accuracy of s_w > s_l); `pl-prefopt test` on held-out film reviews and on product reviews. Runs
configs/examples/film-*.yaml as they are, with another seed for weights and data order each time. Writes the table and
its numbers. (The protocol is known from summaries: its details are unverified.)
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.intervals import interval
from pl_prefopt.cli import main as cli

EXAMPLES = Path("configs/examples")
DATA = Path("../shared/data/text")
REWARDS = {"implicit (DPO)": "film-dpo", "explicit (Bradley-Terry)": "film-reward"}
SETS = {"film": "film reviews, in distribution", "product": "product reviews, out of distribution"}

Result = dict[str, dict[str, float]]


def run(seed: int, folder: Path, *options: str) -> Result:
    """SFT, then both rewards from its weights, each tested on both sets.

    Args:
        seed: of weights and data order.
        folder: for the stages' files.
        options: further command-line arguments of every stage.

    Returns:
        Reward -> set -> accuracy, ties one half.
    """
    common = [
        f"--seed_everything={seed}",
        f"--data.init_args.seed={seed}",
        f"--model.init_args.seed={seed}",
        f"--model.init_args.policy.init_args.seed={seed}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger=false",
        *options,
    ]
    export = f"--trainer.callbacks.init_args.path={folder}/sft"
    cli(["fit", "--config", str(EXAMPLES / "film-sft.yaml"), *common, export])
    stage = [f"--model.init_args.policy.init_args.pretrained={folder}/sft", f"--data.init_args.tokenizer={folder}/sft"]
    out: Result = {}
    for name, config in REWARDS.items():
        chosen = ["--config", str(EXAMPLES / f"{config}.yaml"), *common, *stage]
        chosen.append(f"--trainer.default_root_dir={folder}/{config}")
        done = cli(["fit", *chosen])
        path = done.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        again = cli(["test", *chosen, f"--ckpt_path={path}"])
        found = again.trainer.callback_metrics
        out[name] = {kind: float(found[f"test/{kind}/accuracy"]) for kind in SETS}
    return out


def told(values: Sequence[float], sign: str = "") -> str:
    """Mean and half of its 95% interval, which is infinite for one value."""
    half = interval(values).half if len(values) > 1 else math.inf
    return f"{fmean(values):{sign}.3f} ± {half:.3f}"


def table(results: Sequence[Result]) -> str:
    """The 2x2 table and the gap, explicit minus implicit, paired by seed."""
    lines = [f"| accuracy, {len(results)} seeds | " + " | ".join(SETS.values()) + " |", "|---|---|---|"]
    rows = {name: [[r[name][kind] for r in results] for kind in SETS] for name in REWARDS}
    implicit, explicit = rows.values()
    rows["gap, explicit - implicit"] = [
        [b - a for a, b in zip(one, two, strict=True)] for one, two in zip(implicit, explicit, strict=True)
    ]
    for name, cells in rows.items():
        shown = [told(values, "+" if "gap" in name else "") for values in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> None:
    """Train, test, print the table with 95% intervals (Student t), write dporm.md and dporm.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/dporm"))
    chosen, rest = parser.parse_known_args(args)
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not there; the pairs are not part of this repository (see docs/data.md)")
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for seed in range(chosen.seeds):
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(seed, Path(folder), *rest))
        print(f"seed {seed}: {results[-1]}", flush=True)
        (chosen.out / "dporm.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (chosen.out / "dporm.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
