"""Seconds per pair and peak memory of text DPO: this library beside TRL, on the same weights, pairs and optimizer.

    python -m benchmarks.speed.text_vs_trl                       # both shapes, five rounds
    python -m benchmarks.speed.text_vs_trl --shape head-heavy --short --before ../other-checkout

Every contestant runs in a process of its own, one after the other, several rounds in turn, so that neither memory nor a
busy machine favours one of them. A random Qwen2-shaped model, 4 pairs a step, AdamW, in two shapes: head-heavy (4
layers x 256, vocabulary 32,000, prompts of about 140 and completions of about 80 tokens), where the output layer
dominates, and body-heavy (8 layers x 512, vocabulary 8,000, prompts of about 350 tokens). Steps are timed after one
warm-up step; making the reference cache (both sides) is not in the step time. Seconds are CPU time of the process, with
one thread what a quiet machine's clock shows, and less sensitive to other work than the clock. `--before` adds another
checkout of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAIRS, LR = 4, 1e-4


@dataclass(frozen=True)
class Shape:
    """A workload: sizes of the model, and tokens (least, most) of prompts and completions."""

    layers: int
    hidden: int
    vocab: int
    prompt: tuple[int, int]
    completion: tuple[int, int] = (60, 100)


SHAPES = {
    "head-heavy": Shape(4, 256, 32_000, (120, 160)),
    "body-heavy": Shape(8, 512, 8_000, (320, 380)),
}
SHORT = ("TRL 1.16, defaults", "pl_prefopt, defaults (shared prefix)", "pl_prefopt, shared prefix, cached reference")
CONTESTANTS = {
    "TRL 1.16, defaults": ("trl", {"gradient_checkpointing": True}),
    "TRL 1.16, no checkpointing": ("trl", {"gradient_checkpointing": False}),
    "TRL 1.16, no checkpointing, cached reference": (
        "trl",
        {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    ),
    "pl_prefopt, separate rows": ("ours", {"shared_prefix": False}),
    "pl_prefopt, defaults (shared prefix)": ("ours", {}),
    "pl_prefopt, separate rows, cached reference": ("ours", {"shared_prefix": False, "cache": True}),
    "pl_prefopt, shared prefix, cached reference": ("ours", {"cache": True}),
}


def prepare(folder: Path, shape: Shape, steps: int, seed: int = 0) -> None:
    """Write the model, a word-level tokenizer and the pairs."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, shape.vocab)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 64,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{rng.randrange(3, shape.vocab)}" for _ in range(rng.randint(low, high)))

    with (folder / "pairs.jsonl").open("w") as out:
        for _ in range(PAIRS * (steps + 1)):
            chosen, rejected = (" " + text(*shape.completion) for _ in range(2))
            row = {"prompt": text(*shape.prompt), "chosen": chosen, "rejected": rejected}
            out.write(json.dumps(row) + "\n")


def resident_mb() -> float:
    """Resident memory now."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mb() -> float:
    """Largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Times of the steps after the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.base = self.begun = 0.0

    def start(self) -> None:
        """A step begins."""
        self.base = self.base or resident_mb()
        self.begun = time.process_time()

    def stop(self, loss: float | None = None) -> None:
        """A step has ended."""
        self.seconds.append(time.process_time() - self.begun)
        if loss is not None:
            self.losses.append(loss)

    def report(self, setup: float) -> dict[str, Any]:
        """What the parent prints."""
        return {
            "seconds_per_pair": statistics.mean(self.seconds[1:]) / PAIRS,
            "peak_mb": peak_mb(),
            "step_mb": peak_mb() - self.base,
            "losses": self.losses,
            "setup": setup,
        }


def run_trl(folder: Path, steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    clock = Clock()

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                clock.losses.append(logs["loss"])

    config = DPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=PAIRS,
        max_steps=steps + 1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        train_sampling_strategy="sequential",
        disable_tqdm=True,
        **options,
    )
    begun = time.perf_counter()
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        ref_model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        callbacks=[Timer()],
    )
    setup = time.perf_counter() - begun
    trainer.train()
    return clock.report(setup)


