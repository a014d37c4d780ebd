"""Seeds of claims in processes of one thread each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.claims import frame


def work(name: str, seed: int, folder: Path) -> tuple[str, int, float]:
    """Run one seed of one claim in this process and write its result."""
    started = time.process_time()
    values = frame.load(name).run(seed)
    seconds = time.process_time() - started
    frame.write_result(folder, name, seed, values, seconds)
    return name, seed, seconds


def _one_thread() -> None:
    import logging
    import os
    import warnings

    os.environ["TQDM_DISABLE"] = "1"
    import lightning.pytorch  # noqa: F401  sets the level of its logger when it is imported
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def run_missing(
    names: Sequence[str], seeds: int | None, folder: Path, processes: int = 2
) -> Iterator[tuple[str, int, float]]:
    """Run what has no result of the present code yet, the costly claims first."""
    todo = [
        (n, s) for n in names for s in range(seeds or frame.load(n).seeds) if frame.read_result(folder, n, s) is None
    ]
    todo.sort(key=lambda job: (-frame.load(job[0]).cost, job[1]))
    with ProcessPoolExecutor(processes, get_context("spawn"), _one_thread) as pool:
        jobs = [pool.submit(work, name, seed, folder) for name, seed in todo]
        for done in as_completed(jobs):
            yield done.result()
