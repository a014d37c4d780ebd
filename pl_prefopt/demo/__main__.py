"""`python -m pl_prefopt.demo NAME`: run configs/demo/NAME.yaml from nothing; it ends by showing what was learned.

`pareto` trains several weights and draws the front.
"""

from __future__ import annotations

import argparse

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.stages import ROOT, find_config
from pl_prefopt.demo.text import pareto


def main(args: list[str] | None = None) -> None:
    """Run one demo; further arguments go to the command line, e.g. `text-dpo --model.objective IPO`."""
    names = sorted(p.stem for p in (ROOT / "configs" / "demo").glob("*.yaml"))
    parser = argparse.ArgumentParser(prog="python -m pl_prefopt.demo", description=main.__doc__)
    parser.add_argument("name", choices=[*names, "pareto"], nargs="?", default="text-dpo")
    chosen, rest = parser.parse_known_args(args)
    if chosen.name == "pareto":
        return pareto.main(rest)
    cli(["fit", "--config", str(find_config(f"configs/demo/{chosen.name}.yaml")), *rest])


if __name__ == "__main__":
    main()
