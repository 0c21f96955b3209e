"""What is done while the daemon is killed: operations on content, images, namespaces, and the collector's.

Each `perform` is what a client does that comes back after a crash: it begins anew, and takes what is done for done.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

import orlop
from orlop.base.errdefs import AlreadyExistsError, NotFoundError, ResourceExhaustedError
from orlop.core.metadata import schema
from orlop.core.mount import Mount
from orlop.core.mount.perform import mount_all
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tools import residue
from tools.crash.stage import NAMESPACE, OTHER, Stage, Where

ROOT: Final = {"containerd.io/gc.root": "yes"}
BLOB: Final = random.Random(4).randbytes(200_000)
DIGEST: Final = str(Digest.of(BLOB))
PART: Final = 50_000
LEASE: Final = "held"
NAME: Final = "orlop.test/crash:latest"
FILLER: Final = "filler"
ELSEWHERE: Final = Where.ELSEWHERE
QUOTA: Final = "orlop.dev/quota.bytes"


def _nothing(_stage: Stage) -> None:
    """No preparation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row of the matrix.

    Attributes:
        perform: does it, or what is left of it, and promises what it was answered.
        restarts: what is done is the start of the daemon, which `prepare` has stopped.
        helpers: pattern of points at which, in further crashes, what the daemon has started is killed in its stead.
        tasks: a supervisor takes part, and is killed too, with the daemon and alone.
        apart: the next operation needs a daemon on another file system.
        where: what the daemon lies on.
        store: which one it is for.
    """

    name: str
    store: str
    perform: Callable[[Stage], None]
    prepare: Callable[[Stage], None] = _nothing
    restarts: bool = False
    helpers: str = ""
    tasks: bool = False
    apart: bool = False
    where: Where = Where.HERE


# -- content ----------------------------------------------------------------------------------------------------------


def _has_blob(client: orlop.Client, digest: str = DIGEST) -> None:
    assert client.content.read(digest) == BLOB
    assert client.content.info(digest).labels == ROOT


def lease(stage: Stage) -> None:
    with stage.client() as client:
        client.leases.create(LEASE)
    stage.promise("lease", lambda client: _found(client.leases.list([f"id=={LEASE}"])))


def _found(things: Sequence[object]) -> None:
    assert things


def _offset(client: orlop.Client) -> None:
    assert client.content.offset("blob") >= PART, f"{client.content.offset('blob')} bytes, {PART} were synced"


def _write(stage: Stage) -> None:
    """A write that is begun anew and given up, one that is left half way, resumed and committed."""
    with stage.client() as plain:
        client = plain.with_lease(LEASE)
        with client.content.writer("false") as writer:
            writer.truncate()
            writer.write(b"false")
            writer.truncate()
        client.content.abort("false")
        if client.content.exists(DIGEST):
            return
        with client.content.writer("blob", size=len(BLOB)) as writer:
            if writer.offset < PART:
                writer.write(BLOB[writer.offset : PART])
        stage.promise("half of a blob", _offset)
        with client.content.writer("blob", size=len(BLOB)) as writer:
            writer.write(BLOB[writer.offset :])
            stage.withdraw("half of a blob")
            writer.commit(size=len(BLOB), expected=DIGEST, labels=ROOT)
        stage.promise("a blob", _has_blob)


def _written(stage: Stage) -> None:
    lease(stage)
    with stage.client(OTHER) as client:
        client.content.write("blob", BLOB, labels=ROOT)
    stage.promise("the other's blob", lambda client: _has_blob(client.in_namespace(OTHER)))


def _share(stage: Stage) -> None:
    """Have what another namespace has by naming it; and by sending it again all the same."""
    with stage.client() as plain:
        client = plain.with_lease(LEASE)
        if not client.content.exists(DIGEST):
            with client.content.writer("blob", size=len(BLOB), expected=DIGEST) as writer:
                writer.write(BLOB[writer.offset :])  # nothing, unless it is resumed after it was begun below
                writer.commit(labels=ROOT)
            stage.promise("a blob", _has_blob)
            client.content.delete(DIGEST)
            stage.withdraw("a blob")
        client.content.write("blob", BLOB, expected=DIGEST, labels=ROOT)
    stage.promise("a blob", _has_blob)


def _refused(stage: Stage) -> None:
    """A commit that its transaction refuses, when the bytes are in place already; then there is room."""
    with stage.client() as plain:
        client = plain.with_lease(LEASE)
        if not client.content.exists(DIGEST):
            client.namespaces.label(NAMESPACE, {QUOTA: ""})
            with client.content.writer("blob") as writer:
                writer.write(BLOB[writer.offset :])
                client.namespaces.label(NAMESPACE, {QUOTA: "1000"})
                with contextlib.suppress(ResourceExhaustedError):
                    writer.commit(expected=DIGEST)
                    raise AssertionError("the quota was not held")
        client.namespaces.label(NAMESPACE, {QUOTA: ""})
        client.content.write("blob", BLOB, labels=ROOT)
    stage.promise("a blob", _has_blob)


def _read(stage: Stage) -> None:
    with stage.client() as client:
        _has_blob(client)


def _delete_content(stage: Stage) -> None:
    stage.withdraw("a blob")
    with stage.client() as client:
        with contextlib.suppress(NotFoundError):
            client.content.delete(DIGEST)
    stage.promise("no blob", _has_no_blob)


def _has_no_blob(client: orlop.Client) -> None:
    assert not client.content.exists(DIGEST)


# -- images -----------------------------------------------------------------------------------------------------------


def import_image(stage: Stage) -> None:
    with stage.client() as client, open(stage.image.archive, "rb") as archive:
        client.import_(archive)
    stage.promise("an image", partial(has_image, stage.image.reference))


def has_image(name: str, client: orlop.Client) -> None:
    image = client.images.get(name)
    state = image.check()
    assert not state.missing, f"of image {name} there is missing {state.missing}"
    for row in client.content.walk():
        Digest.of(client.content.read(row.digest))


def _has_no(name: str, client: orlop.Client) -> None:
    assert name not in [image.name for image in client.images.list()]


def _create_image(stage: Stage) -> None:
    """Of a blob that is not there, which is allowed."""
    target = Descriptor(media_type="application/octet-stream", digest=Digest(DIGEST), size=len(BLOB))
    with stage.client() as client:
        with contextlib.suppress(AlreadyExistsError):
            client.images.create(NAME, target)
        stage.promise("an image", lambda client: client.images.get(NAME))
        client.images.label(NAME, {"colour": "blue"})
    stage.promise("its label", _labelled)


def _labelled(client: orlop.Client) -> None:
    assert client.images.get(NAME).labels == {"colour": "blue"}


def _delete_image(stage: Stage) -> None:
    """And all that only it held, by the collection that the call waits for."""
    stage.withdraw("an image")
    name = stage.image.reference
    with stage.client() as client:
        try:
            client.images.delete(name, synchronous=True)
        except NotFoundError:
            stage.collect()
    stage.promise("no image", partial(_has_no, name))
    stage.promise("no content", _has_no_content)


def _has_no_content(client: orlop.Client) -> None:
    assert not [one.digest for one in client.content.walk()]


def _garbage(stage: Stage) -> None:
    """What a lease holds: blobs, an ingest, snapshots one on the other."""
    with stage.client() as client:
        client.leases.create("garbage")
        held = client.with_lease("garbage")
        for number in range(3):
            held.content.write(f"blob-{number}", b"blob %d" % number)
        with held.content.writer("half") as writer:
            writer.write(b"half of it")
        snapshots = held.snapshots()
        snapshots.prepare("bottom")
        snapshots.commit("base", "bottom")
        snapshots.prepare("top", "base")


def _collection(stage: Stage) -> None:
    with stage.client() as client:
        try:
            client.leases.delete("garbage", synchronous=True)
        except NotFoundError:
            stage.collect()
    stage.promise("nothing is left", _is_empty)


def _is_empty(client: orlop.Client) -> None:
    _has_no_content(client)
    assert not client.content.ingests()
    assert not client.snapshots().list()
    assert not client.images.list()


# -- namespaces -------------------------------------------------------------------------------------------------------


def _namespace(client: orlop.Client) -> bool:
    return NAMESPACE in [one.name for one in client.namespaces.list()]


def _small_namespace(stage: Stage) -> None:
    with stage.client() as client:
        client.namespaces.create(NAMESPACE, {"colour": "blue"})
        held = client.with_lease(client.leases.create(LEASE).id)
        with held.content.writer("half") as writer:
            writer.write(b"half of it")
    stage.promise("a namespace", _has_namespace)


def _has_namespace(client: orlop.Client) -> None:
    assert _namespace(client)


def _has_no_namespace(client: orlop.Client) -> None:
    assert not _namespace(client)


def _delete_namespace(stage: Stage) -> None:
    stage.withdraw("a namespace")
    with stage.client() as client, contextlib.suppress(NotFoundError):
        client.namespaces.delete(NAMESPACE)
    stage.promise("no namespace", _has_no_namespace)


def _full_namespace(stage: Stage) -> None:
    import_image(stage)
    _garbage(stage)
    with stage.client() as client:
        client.images.get(stage.image.reference).unpack()


def _cascade(stage: Stage) -> None:
    stage.withdraw("an image")
    with stage.client() as client:
        client.remove_namespace()
    stage.promise("no namespace", _has_no_namespace)


# -- the start ---------------------------------------------------------------------------------------------------------


def _leftovers(stage: Stage) -> None:
    """What crashes leave: a blob and an ingest without rows, a blob that a lost transaction took, no reserve."""
    _write_root(stage)
    stage.kill()
    root = stage.daemon.root
    algorithm, _, name = DIGEST.partition(":")
    (root / "content/blobs" / algorithm / str(Digest.of(b"stray")).partition(":")[2]).write_bytes(b"stray")
    (root / "content/ingest/stray").mkdir()
    (root / "snapshots/overlayfs/77/fs").mkdir(parents=True)
    (root / "trash/0~").write_bytes(b"not from anywhere")
    (root / "content/blobs" / algorithm / name).rename(root / f"trash/ff~content%2Fblobs%2F{algorithm}%2F{name}")
    (root / "meta.db.reserve").unlink()


def _write_root(stage: Stage) -> None:
    with stage.client() as client:
        client.content.write("blob", BLOB, labels=ROOT)
    stage.promise("a blob", _has_blob)


def _start(stage: Stage) -> None:
    stage.start()


def _old_schema(stage: Stage) -> None:
    """The database of the first release, with an image in it."""
    stage.kill()
    for name in os.listdir(stage.daemon.root):
        if name.startswith("meta.db"):
            (stage.daemon.root / name).unlink()
    with contextlib.closing(sqlite3.connect(stage.daemon.root / "meta.db")) as db:
        db.executescript(f"PRAGMA journal_mode=WAL; {schema.MIGRATIONS[0]} PRAGMA user_version=1;")
        owned = "created_at, updated_at, used_at"
        db.execute(f"INSERT INTO namespaces (name, {owned}) VALUES (?, 1, 1, 1)", (NAMESPACE,))
        db.execute(
            f"INSERT INTO images (namespace, name, media_type, digest, target_size, {owned})"
            " VALUES (?, ?, 'application/octet-stream', ?, 200000, 1, 1, 1)",
            (NAMESPACE, NAME, DIGEST),
        )
        db.commit()
    stage.promise("an old image", lambda client: client.images.get(NAME))


def _no_database(stage: Stage) -> None:
    stage.kill()
    for name in os.listdir(stage.daemon.root):
        if name.startswith("meta.db"):
            (stage.daemon.root / name).unlink()


def _full_disk(stage: Stage) -> None:
    """A blob on a small file system that has no space for another row."""
    stage.kill()
    if os.path.ismount(stage.daemon.root):
        residue.unmount(os.fspath(stage.daemon.root))
    stage.daemon.root.mkdir(exist_ok=True)
    mount_all([Mount(type="tmpfs", source="tmpfs", options=("size=16m",))], os.fspath(stage.daemon.root))
    stage.start()
    _write_root(stage)
    with open(stage.daemon.root / FILLER, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with stage.client() as client, contextlib.suppress(ResourceExhaustedError):
        while True:
            client.leases.create(expires_in=timedelta(days=1))


def _delete_on_full_disk(stage: Stage) -> None:
    _delete_content(stage)
    (stage.daemon.root / FILLER).unlink(missing_ok=True)


OPERATIONS: Final = (
    Operation(name="write content", store="content", prepare=lease, perform=_write),
    Operation(name="share content", store="content", prepare=_written, perform=_share),
    Operation(name="refused commit", store="content", prepare=lease, perform=_refused),
    Operation(name="delete content", store="content", prepare=_write_root, perform=_delete_content),
    Operation(
        name="delete content on a full disk",
        store="content",
        prepare=_full_disk,
        perform=_delete_on_full_disk,
        apart=True,
    ),
    Operation(name="write content elsewhere", store="remote", prepare=lease, perform=_write, where=ELSEWHERE),
    Operation(name="share content elsewhere", store="remote", prepare=_written, perform=_share, where=ELSEWHERE),
    Operation(name="read content elsewhere", store="remote", prepare=_write_root, perform=_read, where=ELSEWHERE),
    Operation(
        name="delete content elsewhere", store="remote", prepare=_write_root, perform=_delete_content, where=ELSEWHERE
    ),
    Operation(name="import elsewhere", store="remote", perform=import_image, where=ELSEWHERE),
    Operation(name="collection elsewhere", store="remote", prepare=_garbage, perform=_collection, where=ELSEWHERE),
    Operation(name="import", store="images", perform=import_image),
    Operation(name="create image", store="images", perform=_create_image),
    Operation(name="delete image", store="images", prepare=import_image, perform=_delete_image),
    Operation(name="collection", store="metadata", prepare=_garbage, perform=_collection),
    Operation(name="delete namespace", store="metadata", prepare=_small_namespace, perform=_delete_namespace),
    Operation(name="empty namespace", store="metadata", prepare=_full_namespace, perform=_cascade),
    Operation(name="sweep", store="metadata", prepare=_leftovers, perform=_start, restarts=True),
    Operation(name="migration", store="metadata", prepare=_old_schema, perform=_start, restarts=True),
    Operation(name="new database", store="metadata", prepare=_no_database, perform=_start, restarts=True),
)
