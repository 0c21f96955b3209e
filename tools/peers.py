"""Fetch the peers (containerd, its ctr, a registry, skopeo, umoci, busybox) without installing them.

Debian packages are downloaded with `apt-get download` and unpacked into `.peers/`, which git ignores:

    .peers/usr/bin, usr/sbin      the programs; those whose libraries the host lacks are small wrappers
    .peers/usr/lib/cni            CNI's plug-ins
    .peers/usr/libexec/peers      the programs behind the wrappers
    .peers/usr/lib/<triplet>      shared libraries the host lacks
    .peers/stamp.json             what was fetched, and for which list and host

Nothing is installed, replaced or started, and no maintainer script runs. The work happens in `.peers.new`, which
takes the place of `.peers` at the end, under a lock: who sees `.peers` sees all of it. With a fresh stamp the run ends
at once.

Usage: tools/peers.py [--force] [--print]. Needs only the Python that the system has.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "packaging" / "system-packages.txt"
PEERS = ROOT / ".peers"
PROGRAM_DIRECTORIES = ("usr/bin", "usr/sbin", "usr/lib/cni")

# A C library beside the host's own cannot work; the host has one.
NEVER = {"libc6", "libc-bin", "libcrypt1", "libgcc-s1"}


class Program(NamedTuple):
    """One row of packaging/system-packages.txt."""

    kind: str
    name: str
    package: str
    purpose: str


class PeerError(Exception):
    """A peer cannot be had; the text says what to do."""


def programs(kind: str | None = None) -> list[Program]:
    """Read the list, or the rows of one kind."""
    rows = [
        Program(*line.split(maxsplit=3))
        for line in LIST.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return [row for row in rows if kind in (None, row.kind)]


def locate(name: str, *, peers: Path = PEERS) -> Path | None:
    """Find a peer's program, below `.peers` only: the user's own containerd is no peer."""
    for directory in PROGRAM_DIRECTORIES:
        path = peers / directory / name
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


def fetch(*, force: bool = False) -> bool:
    """Make `.peers` whole. Returns whether anything was done.

    Raises:
        PeerError: apt cannot give a package, or a program did not come with its package.
    """
    with open(ROOT / ".peers.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        want = fingerprint()
        if not force and is_fresh(want):
            return False
        for tool in ("apt-get", "dpkg"):
            if shutil.which(tool) is None:
                raise PeerError(
                    f"{tool} not found: peers come from Debian's or Ubuntu's packages; on another system put "
                    f"{', '.join(row.name for row in programs('peer'))} below {PEERS}/usr/bin by hand"
                )
        new, old = PEERS.with_name(".peers.new"), PEERS.with_name(".peers.old")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            versions = unpack(new)
            wrap(new)
            for row in programs("peer"):
                if locate(row.name, peers=new) is None:
                    raise PeerError(f"package {row.package} has no program {row.name}")
            (new / "stamp.json").write_text(json.dumps({"fingerprint": want, "packages": versions}, indent=1) + "\n")
            if PEERS.exists():
                PEERS.rename(old)
            new.rename(PEERS)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return True


def fingerprint() -> str:
    """Digest of what decides the content of `.peers`: this program, the list, the host's release and machine."""
    state = hashlib.sha256()
    for path in (Path(__file__), LIST, Path("/etc/os-release")):
        state.update(path.read_bytes() if path.exists() else b"-")
    state.update(platform.machine().encode())
    return state.hexdigest()


def is_fresh(want: str) -> bool:
    """Tell whether `.peers` was made from the same list, and has all its programs."""
    try:
        have = json.loads((PEERS / "stamp.json").read_text())["fingerprint"]
    except (OSError, ValueError, KeyError):
        return False
    return have == want and all(locate(row.name) for row in programs("peer"))


def unpack(target: Path) -> dict[str, str]:
    """Download the peers' packages and the libraries that the host lacks, and unpack them; versions by package."""
    packages = list(dict.fromkeys(row.package for row in programs("peer")))
    if not all(candidate(package) for package in packages):
        update()
    missing = [package for package in packages if not candidate(package)]
    if missing:
        raise PeerError(
            f"no package {', '.join(missing)} in apt's sources; run `apt-get update`, and on Ubuntu enable "
            "the universe component"
        )
    wanted = list(dict.fromkeys([*packages, *(name for package in packages for name in libraries(package))]))
    downloads = target / "debs"
    downloads.mkdir()
    if not download(wanted, downloads):
        update()  # an old list names versions that the mirror no longer has
        if not download(wanted, downloads):
            raise PeerError(f"apt-get download {' '.join(wanted)} failed (see above)")
    versions = {}
    for archive in sorted(downloads.glob("*.deb")):
        run("dpkg", "-x", str(archive), str(target))
        name, version = run("dpkg-deb", "-W", "--showformat=${Package} ${Version}", str(archive)).split()
        versions[name] = version
    shutil.rmtree(downloads)
    for directory in ("bin", "sbin"):  # bookworm's packages may still be outside /usr
        for program in sorted((target / directory).glob("*")):
            (target / "usr" / directory).mkdir(parents=True, exist_ok=True)
            program.rename(target / "usr" / directory / program.name)
    return versions


