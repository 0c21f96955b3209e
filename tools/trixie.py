"""Run a command of this repository in Debian 13 (trixie): newer Python, and containerd 1.7 as the peer.

    .cache/trixie/            a root made by debootstrap, once; nothing of the host is installed or changed
        src/                  a copy of this tree as it is now, with a .venv and .peers of its own

The command runs as root in that root, in mount and process namespaces of its own: what it mounts or leaves running ends
with it. The host's name resolution and certificates are used. Needs only the Python that the system has.

Usage: tools/trixie.py COMMAND [ARGUMENT…], for example: tools/trixie.py make test PYTEST_ARGS="-m interop"
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,runc,crun,make,git,ca-certificates,iproute2,procps,e2fsprogs"
FROM_HOST = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
KEPT = {".venv", ".peers", ".peers.lock", ".cache", ".mypy_cache"}

# $1 is the root, $2 a file that runs of tests share (tools/residue.py), the rest the command. The shell stays as
# process 1 and reaps.
ENTER = """set -eu
root=$1; runs=$2; shift 2
mount --bind "$root" "$root"; cd "$root"
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev
mount -t tmpfs -o mode=0755 tmpfs run; find tmp -mindepth 1 -delete
touch "$runs" "tmp/${runs##*/}"; chmod 600 "$runs"; mount --bind "$runs" "tmp/${runs##*/}"
pivot_root . mnt; cd /src; umount -l /mnt
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
"""


class TrixieError(Exception):
    """The root cannot be had; the text says why."""


def prepare() -> Path:
    """Make the root if there is none. Returns its directory.

    Raises:
        TrixieError: not root, or debootstrap cannot be had or fails.
    """
    if os.geteuid() != 0:
        raise TrixieError("debootstrap and mounts need root")
    root = CACHE / SUITE
    if root.is_dir():
        return root
    new = CACHE / f"{SUITE}.new"
    shutil.rmtree(new, ignore_errors=True)
    program, functions = _debootstrap()
    command = [program, "--variant=minbase", f"--include={PACKAGES}", SUITE, os.fspath(new), MIRROR]
    done = subprocess.run(command, env=os.environ | functions, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise TrixieError(f"debootstrap ended with status {done.returncode}; see {new}/debootstrap/debootstrap.log")
    shutil.rmtree(new / "var/cache/apt/archives", ignore_errors=True)
    new.rename(root)
    return root


def copy_tree(root: Path) -> None:
    """Bring this tree, as it is, to the root's /src; what was made there before (.venv, .peers) stays."""
    target = root / "src"
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        if old.name not in KEPT:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_symlink() or source.exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def run(root: Path, command: list[str]) -> int:
    """Run a command in the root; its exit status."""
    for name in FROM_HOST:
        if os.path.exists(name):
            (root / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, root / name[1:])
    isolated = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    runs = Path(tempfile.gettempdir(), f"orlop-test-runs-{os.getuid()}")
    return subprocess.run([*isolated, "sh", "-c", ENTER, "sh", root, runs, *command], check=False).returncode


def _debootstrap() -> tuple[str, dict[str, str]]:
    """The program and what it needs in its environment; unpacked into the cache where the host has none."""
    found = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found:
        return found, {}
    place = CACHE / "debootstrap"
    if not (place / "usr/sbin/debootstrap").exists():
        place.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", "--quiet", "-o", "APT::Sandbox::User=root", "debootstrap"]
        subprocess.run(command, cwd=place, check=True)
        (archive,) = place.glob("debootstrap_*.deb")
        subprocess.run(["dpkg", "-x", archive, place], check=True)
        archive.unlink()
    return os.fspath(place / "usr/sbin/debootstrap"), {"DEBOOTSTRAP_DIR": os.fspath(place / "usr/share/debootstrap")}


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{SUITE}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            root = prepare()
        except (TrixieError, subprocess.CalledProcessError) as error:
            print(f"trixie: {error}", file=sys.stderr)
            return 1
        copy_tree(root)
        return run(root, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
