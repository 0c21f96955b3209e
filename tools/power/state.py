"""What clients see of a daemon, as data that can be compared; and what is inside of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import orlop
from orlop.base.errdefs import NotFoundError
from orlop.client.snapshots import Kind, SnapshotInfo
from orlop.client.sync import Snapshots
from orlop.core.mount import Mount
from orlop.core.mount.options import readonly
from orlop.core.mount.perform import mount_all, unmount_all
from orlop.core.snapshots import UNPACK_KEY_PREFIX
from orlop.oci.digest import Digest

State = dict[str, str]
"""What there is, in words: a line for each thing, and what is known of it. No times, and no numbers of ours."""

SNAPSHOTTERS: Final = ("overlayfs", "native")
LOOK: Final = "look "


def observe(client: orlop.Client) -> State:
    """Everything in every namespace that a client can list."""
    found: State = {}
    for namespace in client.namespaces.list():
        name = namespace.name
        found[f"namespace {name}"] = _words(namespace.labels)
        here = client.in_namespace(name)
        for blob in here.content.walk():
            found[f"{name}: blob {blob.digest}"] = f"{blob.size_bytes} bytes {_words(blob.labels)}"
        for ingest in here.content.ingests():
            found[f"{name}: ingest {ingest.ref}"] = f"{ingest.offset} of {ingest.total_bytes}"
        for image in here.images.list():
            found[f"{name}: image {image.name}"] = f"{image.target.digest} {_words(image.labels)}"
        for lease in here.leases.list():
            found[f"{name}: lease {lease.id}"] = _words(lease.labels)
            for held in here.leases.resources(lease.id):
                found[f"{name}: lease {lease.id} holds {held.type} {held.id}"] = ""
        for container in here.containers.list():
            record = container.record
            where = f"{record.snapshotter} {record.snapshot_key}"
            found[f"{name}: container {container.id}"] = f"{record.image} {where} {_words(record.labels)}"
        for snapshotter in SNAPSHOTTERS:
            for one in here.snapshots(snapshotter).list():
                about = f"{one.kind.name} on {one.parent or 'nothing'} {_words(one.labels)}"
                found[f"{name}: {snapshotter} snapshot {one.name}"] = about
    return found


def wrong_blobs(client: orlop.Client) -> list[str]:
    """Blobs whose bytes are not what their digests say."""
    wrong = []
    for namespace in client.namespaces.list():
        content = client.in_namespace(namespace.name).content
        for blob in content.walk():
            try:
                data = content.read(blob.digest)
            except NotFoundError:  # a collection may have come between
                continue
            if Digest.of(data) != blob.digest or len(data) != blob.size_bytes:
                wrong.append(blob.digest)
    return wrong


def trees(client: orlop.Client, known: Collection[str] = ()) -> dict[str, str]:
    """The file trees of all snapshots that are topmost, as hashes, by namespace, snapshotter and name.

    Of active ones only the copies: what is written to one is not promised, and what lies below others is looked at.

    Args:
        known: those that need not be looked at.
    """
    found = {}
    for namespace in client.namespaces.list():
        for snapshotter in SNAPSHOTTERS:
            snapshots = client.in_namespace(namespace.name).snapshots(snapshotter)
            listed = snapshots.list()
            parents = {one.parent for one in listed if one.kind is Kind.COMMITTED}
            for one in listed:
                name = f"{namespace.name}: {snapshotter} snapshot {one.name}"
                promised = one.kind is Kind.COMMITTED or snapshotter == "native"
                passing = one.name.startswith((UNPACK_KEY_PREFIX, LOOK))
                if promised and not passing and one.name not in parents and name not in known:
                    found[name] = _tree(snapshots, one)
    return found


def _tree(snapshots: Snapshots, one: SnapshotInfo) -> str:
    if one.kind is not Kind.COMMITTED:
        return described(snapshots.mounts(one.name))
    key = f"{LOOK}{uuid.uuid4()} {one.name}"  # one may have been left by the call in which the power went
    mounts = snapshots.view(key, one.name)
    try:
        return described(mounts)
    finally:
        snapshots.remove(key)


@contextlib.contextmanager
def performed(mounts: Sequence[Mount]) -> Iterator[Path]:
    """Mounts, performed for the block."""
    with tempfile.TemporaryDirectory(prefix="orlop.power.") as target:
        mount_all(mounts, target)
        try:
            yield Path(target)
        finally:
            unmount_all(target, detach=True)


def described(mounts: Sequence[Mount]) -> str:
    """A hash over names, kinds, modes, owners and contents of all files in a tree."""
    state = hashlib.sha256()
    with performed(readonly(mounts)) as root:
        for directory, directories, files in os.walk(root):
            directories.sort()
            for name in ("", *directories, *sorted(files)):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                kind = stat.S_IFMT(status.st_mode)
                content = b""
                if stat.S_ISREG(kind):
                    content = Path(path).read_bytes()
                elif stat.S_ISLNK(kind):
                    content = os.fsencode(os.readlink(path))
                about = (os.path.relpath(path, root), status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
                state.update(repr((about, content)).encode())
    return state.hexdigest()


def _words(labels: Mapping[str, str]) -> str:
    return str(sorted(labels.items())) if labels else ""
