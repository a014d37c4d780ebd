"""Attribute accuracy of the image demo before and after DPO, over seeds of data, weights and order.

    python -m benchmarks.quality.shapes --seeds 3

Runs configs/demo/image-{base,sft,dpo}.yaml as they are, with another seed each time; the VAE is trained once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.intervals import interval

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("colour", "shape", "both", "win_rate")


def seeded(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The config with one seed for data, weights, noise and order."""
    config["seed_everything"] = seed
    for part in ("model", "data"):
        config[part]["init_args"]["seed"] = seed
    config["model"]["init_args"]["policy"]["init_args"]["seed"] = seed
    config["trainer"]["callbacks"] = [c for c in config["trainer"]["callbacks"] if "ProgressBar" not in c["class_path"]]
    config["trainer"]["enable_progress_bar"] = False
    return config


def run(seed: int, folder: Path, name: str) -> list[dict[str, float]]:
    """Both stages in a folder of their own, beside the common first stage; returns the report of the last."""
    place = folder / f"seed-{seed}"
    (place / "configs/demo").mkdir(parents=True)
    (place / "runs/demo").mkdir(parents=True)
    (folder / "image-base").mkdir(exist_ok=True)
    (place / "runs/demo/image-base").symlink_to(folder / "image-base")
    for stage in (name.replace("dpo", "sft"), name):
        config = yaml.safe_load((ROOT / f"configs/demo/{stage}.yaml").read_text())
        (place / f"configs/demo/{stage}.yaml").write_text(yaml.safe_dump(seeded(config, seed)))
    command = [sys.executable, "-m", "pl_prefopt", "fit", "--config", f"configs/demo/{name}.yaml"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with (place / "log").open("w") as log:
        subprocess.run(command, cwd=place, env=environment, stdout=log, stderr=log, check=True)
    (report,) = place.glob(f"runs/demo/{name}/lightning_logs/version_0/report.json")
    return json.loads(report.read_text())


def main() -> None:
    """Print before, after and gain per seed, and the mean gain with its 95 % interval (Student t)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="image-dpo", choices=["image-dpo", "image-sdxl-dpo", "image-flow-dpo"])
    chosen = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(chosen.seeds):
            report = run(seed, Path(folder), chosen.config)
            found.append((report[0], report[-1]))
            print(f"seed {seed}: {[{k: round(r[k], 3) for k in NAMES} for r in found[-1]]}", flush=True)
    print("\n| share | before | after | gain, mean | 95 % interval |\n|---|---|---|---|---|")
    for name in NAMES:
        before, after = (fmean(pair[i][name] for pair in found) for i in (0, 1))
        gain = interval([two[name] - one[name] for one, two in found])
        print(f"| {name} | {before:.3f} | {after:.3f} | {gain.mean:+.3f} | {gain.low:.3f} to {gain.high:.3f} |")


if __name__ == "__main__":
    main()
