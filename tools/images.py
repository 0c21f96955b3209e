"""Build the images of demo, tests and bench from Debian packages, without root and without running anything in them.

- `busybox`: a static busybox in three layers, the last of which takes something away (a whiteout); gzip, so that
  every tool can read it. `busybox-zstd` is the same in zstd, which umoci 0.4 and Docker's older tools refuse.
- `debian`: a userland of more than 80 MB and 5,000 files in five layers, some gzip, some zstd.
- `busybox-multi`: an index of busybox for this platform and for another one.

Each lies in `.cache/images/<digest of recipe and host>/<name>/` as an OCI layout, with an archive `<name>.tar` beside
it, and is built once. Packages come through `apt-get download`: from the distribution's mirror and nowhere else.

Usage: .venv/bin/python -m tools.images [NAME...]
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from tools import layout, peers
from tools.layout import Compression, Entry, Layout, Platform, entries

CACHE: Final = peers.ROOT / ".cache" / "images"
REGISTRY: Final = "orlop.test"  # a name nobody can pull by mistake: .test is reserved (RFC 6761)
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BASE: Final = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "login",
    "mawk",
    "ncurses-base",
    "ncurses-bin",
    "perl-base",
    "procps",
    "sed",
    "tar",
    "util-linux",
]
# One layer each, on top of BASE: packages with what they need, and how the layer is compressed.
UPPER: Final[Sequence[tuple[list[str], Compression]]] = (
    (["python3"], "zstd"),
    (["perl", "tzdata"], "gzip"),
    (["vim-runtime"], "zstd"),
)
MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image: a layout and an archive of it, under one reference."""

    name: str
    reference: str
    directory: Path
    archive: Path

    @property
    def files(self) -> int:
        """Members of all layers."""
        return int(self._counts()["files"])

    @property
    def unpacked_bytes(self) -> int:
        """Size of all layers, uncompressed."""
        return int(self._counts()["unpacked_bytes"])

    def _counts(self) -> Mapping[str, Any]:
        counts: dict[str, Any] = json.loads((self.directory / "counts.json").read_text())
        return counts


def image(name: str) -> Image:
    """Get an image, building it first if need be.

    Raises:
        peers.PeerError: its packages cannot be had.
    """
    return built(name, RECIPES[name], CACHE / _fingerprint())


