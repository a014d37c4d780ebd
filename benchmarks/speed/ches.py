"""Cost of scoring a training set by CHES, over one forward pass of the same data.

    python -m benchmarks.speed.ches --pairs 96 --rounds 5

The scoring pass is all that `CHESFilter` does before the first step: load rows, collate, forward without the output
layer, score, write Parquet. Beside it, in turn and in the same process: a forward pass over the same batches, loaded
and collated alike, once with the output layer at the completions' positions, once without it. Workload: a random
Qwen2-shaped model of 4 layers x 256, vocabulary 32,000, prompts of about 140 and completions of about 80 tokens. Prints
medians over the rounds and both ratios; even the second, against a pass without output layer, is bound to 1.1.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch

from benchmarks.speed.text_vs_trl import SHAPES, prepare
from pl_prefopt.callbacks import CHESFilter
from pl_prefopt.datamodules import PretrainedTokenizer, TextPreferenceDataModule
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.policies import CausalLM

LIMIT = 1.1


def batches(data: Any, size: int) -> Any:
    """The scoring pass's own batches: longest rows first."""
    rows = data.datasets["train"]
    order = sorted(range(len(rows)), key=lambda i: -int(rows.lengths[i]))
    for at in range(0, len(order), size):
        yield data.collate([rows[i] for i in order[at : at + size]])


@torch.no_grad()
def forward(module: Any, data: Any, size: int, *, head: bool) -> None:
    """One forward pass over all rows, with or without the output layer."""
    for batch in batches(data, size):
        chosen, _, rejected, _ = module.pair_hidden_states(batch)
        if head:
            for states in (chosen, rejected):
                module.policy.lm_head(states)


def measure(folder: Path, pairs: int, rounds: int, size: int) -> dict[str, list[float]]:
    """Seconds of each way, by round."""
    prepare(folder, SHAPES["head-heavy"], steps=max(1, pairs // 4 - 1))
    module = TextPreferenceModule(CausalLM(str(folder / "model")))
    module.configure_model()
    module.eval()
    data = TextPreferenceDataModule(
        train=str(folder / "pairs.jsonl"),
        tokenizer=PretrainedTokenizer(str(folder / "tokenizer")),
        batch_size=size,
        cache_dir=str(folder / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    trainer = pl.Trainer(accelerator="cpu", logger=False, barebones=True)

    def scoring() -> None:
        shutil.rmtree(folder / "ches", ignore_errors=True)
        CHESFilter(rank=1, batch_size=size)._scores(trainer, module, cast(Any, data), folder / "ches")

    ways: dict[str, Callable[[], None]] = {
        "scoring pass": scoring,
        "forward pass": lambda: forward(module, data, size, head=True),
        "forward pass without output layer": lambda: forward(module, data, size, head=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), given.pairs, given.rounds, given.batch_size)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        rounds = ", ".join(f"{v:.2f}" for v in seconds[name])
        print(f"{name:36s} {1000 * value / given.pairs:8.1f} ms a pair ({rounds} s)")
    whole, bare = (middle["scoring pass"] / middle[n] for n in list(middle)[1:])
    print(f"scoring / forward {whole:.3f}; scoring / forward without output layer {bare:.3f} (bound {LIMIT})")


if __name__ == "__main__":
    main()
