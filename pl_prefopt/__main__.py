"""`python -m pl_prefopt` is the command `pl-prefopt`."""

from pl_prefopt.cli import console

if __name__ == "__main__":
    console()
