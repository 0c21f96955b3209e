"""`ctr`: a client of the daemon for the command line. `app` has the commands, one module for each group."""

from typing import NoReturn


def main() -> NoReturn:
    """The console script."""
    from orlop.cmd.cli import run
    from orlop.cmd.ctr.app import ctr

    run(ctr, "ctr")
