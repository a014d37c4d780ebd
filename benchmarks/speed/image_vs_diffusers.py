"""Steps per second and peak memory of SDXL preference training: this library beside the diffusers research script.

    python -m benchmarks.speed.image_vs_diffusers --rounds 3

The script's step is restated here in our own words, part by part as it runs: decode, resize, crop and flip both JPEGs,
VAE encode in float32, both text encoders, UNet on the stacked pair, UNet again with adapters off, loss, backward, clip,
AdamW. Ours is the module and datamodule under a Lightning Trainer, whose latents and embeddings were computed once
(the time "until step 1"). The script's published command for SDXL has gradient checkpointing on, so that is its first
row; both sides are also run with the other setting. Model: SDXL with every width divided by about ten, random weights;
adapters of rank 8 on the attention projections, 512 x 512 pixels, 1 pair a step, float32. Every contestant runs in a
process of its own, in turn. Wall time suffers from other work on the machine, CPU time less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE, PAIRS, LR, RANK, BETA = 512, 1, 1e-5, 8, 5000.0
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
SPEC: dict[str, Any] = {
    "pipeline": "StableDiffusionXLPipeline",
    "unet": {
        "sample_size": SIZE // 8,
        "block_out_channels": [32, 64, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [1, 2, 4],
        "cross_attention_dim": 64 + 128,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 24,
        "projection_class_embeddings_input_dim": 6 * 24 + 128,
        "norm_num_groups": 8,
    },
    "vae": {
        "block_out_channels": [16, 24, 48, 48],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "scaling_factor": 0.13025,
        "sample_size": SIZE,
    },
    "text_encoder": {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4,
        "max_position_embeddings": 77, "projection_dim": 64,
    },
    "text_encoder_2": {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 32, "num_attention_heads": 8,
        "max_position_embeddings": 77, "projection_dim": 128, "hidden_act": "gelu",
    },
    "scheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1},
}  # fmt: skip
CONTESTANTS = {
    "diffusers script as published (checkpointing)": ("script", True),
    "diffusers script, no checkpointing": ("script", False),
    "pl_prefopt": ("ours", False),
    "pl_prefopt, checkpointing": ("ours", True),
}


def prepare(folder: Path, steps: int) -> None:
    """Write the pipeline and the pairs: JPEGs a little larger than what is trained on."""
    import numpy as np
    from PIL import Image

    from pl_prefopt.diffusion.components import TinySource
    from pl_prefopt.diffusion.tiny import TINY

    TINY["benchmark"] = SPEC
    source = TinySource("benchmark", 0)
    source.pipeline(torch.float32, source.component("unet", torch.float32)).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    with (folder / "pairs.jsonl").open("w") as out:
        for i in range(PAIRS * (steps + 1)):
            names = {"chosen": f"w{i}.jpg", "rejected": f"l{i}.jpg"}
            for name in names.values():
                coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
                Image.fromarray(coarse).resize((SIZE * 4 // 3, SIZE)).save(folder / name, quality=92)
            out.write(json.dumps({"caption": f"a picture of thing number {i}", **names}) + "\n")


class Clock:
    """Wall and CPU seconds from the end of one step to the end of the next, data loading included."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.losses: list[float] = []
        self.began = time.perf_counter()
        self.setup = 0.0

    def mark(self, loss: float) -> None:
        """A step has ended; the first one warms up, and peak memory counts from its end."""
        if not self.marks:
            self.setup = time.perf_counter() - self.began
            Path("/proc/self/clear_refs").write_text("5")
        self.marks.append((time.perf_counter(), time.process_time()))
        self.losses.append(loss)

    def report(self) -> dict[str, Any]:
        """What the parent prints."""
        wall, cpu = (statistics.median(b - a for a, b in itertools.pairwise(c)) for c in zip(*self.marks, strict=True))
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
        return {"wall": wall, "cpu": cpu, "peak_mb": peak, "setup": self.setup, "losses": self.losses}


