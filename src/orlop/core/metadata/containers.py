"""The rows of containers.

Functions that write take a `Transaction`, so that a service can publish its event with them.

Source: containerd's core/metadata/containers.go, its rules and its texts.
"""

import dataclasses
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from orlop.base import fieldmask, identifiers
from orlop.base import filters as filter_language
from orlop.base import labels as label_rules
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError
from orlop.base.quoting import quote
from orlop.core.containers import Container, Runtime
from orlop.core.metadata.database import Database, Transaction
from orlop.core.metadata.rows import (
    PAGE_SIZE,
    decode_extensions,
    decode_map,
    encode_extensions,
    encode_map,
    merge_extensions,
)
from orlop.core.metadata.schema import RESTARTED

_FIELDS: Final = ("labels", "spec", "extensions", "image", "snapshotkey")
_PAGE: Final = "SELECT * FROM containers WHERE namespace = ? AND id > ? ORDER BY id LIMIT ?"
_RESTART_LABEL: Final = "containerd.io/restart.status"
_RESTARTED: Final = f"SELECT * FROM containers WHERE {RESTARTED} ORDER BY namespace, id"
_BY_ID: Final = "SELECT * FROM containers WHERE namespace = ? AND id = ?"


class ContainerStore:
    """The containers of all namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, namespace: str, container_id: str) -> Container:
        """A container. Raises NotFoundError."""
        row = self._db.one(_BY_ID, (namespace, container_id))
        if row is None:
            raise NotFoundError(f"container {quote(container_id)} in namespace {quote(namespace)}")
        return _container(row)

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Container]:
        """Containers in the order of their ids; fields are `id`, `image`, `runtime.name`, `labels.<key>`.

        Raises:
            InvalidArgumentError: a filter cannot be parsed.
        """
        return [container for page in self.pages(namespace, filters) for container in page]

    def pages(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Sequence[Container]]:
        """`list` in parts, so that other work can come between them; each part is read when it is asked for.

        Raises:
            InvalidArgumentError: a filter cannot be parsed; at once, not when iterating.
        """
        return self._pages(namespace, filter_language.parse_all(filters))

    def _pages(self, namespace: str, matches: filter_language.Filter) -> Iterator[Sequence[Container]]:
        after = ""
        while True:
            rows = self._db.all(_PAGE, (namespace, after, PAGE_SIZE))
            found = (_container(row) for row in rows)
            yield [container for container in found if matches.always or matches(_adapt(container))]
            if len(rows) < PAGE_SIZE:
                return
            after = rows[-1]["id"]

    def restarted(self) -> Sequence[tuple[str, Container]]:
        """The containers of all namespaces with the restart monitor's label, with their namespaces. Reads no other."""
        found = [(row["namespace"], _container(row)) for row in self._db.all(_RESTARTED)]
        return [(namespace, container) for namespace, container in found if _RESTART_LABEL in container.labels]

    def create(
        self, tx: Transaction, namespace: str, container: Container, *, owner_uid: int | None = None
    ) -> Container:
        """Add a container; returns it with its times.

        Raises:
            AlreadyExistsError, InvalidArgumentError
        """
        try:
            _validate(container)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"create container failed validation: {error.text}") from None
        tx.ensure_namespace(namespace)
        created = dataclasses.replace(container, labels=_kept(container.labels), created_at=tx.now, updated_at=tx.now)
        try:
            tx.execute(
                "INSERT INTO containers (namespace, id, image, runtime_name, runtime_options, spec, snapshotter,"
                " snapshot_key, sandbox, extensions, owner_uid, created_at, updated_at, used_at, labels)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    namespace,
                    created.id,
                    created.image,
                    created.runtime.name,
                    created.runtime.options,
                    created.spec,
                    created.snapshotter,
                    created.snapshot_key,
                    created.sandbox,
                    encode_extensions(created.extensions),
                    owner_uid,
                    tx.now,
                    tx.now,
                    tx.now,
                    encode_map(created.labels),
                ),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExistsError(f"container {quote(container.id)}") from None
        tx.quotas.added_container(tx, namespace)
        tx.mutated()
        return created

    def update(self, tx: Transaction, namespace: str, given: Container, paths: Sequence[str] = ()) -> Container:
        """Take over what `paths` name, or all that can be changed; returns the container as it is then.

        Raises:
            NotFoundError
            InvalidArgumentError: a path names what cannot be changed, a whole update differs there, or the result is
                not valid.
        """
        if not given.id:
            raise InvalidArgumentError("must specify a container id")
        row = tx.one(_BY_ID, (namespace, given.id))
        if row is None:
            raise NotFoundError(f"container {quote(given.id)}")
        current = _container(row)
        if not paths:
            if current.snapshotter != given.snapshotter:
                raise InvalidArgumentError("container.Snapshotter field is immutable")
            if current.runtime.name != given.runtime.name:
                raise InvalidArgumentError("container.Runtime.Name field is immutable")
        updated = dataclasses.replace(_merge(current, given, paths or _FIELDS), updated_at=tx.now)
        try:
            _validate(updated)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"update failed validation: {error.text}") from None
        tx.execute(
            "UPDATE containers SET image = ?, spec = ?, snapshot_key = ?, extensions = ?, labels = ?, updated_at = ?"
            " WHERE namespace = ? AND id = ?",
            (
                updated.image,
                updated.spec,
                updated.snapshot_key,
                encode_extensions(updated.extensions),
                encode_map(updated.labels),
                tx.now,
                namespace,
                given.id,
            ),
        )
        tx.mutated()
        return updated

    def delete(self, tx: Transaction, namespace: str, container_id: str) -> None:
        """Remove a container, which lets go of its snapshot. Raises NotFoundError."""
        found = tx.execute("DELETE FROM containers WHERE namespace = ? AND id = ?", (namespace, container_id)).rowcount
        if not found:
            raise NotFoundError(f"container {container_id}")
        tx.mutated(deletion=True)


