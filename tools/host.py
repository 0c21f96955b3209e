"""What this host allows, found by trying, so that a skipped test can say why and what would help."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from tools import peers

_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


@cache
def forbids_root_tests() -> str | None:
    """Why tests that mount and make Linux namespaces cannot run here, or None if they can."""
    if os.geteuid() != 0:
        return "not root: run `sudo make test`"
    trial = [
        ("mounts", ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]),
        ("new Linux namespaces", ["unshare", "--pid", "--fork", "--net", "--ipc", "--uts", "--mount-proc", "true"]),
    ]
    for what, command in trial:
        refusal = _try(command)
        if refusal is not None:
            return f"the host forbids {what}: {refusal}"
    if not any(os.access(path, os.W_OK) for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids")):
        return "the host forbids cgroups: /sys/fs/cgroup is read-only"
    if find("runc") is None and find("crun") is None:
        return "neither runc nor crun is on PATH: run `make setup`, or `apt-get install --no-remove runc`"
    return None


@cache
def forbids_overlay(directory: Path) -> str | None:
    """Why overlayfs cannot have its upper directory below `directory`, or None if it can."""
    script = (
        'd=$(mktemp -d "$1/overlay.XXXXXX") && mkdir "$d/l" "$d/u" "$d/w" "$d/m" && trap \'rm -rf "$d"\' EXIT && '
        'mount -t overlay -o "lowerdir=$d/l,upperdir=$d/u,workdir=$d/w" overlay "$d/m" && umount "$d/m"'
    )
    refusal = _try(["unshare", "--mount", "sh", "-c", script, "sh", os.fspath(directory)])
    return refusal and f"no overlayfs over {directory}: {refusal}"


@cache
def lacks_peer(name: str) -> str | None:
    """Why a peer cannot be used, or None if it can."""
    path = peers.locate(name)
    if path is None:
        return f"{name} is not in .peers: run `make setup`"
    return None


def find(program: str) -> Path | None:
    """Find a program of the system's, in the sbin directories too."""
    path = shutil.which(program, path=_SEARCH)
    return Path(path) if path else None


def _try(command: list[str]) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if result.returncode == 0 else result.stderr.strip() or f"exit status {result.returncode}"
