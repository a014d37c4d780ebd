"""The command line `pl-prefopt`."""

from pl_prefopt.cli.main import Parser, PrefOptCLI, RunConfig, console, main

__all__ = ["Parser", "PrefOptCLI", "RunConfig", "console", "main"]