def built(name: str, recipe: Callable[[Layout], Mapping[str, Any]], home: Path, *, repository: str = "") -> Image:
    """The image `name` in the directory `home`, built by `recipe` if it is not there; in one process at a time.

    Args:
        recipe: writes blobs into the layout, and returns the descriptor of what the image's name stands for.
        repository: in its reference; by default its name.
    """
    home.mkdir(parents=True, exist_ok=True)
    target = Image(
        name=name,
        reference=f"{REGISTRY}/{repository or name}:latest",
        directory=home / name,
        archive=home / f"{name}.tar",
    )
    with open(home / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.archive.exists():
            _build(target, recipe)
    return target


def _build(target: Image, recipe: Callable[[Layout], Mapping[str, Any]]) -> None:
    scratch = target.directory.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(target.directory, ignore_errors=True)
    try:
        written = Layout(scratch)
        written.name(recipe(written), target.reference)
        written.finish()
        archive = written.archive(scratch.with_suffix(".tar"))
        counts = {"files": written.files, "unpacked_bytes": written.unpacked_bytes}
        (scratch / "counts.json").write_text(json.dumps(counts))  # beside the layout's files, which is allowed
        scratch.rename(target.directory)
        archive.rename(target.archive)  # last: it says that all is there
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fingerprint() -> str:
    state = hashlib.sha256(peers.fingerprint().encode())
    for path in (Path(__file__), Path(layout.__file__)):
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


# -- busybox ------------------------------------------------------------------------------------------------------


def busybox(target: Layout, compression: Compression = "gzip") -> Mapping[str, Any]:
    changes = [Entry(name="etc/.wh.removed", data=b""), Entry(name="etc/motd", data=b"orlop\n")]
    layers = [
        target.layer(content, compression) for content in (_busybox_programs(), entries(_etc()), entries(changes))
    ]
    config = {"Env": [PATH], "Cmd": ["sh"], "WorkingDir": "/"}
    return target.manifest(layers, config, layout.host_platform())


def busybox_multi(target: Layout) -> Mapping[str, Any]:
    """An index whose first entry is for another machine: who takes the first entry takes the wrong one."""
    host = layout.host_platform()
    other = Platform(architecture="s390x" if host.architecture != "s390x" else "amd64")
    foreign = target.layer(entries([Entry(name="for-another-machine", data=b"")]), "gzip")
    return target.index([target.manifest([foreign], {"Cmd": ["/none"]}, other), busybox(target)])


def _busybox_programs() -> Callable[[tarfile.TarFile], None]:
    program = peers.locate("busybox")
    if program is None:
        raise peers.PeerError("busybox is not in .peers: run `make setup`")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    links = [name for name in applets if name != "busybox"]
    return entries(
        [
            Entry(name="bin"),
            Entry(name="bin/busybox", data=program.read_bytes(), mode=0o755),
            *(Entry(name=f"bin/{name}", symlink="busybox") for name in links),
        ]
    )


def _etc() -> Iterator[Entry]:
    for directory in ("dev", "etc", "proc", "root", "sys", "var", "home"):
        yield Entry(name=directory)
    yield Entry(name="tmp", mode=0o1777)
    yield Entry(name="home/user", uid=1000, gid=1000)
    yield Entry(name="etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n")
    yield Entry(name="etc/group", data=b"root:x:0:\nuser:x:1000:\n")
    yield Entry(name="etc/removed", data=b"an upper layer takes this away\n")


# -- debian -------------------------------------------------------------------------------------------------------


def debian(target: Layout) -> Mapping[str, Any]:
    downloads = target.directory / "debs"
    downloads.mkdir()
    try:
        layers, known = [], set[str]()
        wanted = list(BASE)
        plan: list[tuple[list[str], Compression]] = []
        for packages, compression in [(BASE, "gzip"), *UPPER]:
            wanted += packages
            closure = [name for name in _closure(wanted) if name not in known]
            known.update(closure)
            plan.append((closure, compression))
        if not peers.download(sorted(known), downloads):
            raise peers.PeerError("apt-get download failed (see above); run `apt-get update`, then this again")
        seen = set[str]()
        for number, (closure, compression) in enumerate(plan):
            archives = [path for name in closure for path in sorted(downloads.glob(f"{name}_*.deb"))]
            layers.append(target.layer(_packages(archives, seen, first=number == 0), compression))
    finally:
        shutil.rmtree(downloads)
    layers.append(target.layer(entries(_debian_etc()), "gzip"))
    config = {"Env": [PATH, "LANG=C.UTF-8"], "Cmd": ["bash"], "WorkingDir": "/root"}
    return target.manifest(layers, config, layout.host_platform())


def _closure(packages: Sequence[str]) -> list[str]:
    """Names of the packages with all that they need on an empty system, in apt's order."""
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", "-o", "Dir::State::status=/dev/null"]
    return re.findall(r"^Inst (\S+) ", peers.run(*command, *packages), re.MULTILINE)


def _packages(archives: Sequence[Path], seen: set[str], *, first: bool) -> Callable[[tarfile.TarFile], None]:
    """The files of packages under merged /usr: what a package has in /bin goes to /usr/bin, and /bin is a link."""

    def fill(tar: tarfile.TarFile) -> None:
        if first:
            for name in MERGED:
                Entry(name=name, symlink=f"usr/{name}").add(tar)
                seen.add(name)
        for archive in archives:
            for member, body in _members(archive):
                if member.name in seen:
                    continue
                seen.add(member.name)
                tar.addfile(member, body)

    return fill


def _members(archive: Path) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                member.name = _merged(member.name)
                if member.islnk():
                    member.linkname = _merged(member.linkname)
                if member.name not in {"", "."}:
                    yield member, tar.extractfile(member) if member.isreg() else None
    if process.returncode != 0:
        raise peers.PeerError(f"dpkg-deb --fsys-tarfile {archive}: exit status {process.returncode}")


def _merged(name: str) -> str:
    name = name.removeprefix("./").rstrip("/")
    return f"usr/{name}" if name.split("/", 1)[0] in MERGED else name


def _debian_etc() -> Iterator[Entry]:
    """What maintainer scripts would have made, as far as a shell, Python and Perl need it."""
    users = b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
    yield Entry(name="etc/passwd", data=users + b"nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
    yield Entry(name="etc/group", data=b"root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n")
    yield Entry(name="etc/hostname", data=b"debian\n")
    yield Entry(name="usr/bin/awk", symlink="mawk")
    yield Entry(name="usr/share/doc/bash/.wh.CHANGES.gz", data=b"")


RECIPES: Final[Mapping[str, Callable[[Layout], Mapping[str, Any]]]] = {
    "busybox": busybox,
    "busybox-zstd": partial(busybox, compression="zstd"),
    "busybox-multi": busybox_multi,
    "debian": debian,
}


def main(names: Sequence[str]) -> int:
    try:
        for name in names or list(RECIPES):
            built = image(name)
            print(f"{built.reference}\t{built.archive}\t{built.archive.stat().st_size / 1e6:.1f} MB")
    except KeyError as error:
        print(f"images: no image {error}; there are {', '.join(RECIPES)}", file=sys.stderr)
        return 1
    except peers.PeerError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
