"""Try every claim over seeds and write docs/claims.md with figures.

    python -m benchmarks.claims                       # all, two processes with one thread each
    python -m benchmarks.claims --only text_noise     # one, and the page with what the others left in runs/claims

Results lie in runs/claims, one file per claim and seed; an interrupted run goes on, changed scripts run again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.claims import frame
from benchmarks.claims.pool import run_missing

RESULTS, DOCS = Path("runs/claims"), Path("docs")


def outcomes(seeds: int | None, folder: Path) -> Iterator[frame.Outcome]:
    """Claims with all their seeds on disk."""
    for name in frame.names():
        claim = frame.load(name)
        found = [frame.read_result(folder, name, s, stale=True) for s in range(seeds or claim.seeds)]
        files = [f for f in found if f is not None]
        if len(files) == len(found):
            yield frame.Outcome(name, claim, [f["values"] for f in files], sum(f["seconds"] for f in files))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=frame.names(), default=frame.names(), metavar="NAME")
    parser.add_argument("--seeds", type=int, help="at least 2; by default what each claim says, 5 or more")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    args = parser.parse_args(arguments)
    if args.seeds is not None and args.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {args.seeds}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.fresh:
        shutil.rmtree(RESULTS, ignore_errors=True)
    started = time.monotonic()
    for name, seed, seconds in run_missing(args.only, args.seeds, RESULTS):
        print(f"{name} seed {seed}: {seconds:.0f} s of CPU", flush=True)
    minutes = (time.monotonic() - started) / 60
    found = list(outcomes(args.seeds, RESULTS))
    total = sum(o.seconds for o in found) / 60
    how = {"CPU time": f"{total:.0f} minutes in all; the start of a seed, about 20 s, is trained once and kept"}
    if args.fresh and args.only == frame.names():
        how["wall time"] = f"{minutes:.0f} minutes, two processes with one thread each"
    frame.write_page(DOCS, found, how)
    for o in found:
        print(frame.table_row(o))
    print(f"{minutes:.1f} minutes; docs/claims.md")


if __name__ == "__main__":
    main()