def run_script(folder: Path, steps: int, checkpointing: bool) -> dict[str, Any]:
    """The research script's loop, without accelerate's wrapping."""
    from peft import LoraConfig

    from pl_prefopt.diffusion.components import PretrainedSource

    clock = Clock()
    source = PretrainedSource(str(folder / "model"))
    unet: Any = source.component("unet", torch.float32)
    pipe = source.pipeline(torch.float32, None)
    scheduler = source.scheduler()
    config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS)
    unet.add_adapter(config)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=1e-2)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    g = torch.Generator().manual_seed(0)
    unet.train()
    for step in range(steps + 1):
        some = rows[step * PAIRS : (step + 1) * PAIRS]
        pixels, time_ids = load(folder, some, g)
        with torch.no_grad():
            parts = [pipe.vae.encode(p).latent_dist.sample() for p in pixels.split(8)]
            latents = torch.cat(parts) * pipe.vae.config.scaling_factor
            embeds, pooled = encode(pipe, [row["caption"] for row in some])
        noise = torch.randn(latents.shape, generator=g).chunk(2)[0].repeat(2, 1, 1, 1)
        t = torch.randint(0, 1000, (PAIRS,), generator=g).repeat(2)
        noisy = scheduler.add_noise(latents, noise, t)
        added = {"time_ids": time_ids.repeat(2, 1), "text_embeds": pooled.repeat(2, 1)}
        inputs = {"encoder_hidden_states": embeds.repeat(2, 1, 1), "added_cond_kwargs": added}
        own = gap(unet(noisy, t, **inputs).sample, noise)
        unet.disable_adapters()
        with torch.no_grad():
            other = gap(unet(noisy, t, **inputs).sample, noise)
        unet.enable_adapters()
        loss = -F.logsigmoid(-0.5 * BETA * (own - other)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark(float(loss))
    return clock.report()


def gap(prediction: Tensor, noise: Tensor) -> Tensor:
    """Error of winners minus error of losers."""
    winner, loser = (prediction.float() - noise.float()).pow(2).mean((1, 2, 3)).chunk(2)
    return winner - loser


def load(folder: Path, rows: list[dict[str, str]], g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels (2B, 3, H, W), winners first, and time ids (B, 6), as the script's transform makes them every time."""
    from PIL import Image
    from torchvision.transforms.v2 import functional as T

    pairs, ids = [], []
    for row in rows:
        images = [Image.open(folder / row[key]).convert("RGB") for key in ("chosen", "rejected")]
        both = torch.cat([T.to_dtype(T.pil_to_tensor(image), torch.float32, scale=True) for image in images])
        both = T.resize(both, [SIZE], interpolation=T.InterpolationMode.BILINEAR)
        left = int(torch.randint(0, both.shape[-1] - SIZE + 1, (), generator=g))
        both = both[:, :SIZE, left : left + SIZE]
        both = both.flip(-1) if torch.rand((), generator=g) < 0.5 else both
        pairs.append(both * 2 - 1)
        ids.append([images[0].height, images[0].width, 0, left, SIZE, SIZE])
    stacked = torch.stack(pairs)
    return torch.cat([stacked[:, :3], stacked[:, 3:]]), torch.tensor(ids, dtype=torch.float32)


def encode(pipe: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Second-last hidden states of both text encoders side by side, and the second one's pooled vector."""
    states, pooled = [], torch.empty(0)
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled = out[0]
    return torch.cat(states, -1), pooled


def run_ours(folder: Path, steps: int, checkpointing: bool) -> dict[str, Any]:
    """This library's module and datamodule under a plain Lightning Trainer."""
    import lightning.pytorch as pl

    if library := os.environ.get("BENCHMARK_LIBRARY"):
        sys.path.insert(0, library)
    import pl_prefopt

    assert library is None or pl_prefopt.__file__.startswith(library), "the other checkout must be the one measured"
    from pl_prefopt import datamodules
    from pl_prefopt.modules import ImagePreferenceModule
    from pl_prefopt.policies import Diffusion

    clock = Clock()

    class Timer(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            clock.mark(float(outputs["loss"]))

    module = ImagePreferenceModule(
        Diffusion(
            pretrained=str(folder / "model"),
            lora={"r": RANK, "target_modules": TARGETS},
            gradient_checkpointing=checkpointing,
        ),
        optimizer=lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=1e-2),
    )
    options: dict[str, Any] = {"crop": "shared-random", "flip": 0.5}
    older = not hasattr(datamodules, "Geometry")  # the checkout of `--before` may take these as arguments of their own
    crops: dict[str, Any] = {"resolution": SIZE, **options}
    if not older:
        crops = {"geometry": datamodules.Geometry(SIZE, **options)}
    data = datamodules.ImagePreferenceDataModule(
        str(folder / "pairs.jsonl"),
        **crops,
        batch_size=PAIRS,
        cache_dir=str(folder / ("cache-before" if library else "cache")),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps + 1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Timer()],
    )
    trainer.fit(module, datamodule=data)
    return clock.report()


def shares(folder: Path) -> str:
    """CPU seconds of each part of the script's step, once: where the difference can come from."""
    from pl_prefopt.diffusion.components import PretrainedSource

    source = PretrainedSource(str(folder / "model"))
    unet, pipe = source.component("unet", torch.float32), source.pipeline(torch.float32, None)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()][:PAIRS]
    pixels, ids = load(folder, rows, torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeds, pooled = encode(pipe, [row["caption"] for row in rows])
        latents = pipe.vae.encode(pixels).latent_dist.mean
        added = {"time_ids": ids.repeat(2, 1), "text_embeds": pooled.repeat(2, 1)}
        jobs = {
            "images": lambda: load(folder, rows, torch.Generator()),
            "text encoders": lambda: encode(pipe, [row["caption"] for row in rows]),
            "VAE": lambda: pipe.vae.encode(pixels),
            "UNet forward": lambda: unet(latents, 5, embeds.repeat(2, 1, 1), added_cond_kwargs=added),
        }
        told = []
        for name, job in jobs.items():
            job()
            began = time.process_time()
            job()
            told.append(f"{name} {time.process_time() - began:.2f} s")
    return ", ".join(told)


def machine() -> str:
    """One line about where this ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "CPU")
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    """Prepare, run all contestants in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--before", type=Path, help="another checkout of this project, measured beside this one")
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        run = {"script": run_script, "ours": run_ours}[args.worker[0]]
        print("RESULT " + json.dumps(run(Path(args.worker[1]), args.steps, args.checkpointing)))
        return
    entries = [(name, side, checkpointing, None) for name, (side, checkpointing) in CONTESTANTS.items()]
    if args.before is not None:
        entries += [
            (f"{name}, before", side, c, args.before.resolve()) for name, side, c, _ in entries if side == "ours"
        ]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in entries}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), args.steps)
        print(f"one part of the script's step, {PAIRS} pairs: {shares(Path(place))}", flush=True)
        for turn in range(args.rounds):
            for name, side, checkpointing, checkout in entries:
                results[name].append(launch(side, place, checkpointing, args, checkout))
                last = results[name][-1]
                print(f"round {turn + 1}, {name}: {last['wall']:.2f} s wall, {last['cpu']:.2f} s CPU", flush=True)
    print_table(results, args)


