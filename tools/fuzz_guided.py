"""One parser under atheris, for `tools.fuzz`: `python -m tools.fuzz_guided KIND SECONDS FINDINGS CORPUS`.

FINDINGS and CORPUS are directories; the second is filled here and removed by who made it.

A program of its own, for what is to be guided by its coverage must be imported under atheris, and libFuzzer ends the
process that it runs in.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["orlop"]):
    from tests.hostile import generators
    from tests.hostile.targets import TARGETS

SEEDS_IN_CORPUS = 100


def main() -> None:
    """Does not return."""
    kind, seconds, findings, directory = sys.argv[1:]
    for number, blob in enumerate(generators.corpus(kind, SEEDS_IN_CORPUS)):
        Path(directory, str(number)).write_bytes(blob)
    options = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=1000", "-max_len=16384"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={findings}/{kind}-", directory], check)
    atheris.Fuzz()


def check(blob: bytes) -> None:
    """As atheris wants it: nothing is returned."""
    TARGETS[sys.argv[1]](blob)


if __name__ == "__main__":
    main()
