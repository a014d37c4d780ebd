"""Kill training runs at random times and just before file operations, restart them, and compare their weights.

    python -m benchmarks.faults [--kills 6] [--seed 0] [--runs plain rounds ...] [--folder FOLDER]

Every run is trained once without interruption and once with kills: each attempt resumes from the last checkpoint and
is ended by SIGKILL, after a random time or just before a random `os.replace`, `os.rename`, `os.fsync` or `os.unlink`,
or by SIGTERM, after which it must end with status 143. The attempt that is left alone must end with the same bits.
Prints a table; the status is 1 if a run differs or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.faults.run import OPERATIONS, RUNS, run

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


class Attempt:
    """A process group that runs `benchmarks.faults.run`; its output goes to `log.txt` in the folder.

    Runs of one process are forked, which saves the seconds that importing takes; Lightning starts the second process of
    a distributed run with the command line of the first, so that one gets a command line.
    """

    def __init__(self, folder: Path, name: str, fault: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        environment = ENVIRONMENT | {"FAULT": fault, "FAULT_COUNTS": str(folder / "counts.json")}
        log = (folder / "log.txt").open("a")
        log.write(f"---- {name} {fault}\n")
        log.flush()
        if name == "two processes":
            command = [sys.executable, "-m", "benchmarks.faults.run", str(folder), name]
            self.pid = subprocess.Popen(
                command, env=os.environ | environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            ).pid
        elif (pid := os.fork()) == 0:
            self._child(folder, name, environment, log.fileno())
        else:
            self.pid = pid
        log.close()

    def _child(self, folder: Path, name: str, environment: dict[str, str], log: int) -> None:
        status = 1
        try:
            os.setsid()
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(environment)
            run(folder, name)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def saves(self) -> bool:
        """Wait until the run writes a checkpoint; False if it ends before."""
        begin = time.time()
        last = self.folder / "checkpoints/last.ckpt"
        while not (last.exists() and last.stat().st_mtime > begin):
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
            time.sleep(0.01)
        return True

    def end(self, after: float | None = None, by: int = signal.SIGKILL) -> int:
        """Wait; after some seconds send a signal. Kill what is left of the group and return the exit status."""
        deadline, status = time.monotonic() + (after if after is not None else 300), None
        while status is None:
            done, code = os.waitpid(self.pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() > deadline:
                os.killpg(self.pid, by)
                deadline, by = time.monotonic() + 120, signal.SIGKILL
            else:
                time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return status


def interrupted(folder: Path, name: str, kills: int, seconds: float, counts: dict[str, int]) -> list[str]:
    """Kill a run some times, then let it end; return what was done to it."""
    faults = []
    operations = [operation for operation in OPERATIONS if counts.get(operation)]
    for number in range(kills):
        way = number % 3
        if way == 0:
            operation = random.choice(operations)
            fault = f"{operation}:{random.randint(1, max(1, counts[operation] // 2))}"
            status = Attempt(folder, name, fault).end()
        else:
            by = signal.SIGKILL if way == 1 else signal.SIGTERM
            attempt = Attempt(folder, name)
            started = way == 1 or attempt.saves()
            after = random.uniform(0.2, 0.7) * seconds if way == 1 else random.uniform(0, 0.3) * seconds
            fault = f"{by.name} after {after:.2f} s"
            status = attempt.end(after if started else None, by)
        faults.append(f"{fault}: {status}")
        if status == 0:  # it had ended before
            return faults
        if status not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise RuntimeError(f"status {status} after {fault}; see {folder / 'log.txt'}")
    if (status := Attempt(folder, name).end()) != 0:
        raise RuntimeError(f"status {status} of the last attempt; see {folder / 'log.txt'}")
    return faults


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits."""
    before, after = (torch.load(folder / "weights.pt", weights_only=True) for folder in (one, other))
    return before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs stay; the default is a temporary folder")
    options = parser.parse_args()
    random.seed(options.seed)
    different = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        for name in options.runs:
            folder = root / name.replace(" ", "-")
            start = time.monotonic()
            status = Attempt(folder / "whole", name).end()
            seconds = time.monotonic() - start
            if status != 0:
                print((folder / "whole/log.txt").read_text()[-3000:])
                raise SystemExit(f"{name}: the uninterrupted run ended with status {status}")
            counts = json.loads((folder / "whole/counts.json").read_text())
            try:
                faults = interrupted(folder / "killed", name, options.kills, seconds, counts)
                result = "identical" if same(folder / "whole", folder / "killed") else "DIFFERENT"
            except RuntimeError as error:
                faults, result = [str(error)], "FAILED"
                print((folder / "killed/log.txt").read_text()[-3000:])
            different += result != "identical"
            print(f"{name:18s} {result:10s} {seconds:5.1f} s  {'; '.join(faults)}", flush=True)
    raise SystemExit(int(different > 0))


if __name__ == "__main__":
    main()