def candidate(package: str) -> str | None:
    """Version that apt would take, or None."""
    found = re.search(r"Candidate: (\S+)", run("apt-cache", "policy", package))
    return None if found is None or found[1] == "(none)" else found[1]


def libraries(package: str) -> Iterator[str]:
    """Names of the libraries that installing `package` would bring anew.

    apt only simulates. If it sees no way (Docker's containerd.io conflicts with containerd), the direct dependencies
    are taken.
    """
    plan = subprocess.run(
        ["apt-get", "install", "--simulate", "--no-remove", "--no-install-recommends", package],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    if plan.returncode == 0:
        names = re.findall(r"^Inst (\S+) \(", plan.stdout, re.MULTILINE)  # "Inst x [1.0] (…" would be an upgrade
    else:
        names = re.findall(r"^  (?:Pre)?Depends: (\S+)", run("apt-cache", "depends", package), re.MULTILINE)
        names = [name for name in names if not is_installed(name)]
    return (name for name in names if name.startswith("lib") and name not in NEVER)


def is_installed(package: str) -> bool:
    query = subprocess.run(
        ["dpkg-query", "-W", "--showformat=${Status}", package],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    return query.stdout.endswith(" installed")


def download(packages: list[str], into: Path) -> bool:
    """Run `apt-get download`; tell whether it got everything."""
    command = ["apt-get", "download", "--quiet", "-o", "APT::Sandbox::User=root", *packages]
    return subprocess.run(command, cwd=into, check=False, env=environment(), stdout=subprocess.DEVNULL).returncode == 0


def update() -> None:
    """Refresh apt's lists. A foreign source that fails is no reason to stop: the candidates decide afterwards."""
    if os.geteuid() != 0:
        raise PeerError("apt's package lists are missing or old; run `sudo apt-get update`, then this again")
    subprocess.run(["apt-get", "update", "--quiet"], check=False, env=environment(), stdout=subprocess.DEVNULL)


def wrap(target: Path) -> None:
    """Put a wrapper before each program that needs a library from `target`."""
    library_path = [
        path for path in (target / "usr" / "lib", target / "lib") for path in sorted(path.glob("*-linux-*"))
    ]
    hidden = target / "usr" / "libexec" / "peers"
    for row in programs("peer"):
        program = locate(row.name, peers=target)
        if program is None or not lacking(program):
            continue
        absent = lacking(program, library_path)
        if absent:
            raise PeerError(f"{row.name} needs {', '.join(absent)}, which no fetched package has")
        hidden.mkdir(parents=True, exist_ok=True)
        program.rename(hidden / row.name)
        paths = ":".join(f"$root/{path.relative_to(target)}" for path in library_path)
        program.write_text(
            "#!/bin/sh\n# made by tools/peers.py: the host lacks libraries of this program\n"
            'root=$(dirname "$(readlink -f "$0")")/'
            + "/".join([".."] * len(program.parent.relative_to(target).parts))
            + f'\nLD_LIBRARY_PATH="{paths}" exec "$root/usr/libexec/peers/{row.name}" "$@"\n'
        )
        program.chmod(0o755)


def lacking(program: Path, library_path: list[Path] | None = None) -> list[str]:
    """Names of the shared libraries that the loader does not find for `program`."""
    env = environment() | {"LD_LIBRARY_PATH": ":".join(map(str, library_path or []))}
    result = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False, env=env)
    return re.findall(r"^\s*(\S+) => not found", result.stdout, re.MULTILINE)


def environment() -> dict[str, str]:
    return dict(os.environ) | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def run(*command: str) -> str:
    """Run a command; its output.

    Raises:
        PeerError: it failed.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if result.returncode != 0:
        raise PeerError(f"{' '.join(command)}: exit status {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="fetch the peers of demo, tests and bench into .peers/")
    parser.add_argument("--force", action="store_true", help="fetch even if .peers is up to date")
    parser.add_argument("--print", action="store_true", help="print each program's path")
    options = parser.parse_args()
    try:
        if fetch(force=options.force):
            print(f"peers: {', '.join(row.name for row in programs('peer'))} are in {PEERS}")
    except PeerError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    if options.print:
        for row in programs("peer"):
            print(f"{row.name}\t{locate(row.name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
