"""Programs of Debian 13's containerd (1.7), for what Debian 12's does not know, such as transfers.

The package is downloaded once, with lists of its own, and unpacked into `.cache/containerd17`; nothing is installed.
Its programs need a C library no newer than Debian 12's.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tools.peers import PeerError

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".cache" / "containerd17"
PACKAGE = "containerd"
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TIMEOUT_S: Final = 120


def program(name: str) -> Path:
    """The path of `containerd`, `ctr` or `containerd-shim-runc-v2`, downloaded when it is first asked for.

    Raises:
        PeerError: it cannot be had here; the text says why.
    """
    ROOT.joinpath(".cache").mkdir(exist_ok=True)
    with open(ROOT / ".cache" / "containerd17.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = PLACE / "usr" / "bin" / name
        if not path.exists():
            _fetch()
        if not path.exists():
            raise PeerError(f"Debian 13's {PACKAGE} has no {name}")
    done = subprocess.run([path, "-v"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise PeerError(f"Debian 13's {name} does not run here: {done.stderr.strip()}")
    return path


def _fetch() -> None:
    if shutil.which("apt-get") is None or not Path(KEYRING).exists():
        raise PeerError("Debian 13's packages need apt-get and Debian's keyring")
    work = PLACE.with_name("containerd17.new")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for directory in ("lists/partial", "archives/partial", "packages", "tree"):
            (work / directory).mkdir(parents=True)
        (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} trixie main\n")
        options = {
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": work / "lists",
            "Dir::Cache": work,
            "APT::Sandbox::User": "root",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        _run(["apt-get", *flags, "-q", "update"], work)
        _run(["apt-get", *flags, "-q", "download", PACKAGE], work / "packages")
        for package in (work / "packages").glob("*.deb"):
            _run(["dpkg", "-x", package, work / "tree"], work)
        shutil.rmtree(PLACE, ignore_errors=True)
        (work / "tree").rename(PLACE)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str | Path], directory: Path) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{command[0]}: nothing came in {TIMEOUT_S} s") from error
    if done.returncode:
        raise PeerError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
