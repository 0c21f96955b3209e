"""What the figures were taken on."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tools import daemons, host


def facts() -> dict[str, str]:
    """Machine and versions, for the head of the table and the JSON."""
    return {
        "machine": f"{os.cpu_count()} x {_processor()}, {_memory_gib():.0f} GiB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "cgroups": cgroup_mode(),
        "python": platform.python_version(),
        "containerd": _version([os.fspath(daemons.program("containerd")), "--version"]),
        "runc": _version([os.fspath(host.find("runc") or "runc"), "--version"]),
        "crun": _version([os.fspath(host.find("crun") or "crun"), "--version"]),
    }


def cgroup_mode() -> str:
    """unified, hybrid or legacy, in systemd's words."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "unified"
    return "hybrid" if Path("/sys/fs/cgroup/unified/cgroup.controllers").exists() else "legacy"


def load() -> Mapping[str, float]:
    """Load averages: a busy machine explains odd figures."""
    return dict(zip(("1min", "5min", "15min"), os.getloadavg(), strict=True))


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _version(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not there"
    return result.stdout.splitlines()[0].strip()
