"""What a namespace may have at most, and the checks that hold it to that.

Limits come from the configuration and, over it, from the namespace's labels, which only root's socket may set. Checks
run inside the transaction that adds to what they count; as one thread runs all of them, two creations at once cannot
both take the last place.

    containers    rows of containers
    bytes         content, each blob that the namespace has a record of, committed snapshots as measured then, and what
                  the content store says of ingests
    memory        limits of tasks, see `orlop.core.runtime.memory`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from orlop.base.errdefs import InvalidArgumentError, ResourceExhaustedError
from orlop.base.quoting import quote
from orlop.core.metadata.rows import decode_map

if TYPE_CHECKING:
    from orlop.core.metadata.database import Database, Transaction

CONTAINERS: Final = "containers"
BYTES: Final = "bytes"
MEMORY: Final = "memory"
KINDS: Final = (CONTAINERS, BYTES, MEMORY)
LABEL: Final = "orlop.dev/quota."
ANY: Final = "*"


@dataclass(kw_only=True, slots=True)
class Quota:
    """Limits of one namespace in the configuration; 0 for none."""

    containers: int = 0
    bytes: int = 0
    memory: int = 0


@dataclass(kw_only=True, slots=True)
class Quotas:
    """The configured limits by namespace; `*` is that of each which is not named.

    Attributes:
        unfinished: the bytes of a namespace's ingests; whoever keeps those sets it.
    """

    by_namespace: Mapping[str, Quota] = field(default_factory=dict)
    unfinished: "Callable[[Transaction, str], int]" = lambda _tx, _namespace: 0

    def limit(self, source: "Database | Transaction", namespace: str, kind: str) -> int:
        """The limit in force; 0 for none."""
        row = source.one("SELECT labels FROM namespaces WHERE name = ?", (namespace,))
        if row is not None and LABEL in row["labels"]:
            text = decode_map(row["labels"]).get(f"{LABEL}{kind}", "")
            if text:
                return int(text)
        configured = self.by_namespace.get(namespace) or self.by_namespace.get(ANY)
        return int(getattr(configured, kind)) if configured is not None else 0

    def added_container(self, tx: "Transaction", namespace: str) -> None:
        """A container has been added in this transaction.

        Raises:
            ResourceExhaustedError: that is too many; the text has the quota, its limit and the use before.
        """
        limit = self.limit(tx, namespace, CONTAINERS)
        if not limit:
            return
        row = tx.one("SELECT count(*) AS used FROM containers WHERE namespace = ?", (namespace,))
        used = int(row["used"]) if row is not None else 0
        if used > limit:
            exceeded(namespace, CONTAINERS, limit, used - 1, 1)

    def added_bytes(self, tx: "Transaction", namespace: str, more: int) -> None:
        """So many bytes have been added in this transaction, to content, ingests or snapshots.

        Raises:
            ResourceExhaustedError: as `added_container`.
        """
        if more <= 0:
            return
        limit = self.limit(tx, namespace, BYTES)
        if not limit:
            return
        used = self._used_bytes(tx, namespace)
        if used > limit:
            exceeded(namespace, BYTES, limit, used - more, more)

    def bytes_in_use(self, tx: "Transaction", namespace: str) -> tuple[int, int] | None:
        """The limit of bytes and what of it is in use, which may be more; None without a limit."""
        limit = self.limit(tx, namespace, BYTES)
        return (limit, self._used_bytes(tx, namespace)) if limit else None

    def _used_bytes(self, tx: "Transaction", namespace: str) -> int:
        return used_bytes(tx, namespace) + self.unfinished(tx, namespace)


def used_bytes(source: "Database | Transaction", namespace: str) -> int:
    """What counts of content and snapshots. Blobs that others have too count in full: others' doings change nothing."""
    row = source.one(
        "SELECT (SELECT coalesce(sum(b.size_bytes), 0) FROM content c JOIN blobs b ON b.digest = c.digest"
        " WHERE c.namespace = ?1)"
        " + (SELECT coalesce(sum(size_bytes), 0) FROM snapshots WHERE namespace = ?1) AS used",
        (namespace,),
    )
    return int(row["used"]) if row is not None else 0


def exceeded(namespace: str, kind: str, limit: int, used: int, more: int) -> NoReturn:
    """Refuse what would go over a limit."""
    raise ResourceExhaustedError(
        f"namespace {quote(namespace)}: quota {kind}: limit {limit}, in use {used}, asked for {more}",
        hint="remove what is not needed, or have the quota raised on root's socket",
    )


def validate(labels: Mapping[str, str]) -> None:
    """Judge the labels of a namespace that set limits.

    Raises:
        InvalidArgumentError: a label of no quota that there is, or a value that is no number of 0 or more.
    """
    for key, value in labels.items():
        if not key.startswith(LABEL) or not value:
            continue
        if key.removeprefix(LABEL) not in KINDS:
            raise InvalidArgumentError(f"label {key}: there is no such quota, only {', '.join(KINDS)}")
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise InvalidArgumentError(f"label {key}: {quote(value)} must be a whole number")
