"""The schema of meta.db, and how it came to be.

Every table that holds what users own has these columns, so that quotas, `df` and audits need no migration that guesses:

    namespace   TEXT     who pays for it
    owner_uid   INTEGER  uid of the client that made it, NULL where the door does not show it
    size_bytes  INTEGER  bytes on disk that are unique to it; 0 for pure metadata
    created_at, updated_at, used_at   INTEGER  nanoseconds since the epoch, UTC; used_at is refreshed lazily

Labels, annotations and extensions are JSON objects of strings (extensions: base64 of a serialised Any).

    namespaces        name                          labels
    images            namespace, name               target (media_type, digest, target_size, annotations), labels
    containers        namespace, id                 image, runtime, spec, snapshotter + key, sandbox, labels, extensions
    sandboxes         namespace, id                 runtime, spec, sandboxer, labels, extensions
    blobs             digest                        the bytes in content/blobs, once for all namespaces
    content           namespace, digest             a namespace's right to a blob, with its labels
    ingests           namespace, ref                an unfinished write; its bytes lie in content/ingest/<key>
    snapshots         number                        namespace + snapshotter + name; parent is another row's number;
                                                    layer is set where the bytes are a layer's, else origin where
                                                    an unpacker wrote them: the blob, as JSON
    layers            number                        an unpacked layer that snapshots of any namespace consist of
    leases            namespace, id                 labels (expiry among them)
    lease_resources   namespace, lease, type, id    what a lease holds: content, snapshots/<name>, ingests, images
    mounts            number                        namespace + name of an activation; what was mounted, what is left
    trash             path                          what is to be unlinked later, below <root>/trash
    facts             key                           the server's uuid and the like

`user_version` counts the migrations below. A migration is never edited once it has been released.
"""

from typing import Final

_OWNED: Final = """
    owner_uid INTEGER,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}'
"""

_FIRST: Final = f"""
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    {_OWNED}
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    digest TEXT NOT NULL,
    target_size INTEGER NOT NULL,
    annotations TEXT NOT NULL DEFAULT '{{}}',
    {_OWNED},
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    id TEXT NOT NULL,
    image TEXT NOT NULL,
    runtime_name TEXT NOT NULL,
    runtime_options BLOB,
    spec BLOB,
    snapshotter TEXT NOT NULL,
    snapshot_key TEXT NOT NULL,
    sandbox TEXT NOT NULL DEFAULT '',
    extensions TEXT NOT NULL DEFAULT '{{}}',
    {_OWNED},
    PRIMARY KEY (namespace, id)
) STRICT;

CREATE TABLE sandboxes (
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    id TEXT NOT NULL,
    runtime_name TEXT NOT NULL,
    runtime_options BLOB,
    spec BLOB,
    sandboxer TEXT NOT NULL DEFAULT '',
    extensions TEXT NOT NULL DEFAULT '{{}}',
    {_OWNED},
    PRIMARY KEY (namespace, id)
) STRICT;

CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE content (
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    digest TEXT NOT NULL REFERENCES blobs (digest),
    {_OWNED},
    PRIMARY KEY (namespace, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX content_digest ON content (digest);

CREATE TABLE ingests (
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    ref TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE,
    expected TEXT NOT NULL DEFAULT '',
    total INTEGER NOT NULL DEFAULT 0,
    {_OWNED},
    PRIMARY KEY (namespace, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshots (
    number INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    snapshotter TEXT NOT NULL,
    name TEXT NOT NULL,
    parent INTEGER REFERENCES snapshots (number),
    kind INTEGER NOT NULL,
    inodes INTEGER NOT NULL DEFAULT 0,
    synced_at INTEGER,
    {_OWNED},
    UNIQUE (namespace, snapshotter, name)
) STRICT;

CREATE INDEX snapshots_parent ON snapshots (parent);

CREATE TABLE leases (
    namespace TEXT NOT NULL REFERENCES namespaces (name),
    id TEXT NOT NULL,
    {_OWNED},
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease_resources (
    namespace TEXT NOT NULL,
    lease TEXT NOT NULL,
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (namespace, lease, type, id),
    FOREIGN KEY (namespace, lease) REFERENCES leases (namespace, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE trash (
    path TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE facts (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""

# A row lives as long as its mounts, so it does not keep its namespace; `completed_at` is NULL while they are performed.
# Numbers never come again: they name directories that a crash may leave.
_MOUNTS: Final = f"""
CREATE TABLE mounts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    active TEXT NOT NULL DEFAULT '[]',
    system TEXT NOT NULL DEFAULT '[]',
    lease TEXT NOT NULL DEFAULT '',
    completed_at INTEGER,
    {_OWNED},
    UNIQUE (namespace, name)
) STRICT;
"""

# The restart monitor looks for these every few seconds; without the index it would read every container with its spec.
# SQLite takes the index for a query whose condition reads the same.
RESTARTED: Final = """instr(labels, '"containerd.io/restart.status":')"""
# Who deletes a blob asks whether an ingest claims it.
_INDEXES: Final = f"""
CREATE INDEX containers_restarted ON containers (namespace, id) WHERE {RESTARTED};
CREATE INDEX ingests_expected ON ingests (expected);
"""

# `below` has the numbers of the bytes that the layer was unpacked onto, the nearest first: "9,7". `synced_at` is as in
# `snapshots`. Numbers are taken from those of the snapshots.
_LAYERS: Final = """
CREATE TABLE layers (
    number INTEGER PRIMARY KEY,
    snapshotter TEXT NOT NULL,
    below TEXT NOT NULL,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    diff_id TEXT NOT NULL,
    tar_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL,
    synced_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX layers_digest ON layers (snapshotter, digest);
ALTER TABLE snapshots ADD COLUMN layer INTEGER REFERENCES layers (number);
CREATE INDEX snapshots_layer ON snapshots (layer);
"""

# What a loss of power takes of an unpacked layer is unpacked again from here.
_ORIGINS: Final = """
ALTER TABLE snapshots ADD COLUMN origin TEXT;
"""

MIGRATIONS: Final[tuple[str, ...]] = (_FIRST, _MOUNTS, _INDEXES, _LAYERS, _ORIGINS)
VERSION: Final = len(MIGRATIONS)
