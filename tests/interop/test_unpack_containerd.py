"""The same layers through Diff.Apply of Debian's containerd and of orlopd: the same trees, or a listed difference.

What is compared of each name: type, mode, owner, size and contents, link target, device, times, extended attributes,
number of links, and which names are one file; seen through the snapshots that both daemons hand out.
"""

import contextlib
import gzip
import hashlib
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop.base.errdefs import AlreadyExistsError, OrlopError
from orlop.core.mount.perform import temp_mount
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tests.hostile import tarballs as raw
from tests.hostile.tarballs import archive, device, directory, hardlink, member, pax, symlink
from tools.daemons import Containerd, Engine, Orlopd

pytestmark = [pytest.mark.root, pytest.mark.interop]

ROOT = {"containerd.io/gc.root": "1"}
CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
BASE = archive(
    directory(b"etc", mode=0o750, uid=1, gid=2),
    member(b"etc/a", b"a"),
    member(b"etc/b", b"b", mode=0o4755, uid=3, gid=4),
    directory(b"usr/lib"),
    member(b"usr/lib/x", b"x"),
    symlink(b"lib", b"usr/lib"),
    member(b"srv/deep/er/f", b"f"),
    hardlink(b"hard", b"etc/a"),
    member(b"var/file", b"v"),
)

SAME: dict[str, Sequence[bytes]] = {
    "every kind of entry": [
        archive(
            directory(b"d", mode=0o2750, uid=5, gid=6, mtime=7),
            member(b"d/f", b"data", mode=0o6755, uid=7, gid=8),
            hardlink(b"h", b"d/f", mode=0o6755, uid=7, gid=8),
            symlink(b"l", b"/etc/passwd", uid=9, gid=10, mtime=11),
            device(b"null", 1, 3, mode=0o666),
            device(b"loop", 7, 0, b"4", mode=0o660, gid=6),
            member(b"fifo", kind=b"6", mode=0o600),
            member(b"old", b"x", kind=b"\0"),
        )
    ],
    "names that climb": [archive(member(b"../up", b"x"), member(b"/abs", b"x"), member(b"a/../../b", b"x"))],
    "names that are not utf-8": [archive(member(b"\xff\xfe", b"x"), directory(b"caf\xe9"), member(b"caf\xe9/x"))],
    "links out": [archive(symlink(b"door", b"../../outside"), member(b"door/f", b"x"), symlink(b"abs", b"/tmp/x"))],
    "parents that are not in the archive": [archive(member(b"a/b/c", b"x"), directory(b"a", mode=0o700))],
    "a link replaced by a file": [archive(symlink(b"l", b"../x"), member(b"l", b"file"))],
    "a directory over a link": [archive(directory(b"d"), symlink(b"l", b"d"), directory(b"l"), member(b"l/f", b"x"))],
    "a directory over a file and back": [archive(member(b"x"), directory(b"x"), member(b"x/y"), member(b"x", b"z"))],
    "sparse, as an extended header says": [
        archive(
            pax(
                [
                    (b"GNU.sparse.map", b"10,3"),
                    (b"GNU.sparse.numblocks", b"1"),
                    (b"GNU.sparse.size", b"500"),
                    (b"GNU.sparse.name", b"new"),
                ]
            ),
            member(b"shown", b"abc"),
        )
    ],
    "attributes": [
        archive(
            pax([(b"SCHILY.xattr.user.key", b"va\0lue"), (b"SCHILY.xattr.security.capability", CAPABILITY)]),
            member(b"f", b"x", mode=0o755, uid=5),
            pax([(b"SCHILY.xattr.user.key", b"dir")]),
            directory(b"d"),
        )
    ],
    "times": [
        archive(
            pax([(b"mtime", b"1234567890.123456789"), (b"atime", b"1234567899.5")]),
            member(b"fine"),
            pax([(b"mtime", b"-5")]),
            member(b"negative"),
            member(b"large", mtime=raw.base256(1 << 34, 12)),
            pax([(b"mtime", b"99999999999")]),
            directory(b"d"),
        )
    ],
    "extended headers that override": [
        archive(
            pax([(b"path", b"real"), (b"uid", b"70000"), (b"gid", b"4000000000"), (b"size", b"3")]),
            raw.header(b"shown", size=0) + raw.padded(b"abc"),
            pax([(b"linkpath", b"target")]),
            symlink(b"l", b"shown"),
            raw.long_name(b"n" * 200),
            member(b"cut"),
            pax([(b"path", b"lost")]),
            pax([(b"comment", b"x")], b"g"),
            member(b"own"),
        )
    ],
    "whiteouts": [
        BASE,
        archive(
            directory(b"etc"),
            member(b"etc/.wh.a"),
            member(b".wh.lib"),
            member(b".wh.srv"),
            member(b".wh.never"),
            member(b"etc/c"),
        ),
    ],
    "an opaque directory": [BASE, archive(directory(b"etc"), member(b"etc/.wh..wh..opq"), member(b"etc/new", b"x"))],
    "an opaque directory, marked last": [BASE, archive(member(b"srv/new"), member(b"srv/.wh..wh..opq"))],
    "a file over a directory": [BASE, archive(member(b"srv", b"file"))],
    "a directory over a file": [BASE, archive(directory(b"var/file"), member(b"var/file/x", b"x"))],
    "metadata of a directory below": [BASE, archive(directory(b"etc", mode=0o700, uid=9, mtime=5))],
    "gzip, in several members": [gzip.compress(BASE[:2000]) + gzip.compress(BASE[2000:])],
    "what aufs left": [archive(directory(b".wh..wh.plnk"), member(b".wh..wh.aufs"), member(b"f", b"x"))],
}