def launch(
    side: str, folder: str, checkpointing: bool, args: argparse.Namespace, checkout: Path | None
) -> dict[str, Any]:
    """Run one contestant in a fresh process, with the library of another checkout where one is named."""
    command = [sys.executable, "-m", "benchmarks.speed.image_vs_diffusers", "--worker", side, folder]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    command += ["--checkpointing"] * checkpointing
    env = (
        os.environ | {"OMP_NUM_THREADS": str(args.threads)} | ({"BENCHMARK_LIBRARY": str(checkout)} if checkout else {})
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"{side} failed\n{done.stderr[-3000:]}")
    return json.loads(line.removeprefix("RESULT "))


def print_table(results: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    """Medians over rounds, and ratios to the script."""
    keys = ("wall", "cpu", "peak_mb", "setup")
    medians = {name: {k: statistics.median(r[k] for r in runs) for k in keys} for name, runs in results.items()}
    base = next(iter(medians.values()))
    print(f"\n{machine()}; {args.threads} thread(s), median of {args.rounds} rounds of {args.steps} steps\n")
    print("| | steps/s | speed (wall) | speed (CPU time) | peak RSS of steps, MB | ratio | until step 1, s |")
    print("|---|---|---|---|---|---|---|")
    for name, m in medians.items():
        speed = f"{base['wall'] / m['wall']:.2f}x | {base['cpu'] / m['cpu']:.2f}x"
        memory = f"{m['peak_mb']:.0f} | {m['peak_mb'] / base['peak_mb']:.2f}x"
        print(f"| {name} | {1 / m['wall']:.3f} | {speed} | {memory} | {m['setup']:.1f} |")
    print(
        "\nloss of the first step: " + "; ".join(f"{name} {runs[0]['losses'][0]:.6f}" for name, runs in results.items())
    )


if __name__ == "__main__":
    main()
