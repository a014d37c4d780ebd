"""Held-out accuracy of SFT then DPO on the human-rated film-review pairs, over seeds, beside a bag of words.

    python -m benchmarks.quality.film --seeds 3

Runs configs/examples/film-{sft,dpo}.yaml as they are, with another seed for weights and data order each time.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import tempfile
from pathlib import Path

import torch

from benchmarks.intervals import interval
from pl_prefopt.cli import main as cli

SETS = {"film": "film_pairs.test.jsonl", "product": "product_pairs.test.jsonl"}


def run(seed: int, folder: Path) -> dict[str, float]:
    """Both stages with one seed."""
    common = [
        f"--seed_everything={seed}",
        f"--data.init_args.seed={seed}",
        f"--model.init_args.seed={seed}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
    ]
    sft = [f"--model.init_args.policy.init_args.seed={seed}", f"--trainer.callbacks.init_args.path={folder}/sft"]
    cli(["fit", "--config", "configs/examples/film-sft.yaml", *common, *sft])
    dpo = [f"--model.init_args.policy.init_args.pretrained={folder}/sft", f"--data.init_args.tokenizer={folder}/sft"]
    done = cli(["fit", "--config", "configs/examples/film-dpo.yaml", *common, *dpo])
    return {name: float(done.trainer.callback_metrics[f"val/{name}/accuracy"]) for name in SETS}


def bag_of_words(data: Path) -> dict[str, float]:
    """Sum of word log-odds between chosen and rejected of the training pairs, with add-one counts."""

    def words(text: str) -> list[str]:
        return [w.strip(".,!?;:'\"()").lower() for w in text.split()]

    counts: dict[str, collections.Counter[str]] = {k: collections.Counter() for k in ("chosen", "rejected")}
    for line in (data / "film_pairs.train.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        for side, counter in counts.items():
            counter.update(words(row[side]))
    odds = {
        w: math.log((counts["chosen"][w] + 1) / (counts["rejected"][w] + 1))
        for w in counts["chosen"].keys() | counts["rejected"].keys()
    }
    out = {}
    for name, file in SETS.items():
        hits = []
        for line in (data / file).open(encoding="utf-8"):
            row = json.loads(line)
            gap = sum(odds.get(w, 0.0) for w in words(row["chosen"]))
            gap -= sum(odds.get(w, 0.0) for w in words(row["rejected"]))
            hits.append(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
        out[name] = sum(hits) / len(hits)
    return out


def main() -> None:
    """Print mean and 95% interval (Student t) per evaluation set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    results = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as tmp:
            results.append(run(seed, Path(tmp)))
        print(f"seed {seed}: {results[-1]}", flush=True)
    words = bag_of_words(Path("../shared/data/text"))
    print("\n| held-out set | SFT then DPO, mean | 95% interval | bag of words |\n|---|---|---|---|")
    for name in SETS:
        found = interval([r[name] for r in results])
        print(f"| {name} | {found.mean:.3f} | {found.low:.3f} to {found.high:.3f} | {words[name]:.3f} |")


if __name__ == "__main__":
    main()
