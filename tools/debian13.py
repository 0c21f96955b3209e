"""Packages of Debian 13, unpacked beside the repository, for what Debian 12's programs do not know yet.

A set of packages is downloaded once, with lists of its own, and unpacked into `.cache/<set>`; nothing is installed.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.peers import PeerError, locate

ROOT = Path(__file__).resolve().parent.parent
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TIMEOUT_S: Final = 120
_LIBRARIES: Final = "libc6 libdeflate0 liblz4-1 liblzma5 libpcre2-8-0 libselinux1 libuuid1 libxxhash0 libzstd1 zlib1g"


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """The tree of `packages`, downloaded when it is first asked for.

    Raises:
        PeerError: they cannot be had here; the text says why.
    """
    place = ROOT / ".cache" / name
    place.parent.mkdir(exist_ok=True)
    with open(place.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _fetch(place, packages)
    return place


def mkfs_erofs() -> Path:
    """An mkfs.erofs that reads archives: the peer, if it is new enough, or Debian 13's with libraries of its own.

    Raises:
        PeerError: there is none.
    """
    peer = locate("mkfs.erofs")
    if peer is not None and "--tar" in _help(peer):
        return peer
    tree = unpacked("erofs-utils", ["erofs-utils", *_LIBRARIES.split()])
    loader = next(tree.glob("usr/lib*/ld-linux*.so*"), None) or next(tree.glob("usr/lib/*/ld-linux*.so*"), None)
    if loader is None:
        raise PeerError("Debian 13's libc6 has no loader")
    program = tree / "bin" / "mkfs.erofs"
    if not program.exists():
        program.parent.mkdir(exist_ok=True)
        libraries = ":".join(str(path) for path in sorted(tree.glob("usr/lib/*-linux-*")))
        fresh = program.with_suffix(".new")
        fresh.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{libraries}" "{tree}/usr/bin/mkfs.erofs" "$@"\n')
        fresh.chmod(0o755)
        fresh.rename(program)
    if "--tar" not in _help(program):
        raise PeerError("Debian 13's mkfs.erofs does not run here")
    return program


def _help(program: Path) -> str:
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    return done.stdout + done.stderr


def _fetch(place: Path, packages: Sequence[str]) -> None:
    if shutil.which("apt-get") is None or not Path(KEYRING).exists():
        raise PeerError("Debian 13's packages need apt-get and Debian's keyring")
    work = place.with_name(f"{place.name}.new")
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
        _run(["apt-get", *flags, "-q", "download", *packages], work / "packages")
        for package in (work / "packages").glob("*.deb"):
            _run(["dpkg", "-x", package, work / "tree"], work)
        (work / "tree").rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str | Path], directory: Path) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{command[0]}: nothing came in {TIMEOUT_S} s") from error
    if done.returncode:
        raise PeerError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
