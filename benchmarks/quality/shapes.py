"""Attribute accuracy of an image demo before and after DPO, over seeds of pairs, adapter, noise and order.

    python -m benchmarks.quality.shapes --seeds 3

Runs configs/demo/image-dpo.yaml as it is, with another seed each time; the base is the shipped one.
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

from benchmarks.intervals import interval

NAMES = ("colour", "shape", "both", "clear", "win_rate")


def run(seed: int, folder: Path, name: str) -> list[dict[str, float]]:
    """Run one demo in a folder of its own; returns its report: the first and the last measurement."""
    options = [f"--{key}={seed}" for key in ("seed_everything", "model.seed", "model.policy.seed", "data.seed")]
    options += [f"--trainer.callbacks.seed={seed}", f"--trainer.default_root_dir={folder}",  # the report stands last
                f"--data.cache_dir={folder / 'cache'}"]  # fmt: skip
    command = [sys.executable, "-m", "pl_prefopt.demo", name, *options]
    folder.mkdir()
    with (folder / "log").open("w") as log:
        subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, stdout=log, stderr=log, check=True)
    (report,) = folder.glob("lightning_logs/version_0/report.json")
    return json.loads(report.read_text())


def main() -> None:
    """Print before, after and gain per seed, and the means with the 95 % interval of the gain (Student t)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="image-dpo", choices=["image-dpo", "image-sdxl-dpo", "image-flow-dpo"])
    chosen = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(chosen.seeds):
            report = run(seed, Path(folder) / f"seed-{seed}", chosen.config)
            pairs.append((report[0], report[-1]))
            print(f"seed {seed}: {[{k: round(r[k], 3) for k in NAMES} for r in pairs[-1]]}", flush=True)
    print("\n| share | before | after | gain, mean | 95 % interval |\n|---|---|---|---|---|")
    for name in NAMES:
        before, after = (fmean(pair[i][name] for pair in pairs) for i in (0, 1))
        gain = interval([after[name] - before[name] for before, after in pairs])
        print(f"| {name} | {before:.3f} | {after:.3f} | {gain.mean:+.3f} | {gain.low:.3f} to {gain.high:.3f} |")


if __name__ == "__main__":
    main()