DIFFERENT: dict[str, tuple[Sequence[bytes], str]] = {
    "sparse, in GNU's old form": (
        [archive(raw.old_sparse(b"old", [(100, 3), (5000, 4)], b"abcdefg", real_size=10_000))],
        "containerd refuses the type; GNU tar writes it, so we read it",
    ),
    "contiguous files": (
        [archive(member(b"contiguous", b"x", kind=b"7"))],
        "containerd refuses the type; POSIX has it be read as a regular file",
    ),
    "parents that are links below": (
        [BASE, archive(member(b"lib/new", b"x"))],
        "we follow them in the merged root; containerd 1.6 makes a directory that hides the link and what is behind",
    ),
    "parents that are only below": (
        [BASE, archive(member(b"etc/new", b"x"))],
        "a directory that is only implied keeps the times that it has below; containerd gives it new ones",
    ),
    "a whiteout and the same name again": (
        [BASE, archive(member(b".wh.srv"), directory(b"srv"), member(b"srv/new", b"x"))],
        "deleted and made again is opaque with us; containerd 1.6 shows the lower files again",
    ),
    "an opaque root": (
        [BASE, archive(member(b".wh..wh..opq"), member(b"new", b"x"))],
        "we hide every name below; overlayfs does not look for the mark that containerd sets there",
    ),
    "a hard link into a lower layer": (
        [BASE, archive(hardlink(b"again", b"etc/b", mode=0o4755, uid=3, gid=4))],
        "we copy the file up; containerd finds no such file in its upper directory and refuses the layer",
    ),
}

REFUSED: dict[str, bytes] = {
    "a hard link out": archive(hardlink(b"l", b"../../etc/passwd")),
    "a hard link to nothing": archive(hardlink(b"l", b"nothing")),
    "a hard link to a directory": archive(directory(b"d"), hardlink(b"l", b"d")),
    "a whiteout of the parent": archive(member(b"d/.wh...")),
    "a wrong checksum": archive(member(checksum=b"0000000\0")),
    "no archive": b"no archive at all".ljust(2048, b"!"),
    "an unknown type": archive(member(kind=b"Z")),
    "a name that is too long": archive(pax([(b"path", b"n" * 300)]), member()),
    "a cut archive": archive(member(b"f", b"x" * 2000))[:1500],
    "a cut gzip stream": gzip.compress(BASE)[:200],
    "garbage after gzip": gzip.compress(BASE) + b"garbage",
    "a negative size": archive(member(size=raw.base256(-1, 12))),
    "a malformed extended header": archive(raw.raw_pax(b"99 x=y\n"), member()),
    "a link without a target": archive(symlink(b"l", b"")),
    "a ring of links": archive(symlink(b"a", b"b"), symlink(b"b", b"a"), member(b"a/f")),
    "a file below a file": archive(member(b"f"), member(b"f/g")),
}


