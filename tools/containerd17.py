"""Programs of Debian 13's containerd (1.7), for what Debian 12's does not know, such as transfers.

They need a C library no newer than Debian 12's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tools.debian13 import TIMEOUT_S, unpacked
from tools.peers import PeerError


def program(name: str) -> Path:
    """The path of `containerd`, `ctr` or `containerd-shim-runc-v2`, downloaded when it is first asked for.

    Raises:
        PeerError: it cannot be had here; the text says why.
    """
    path = unpacked("containerd17", ["containerd"]) / "usr" / "bin" / name
    if not path.exists():
        raise PeerError(f"Debian 13's containerd has no {name}")
    done = subprocess.run([path, "-v"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise PeerError(f"Debian 13's {name} does not run here: {done.stderr.strip()}")
    return path
