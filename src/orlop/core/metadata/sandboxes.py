"""The rows of sandboxes.

Source: containerd's core/metadata/sandbox.go, its rules and its texts.
"""

import dataclasses
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

from orlop.base import fieldmask, identifiers
from orlop.base import filters as filter_language
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError
from orlop.base.quoting import quote
from orlop.core.metadata.database import Database, Transaction
from orlop.core.metadata.rows import (
    PAGE_SIZE,
    decode_extensions,
    decode_map,
    encode_extensions,
    encode_map,
    merge_extensions,
)
from orlop.core.sandboxes import Runtime, Sandbox

_FIELDS: Final = ("labels", "extensions", "spec", "runtime")
_PAGE: Final = "SELECT * FROM sandboxes WHERE namespace = ? AND id > ? ORDER BY id LIMIT ?"
_BY_ID: Final = "SELECT * FROM sandboxes WHERE namespace = ? AND id = ?"
_ANY: Final = "SELECT 1 FROM sandboxes WHERE namespace = ? LIMIT 1"


class SandboxStore:
    """The sandboxes of all namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, namespace: str, sandbox_id: str) -> Sandbox:
        """A sandbox. Raises NotFoundError."""
        row = self._db.one(_BY_ID, (namespace, sandbox_id))
        if row is None:
            raise _absent(self._db, namespace, sandbox_id)
        return _sandbox(row)

    def pages(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Sequence[Sandbox]]:
        """Sandboxes in the order of their ids, in parts; fields are `id` and `labels.<key>`.

        Raises:
            InvalidArgumentError: a filter cannot be parsed; at once, not when iterating.
        """
        return self._pages(namespace, filter_language.parse_all(filters))

    def _pages(self, namespace: str, matches: filter_language.Filter) -> Iterator[Sequence[Sandbox]]:
        after = ""
        while True:
            rows = self._db.all(_PAGE, (namespace, after, PAGE_SIZE))
            found = (_sandbox(row) for row in rows)
            yield [sandbox for sandbox in found if matches.always or matches(_adapt(sandbox))]
            if len(rows) < PAGE_SIZE:
                return
            after = rows[-1]["id"]

    def create(self, tx: Transaction, namespace: str, sandbox: Sandbox, *, owner_uid: int | None = None) -> Sandbox:
        """Add a sandbox; returns it with its times.

        Raises:
            AlreadyExistsError, InvalidArgumentError
        """
        try:
            _validate(sandbox)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"failed to validate sandbox: {error.text}") from None
        tx.ensure_namespace(namespace)
        created = dataclasses.replace(
            sandbox,
            labels={key: value for key, value in sandbox.labels.items() if value},
            created_at=tx.now,
            updated_at=tx.now,
        )
        try:
            tx.execute(
                "INSERT INTO sandboxes (namespace, id, runtime_name, runtime_options, spec, sandboxer, extensions,"
                " owner_uid, created_at, updated_at, used_at, labels) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    namespace,
                    created.id,
                    created.runtime.name,
                    created.runtime.options,
                    created.spec,
                    created.sandboxer,
                    encode_extensions(created.extensions),
                    owner_uid,
                    tx.now,
                    tx.now,
                    tx.now,
                    encode_map(created.labels),
                ),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExistsError(f"write error: sandbox bucket {quote(sandbox.id)} already exists") from None
        tx.mutated()
        return created

    def update(self, tx: Transaction, namespace: str, given: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
        """Take over what `paths` name, or all that can be changed; returns the sandbox as it is then.

        Raises:
            NotFoundError
            InvalidArgumentError: a path names what cannot be changed, or a whole update names another runtime.
        """
        row = tx.one(_BY_ID, (namespace, given.id))
        if row is None:
            raise _absent(tx, namespace, given.id)
        current = _sandbox(row)
        if not paths and current.runtime.name != given.runtime.name:
            raise InvalidArgumentError("sandbox.Runtime.Name field is immutable")
        updated = dataclasses.replace(_merge(current, given, paths or _FIELDS), updated_at=tx.now)
        tx.execute(
            "UPDATE sandboxes SET runtime_name = ?, runtime_options = ?, spec = ?, extensions = ?, labels = ?,"
            " updated_at = ? WHERE namespace = ? AND id = ?",
            (
                updated.runtime.name,
                updated.runtime.options,
                updated.spec,
                encode_extensions(updated.extensions),
                encode_map(updated.labels),
                tx.now,
                namespace,
                given.id,
            ),
        )
        tx.mutated()
        return updated

    def delete(self, tx: Transaction, namespace: str, sandbox_id: str) -> None:
        """Remove a sandbox, which lets go of what its labels refer to. Raises NotFoundError."""
        if tx.one(_ANY, (namespace,)) is None:
            raise NotFoundError("no sandbox buckets")
        if not tx.execute("DELETE FROM sandboxes WHERE namespace = ? AND id = ?", (namespace, sandbox_id)).rowcount:
            raise NotFoundError(f"failed to delete sandbox {quote(sandbox_id)}")
        tx.mutated(deletion=True)


def _absent(source: Database | Transaction, namespace: str, sandbox_id: str) -> NotFoundError:
    """In containerd's words, which depend on whether the namespace has any."""
    if source.one(_ANY, (namespace,)) is None:
        return NotFoundError("no sandbox buckets")
    return NotFoundError(f"bucket {quote(sandbox_id)} not found")


def _validate(sandbox: Sandbox) -> None:
    try:
        identifiers.validate(sandbox.id)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"invalid sandbox ID: {error.text}") from None


def _merge(current: Sandbox, given: Sandbox, paths: Sequence[str]) -> Sandbox:
    what = f"sandbox {quote(current.id)}"
    changes: dict[str, Any] = {}  # Any: fields of different types by name
    for path in fieldmask.parse(paths, fields=_FIELDS, maps=("labels", "extensions"), what=what):
        match path.field:
            case "labels":
                labels = changes.get("labels", current.labels)
                changes["labels"] = fieldmask.merge(labels, given.labels, path.key)
            case "extensions":
                extensions = changes.get("extensions", current.extensions)
                changes["extensions"] = merge_extensions(extensions, given.extensions, path.key)
            case name:
                changes[name] = getattr(given, name)
    return dataclasses.replace(current, **changes)


def _sandbox(row: sqlite3.Row) -> Sandbox:
    return Sandbox(
        id=row["id"],
        labels=decode_map(row["labels"]),
        runtime=Runtime(name=row["runtime_name"], options=row["runtime_options"]),
        spec=row["spec"],
        sandboxer=row["sandboxer"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        extensions=decode_extensions(row["extensions"]),
    )


def _adapt(sandbox: Sandbox) -> filter_language.Adaptor:
    """Source: adaptSandbox in core/metadata/adaptors.go."""
    return filter_language.adapt({"id": sandbox.id, "labels": sandbox.labels})
