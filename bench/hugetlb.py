"""A cgroup v1 hierarchy for the hugetlb controller, which makes crun accept a hybrid host."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import machine
from tools import daemons, residue


@contextlib.contextmanager
def mounted() -> Iterator[None]:
    """Have the hierarchy for a while; nothing is done on a host without hybrid cgroups, or one that has it already.

    Raises:
        RuntimeError: the kernel does not mount it.
    """
    if machine.cgroup_mode() != "hybrid" or _is_mounted():
        yield
        return
    place = Path(tempfile.mkdtemp(prefix="orlop-bench-hugetlb."))
    command = ["mount", "-t", "cgroup", "-o", "hugetlb", "orlop-bench", str(place)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=daemons.environment())
    if result.returncode != 0:
        place.rmdir()
        raise RuntimeError(f"a hugetlb hierarchy for crun cannot be mounted: {result.stderr.strip()}")
    try:
        yield
    finally:
        residue.unmount(str(place))
        place.rmdir()


def _is_mounted() -> bool:
    return any("hugetlb" in line.split()[3].split(",") for line in Path("/proc/self/mounts").read_text().splitlines())