def _merge(current: Container, given: Container, paths: Sequence[str]) -> Container:
    what = quote(current.id)
    changes: dict[str, Any] = {}  # Any: fields of different types by name
    for path in fieldmask.parse(paths, fields=_FIELDS, maps=("labels", "extensions"), what=what):
        match path.field:
            case "labels":
                labels = changes.get("labels", current.labels)
                changes["labels"] = fieldmask.merge(labels, given.labels, path.key)
            case "extensions":
                extensions = changes.get("extensions", current.extensions)
                changes["extensions"] = merge_extensions(extensions, given.extensions, path.key)
            case "snapshotkey":
                changes["snapshot_key"] = given.snapshot_key
            case name:
                changes[name] = getattr(given, name)
    return dataclasses.replace(current, **changes)


def _validate(container: Container) -> None:
    try:
        identifiers.validate(container.id)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"container.ID: {error.text}") from None
    if "" in container.extensions:
        raise InvalidArgumentError("container.Extension keys must not be zero-length")
    try:
        label_rules.validate_all(container.labels)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"containers.Labels: {error.text}") from None
    if not container.runtime.name:
        raise InvalidArgumentError("container.Runtime.Name must be set")
    if container.spec is None:
        raise InvalidArgumentError("container.Spec must be set")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgumentError("container.Snapshotter must be set if container.SnapshotKey is set")


def _kept(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if value}


def _container(row: sqlite3.Row) -> Container:
    return Container(
        id=row["id"],
        labels=decode_map(row["labels"]),
        image=row["image"],
        runtime=Runtime(name=row["runtime_name"], options=row["runtime_options"]),
        spec=row["spec"],
        snapshotter=row["snapshotter"],
        snapshot_key=row["snapshot_key"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        extensions=decode_extensions(row["extensions"]),
        sandbox=row["sandbox"],
    )


def _adapt(container: Container) -> filter_language.Adaptor:
    """Source: adaptContainer in core/metadata/adaptors.go."""
    return filter_language.adapt(
        {
            "id": container.id,
            "image": container.image,
            "runtime": {"name": container.runtime.name} if container.runtime.name else None,
            "labels": container.labels,
        }
    )