def run_ours(folder: Path, steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """This library's module and datamodule under a plain Lightning Trainer."""
    import lightning.pytorch as pl
    import torch

    if library := os.environ.get("BENCHMARK_LIBRARY"):
        sys.path.insert(0, library)
    import pl_prefopt

    assert library is None or pl_prefopt.__file__.startswith(library), "the other checkout must be the one measured"
    from pl_prefopt.datamodules import TextPreferenceDataModule
    from pl_prefopt.modules import TextPreferenceModule
    from pl_prefopt.policies import CausalLM
    from pl_prefopt.references import AutoReference, CachedReference

    clock = Clock()

    class Timer(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            clock.start()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            clock.stop(float(outputs["loss"]))

    options, caches = dict(options), Path(os.environ["BENCHMARK_CACHES"])
    reference = CachedReference(str(caches / "reference")) if options.pop("cache", False) else AutoReference()
    begun = time.perf_counter()
    module = TextPreferenceModule(
        CausalLM(pretrained=str(folder / "model")),
        reference=reference,
        optimizer=lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.01),
        **options,
    )
    data = TextPreferenceDataModule(
        train=str(folder / "pairs.jsonl"),
        tokenizer=str(folder / "tokenizer"),
        batch_size=PAIRS,
        length_buckets=False,
        shuffle=False,
        cache_dir=str(caches / "data"),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps + 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Timer()],
    )
    setup = time.perf_counter() - begun
    trainer.fit(module, datamodule=data)
    return clock.report(setup)


def worker(name: str, folder: Path, steps: int, threads: int) -> None:
    """One contestant, in this process; prints its result as the last line."""
    import torch

    torch.set_num_threads(threads)
    side, options = CONTESTANTS[name]
    result = (run_trl if side == "trl" else run_ours)(folder, steps, options)
    print("RESULT " + json.dumps(result))


def machine() -> str:
    """One line about where this ran."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "CPU")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, {versions}"


def main() -> None:
    """Run all contestants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps per run")
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--short", action="store_true", help="only the defaults of both sides and the cached reference")
    parser.add_argument("--before", type=Path, help="another checkout of this project, measured beside this one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.folder, args.steps, args.threads)
        return
    for name in SHAPES if args.shape == "all" else (args.shape,):
        compare(name, args)


def compare(shape: str, args: argparse.Namespace) -> None:
    """All contestants on one shape."""
    names = list(SHORT if args.short else CONTESTANTS)
    entries = [(name, name, None) for name in names]
    if args.before is not None:
        entries += [(f"{name}, before", name, args.before.resolve()) for name in names if name.startswith("pl_prefopt")]
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        prepare(folder, SHAPES[shape], args.steps)
        results: dict[str, list[dict[str, Any]]] = {label: [] for label, _, _ in entries}
        for turn in range(args.rounds):
            for label, name, checkout in entries:
                results[label].append(launch(name, folder, args, checkout))
                seconds = results[label][-1]["seconds_per_pair"]
                print(f"{shape}, round {turn + 1}, {label}: {seconds:.3f} s/pair", flush=True)
    print(f"\n{shape}: {SHAPES[shape]}")
    print_table(results, args)


def launch(name: str, folder: Path, args: argparse.Namespace, checkout: Path | None) -> dict[str, Any]:
    """Run one contestant in a child process, with the library of another checkout where one is named."""
    command = [sys.executable, "-m", "benchmarks.speed.text_vs_trl", "--worker", name, "--folder", str(folder)]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    caches = folder / ("before" if checkout else "now")
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= {"BENCHMARK_CACHES": str(caches)} | ({"BENCHMARK_LIBRARY": str(checkout)} if checkout else {})
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def print_table(results: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    """Medians over rounds, and ratios to TRL's defaults."""
    middle = {
        name: {k: statistics.median(r[k] for r in runs) for k in ("seconds_per_pair", "peak_mb", "step_mb", "setup")}
        for name, runs in results.items()
    }
    base = middle["TRL 1.16, defaults"]
    print(f"\n{machine()}; {args.threads} thread(s), median of {args.rounds} rounds of {args.steps} steps\n")
    print("| | s/pair | speed | peak memory of training, MB | ratio | peak RSS, MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, m in middle.items():
        print(
            f"| {name} | {m['seconds_per_pair']:.3f} | {base['seconds_per_pair'] / m['seconds_per_pair']:.1f}x "
            f"| {m['step_mb']:.0f} | {m['step_mb'] / base['step_mb']:.2f}x "
            f"| {m['peak_mb']:.0f} | {m['peak_mb'] / base['peak_mb']:.2f}x |"
        )
    print("\nloss of each step (first round)")
    for name, runs in results.items():
        print(f"{name}: " + " ".join(f"{v:.5f}" for v in runs[0]["losses"]))


if __name__ == "__main__":
    main()
