"""Try every claim over seeds and write docs/claims.md with pictures.

    python -m benchmarks.claims                       # all, two processes with one thread each
    python -m benchmarks.claims --only text_noise     # one, and the page with what the others left in runs/claims

Results lie in runs/claims, one file per claim and seed; an interrupted run goes on, changed scripts run again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.claims import frame
from benchmarks.claims.pool import run_missing

RESULTS, DOCS = Path("runs/claims"), Path("docs")


def outcomes(seeds: int, folder: Path) -> Iterator[frame.Outcome]:
    """Claims with all their seeds on disk."""
    for name in frame.names():
        found = [frame.read_result(folder, name, s, stale=True) for s in range(seeds)]
        files = [f for f in found if f is not None]
        if len(files) == seeds:
            claim = frame.load(name)
            yield frame.Outcome(name, claim, [f["values"] for f in files], sum(f["seconds"] for f in files))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=frame.names(), default=frame.names(), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    args = parser.parse_args(arguments)
    if args.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {args.seeds}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.fresh:
        for file in RESULTS.glob("*.json"):
            file.unlink()
    started = time.monotonic()
    for name, seed, seconds in run_missing(args.only, args.seeds, RESULTS):
        print(f"{name} seed {seed}: {seconds:.0f} s of CPU", flush=True)
    minutes = (time.monotonic() - started) / 60
    found = list(outcomes(args.seeds, RESULTS))
    how = {"seeds": str(args.seeds), "CPU time": f"{sum(o.seconds for o in found) / 60:.0f} minutes in all"}
    if args.fresh and args.only == frame.names():
        how["wall time"] = f"{minutes:.0f} minutes, two processes with one thread each"
    frame.write_page(DOCS, found, how)
    for o in found:
        print(frame.table_row(o))
    print(f"{minutes:.1f} minutes; docs/claims.md")


if __name__ == "__main__":
    main()