def seen(root: str, started: float) -> dict[str, Any]:
    """A tree as data."""
    found: dict[str, Any] = {}
    first: dict[tuple[int, int], str] = {}
    for parent, folders, files in os.walk(root):
        for name in sorted((*folders, *files)):
            path = os.path.join(parent, name)
            shown, status = os.path.relpath(path, root), os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            contents: object = None
            if kind == stat.S_IFREG:
                contents = (status.st_size, hashlib.sha256(Path(path).read_bytes()).hexdigest())
            elif kind == stat.S_IFLNK:
                contents = os.readlink(path)
            found[shown] = {
                "mode": oct(status.st_mode),
                "owner": (status.st_uid, status.st_gid),
                "contents": contents,
                "device": status.st_rdev,
                # what is made by the way has the time of its making
                "mtime": "now" if started <= status.st_mtime <= time.time() else status.st_mtime_ns,
                "links": status.st_nlink if kind != stat.S_IFDIR else 0,
                "same as": first.setdefault((status.st_dev, status.st_ino), shown) if kind != stat.S_IFDIR else shown,
                "attributes": {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                    if not key.startswith("trusted.overlay.")
                },
            }
    return found


class Daemon:
    """One daemon's client, which keeps what it makes by a lease and forgets it with it."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self.engine = engine
        self.client = orlop.Client(address=str(engine.address), namespace=namespace)

    def apply(self, layers: Sequence[bytes]) -> dict[str, Any] | OrlopError:
        """What a stack of layers looks like, or why it was refused."""
        client, parent = self.client, ""
        snapshots = client.snapshots("overlayfs")
        made: list[str] = []
        started = time.time() - 1  # file systems take the time of the last tick
        try:
            for number, layer in enumerate(layers):
                blob = Descriptor(media_type=media_types.OCI_LAYER_GZIP, digest=Digest.of(layer), size=len(layer))
                if not layer.startswith(b"\x1f\x8b"):
                    blob = Descriptor(media_type=media_types.OCI_LAYER, digest=blob.digest, size=blob.size)
                with contextlib.suppress(AlreadyExistsError):
                    client.content.write(f"layer{number}", layer, expected=blob.digest, labels=ROOT)
                mounts = snapshots.prepare(f"k{number}", parent, labels=ROOT)
                made.append(f"k{number}")
                try:
                    client.diff.apply(blob, mounts)
                except OrlopError as error:
                    return error
                snapshots.commit(f"c{number}", f"k{number}", labels=ROOT)
                made[-1] = parent = f"c{number}"
            mounts = snapshots.view("view", parent, labels=ROOT)
            made.append("view")
            with temp_mount(mounts) as root:
                return seen(root, started)
        finally:
            for key in reversed(made):
                snapshots.remove(key)
            for info in list(client.content.walk()):
                client.content.delete(info.digest)


@pytest.fixture
def both(containerd: Containerd, orlopd: Orlopd, namespace: str):
    daemons = [Daemon(containerd, namespace), Daemon(orlopd, namespace)]
    yield daemons
    for daemon in daemons:
        daemon.client.namespaces.delete(namespace)
        daemon.client.close()


@pytest.mark.parametrize("name", SAME)
def test_the_tree_is_the_same(both, name):
    theirs, ours = (daemon.apply(SAME[name]) for daemon in both)
    assert not isinstance(theirs, OrlopError), theirs
    assert ours == theirs


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_tree_differs_where_it_is_listed(both, name):
    layers, reason = DIFFERENT[name]
    theirs, ours = (daemon.apply(layers) for daemon in both)
    assert isinstance(ours, dict), ours
    assert ours != theirs, f"is listed as different ({reason}), but is the same"


@pytest.mark.parametrize("name", REFUSED)
def test_what_containerd_refuses_we_refuse(both, name):
    """containerd gives nearly everything the code UNKNOWN; ours says whose fault it is."""
    theirs, ours = (daemon.apply([REFUSED[name]]) for daemon in both)
    assert isinstance(theirs, OrlopError)
    assert isinstance(ours, OrlopError)
    assert ours.code == 3
    assert "layer sha256:" in str(ours)
