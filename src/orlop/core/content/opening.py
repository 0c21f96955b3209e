"""The steps of opening a writer: the lock of its ref, the room for what is to come, the transaction, the bytes."""

import secrets
from typing import TYPE_CHECKING

from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError
from orlop.core.content import SharingPolicy
from orlop.core.content.writer import ContentWriter
from orlop.core.metadata import Transaction, leases
from orlop.core.metadata import content as rows
from orlop.core.metadata.rows import check_key
from orlop.oci.digest import Digest

if TYPE_CHECKING:
    from orlop.core.content.store import ContentStore


class Opening:
    """See `orlop.core.content.Store.writer` for the arguments, and for what `run` raises."""

    def __init__(
        self,
        store: "ContentStore",
        namespace: str,
        ref: str,
        *,
        total: int,
        expected: str,
        lease: str,
        owner_uid: int | None,
    ) -> None:
        check_key(ref, "ref")
        self._store = store
        self._namespace = namespace
        self._ref = ref
        self._total = max(total, 0)
        self._announced = (total, expected)
        self._expected = _digest_or_none(expected)
        self._lease = lease
        self._owner_uid = owner_uid
        self._shared: int | None = None
        self._key = secrets.token_hex(16)

    async def run(self) -> ContentWriter:
        """Open it; the ref is unlocked again if that fails."""
        store, namespace, ref = self._store, self._namespace, self._ref
        store.try_lock(namespace, ref)
        try:
            store.announce(namespace, ref, self._lease, *self._announced)
            await self._look()
            row = await store.db.write(self._record)
            if row is None:
                raise AlreadyExistsError(f"content {self._expected}")
            return await self._open(row)
        except BaseException:
            store.unlock(namespace, ref)
            raise

    async def _look(self) -> None:
        """Know whether the expected bytes are there, if anybody has them."""
        size = None if self._expected is None else rows.blob_size(self._store.db, self._expected)
        if self._expected is not None and size is not None:
            await self._store.blobs.look(self._expected, size)

    def _record(self, tx: Transaction) -> rows.IngestRow | None:
        """The ingest's row; None if there is nothing to write, since the namespace has the blob."""
        if self._expected is not None and rows.has(tx, self._namespace, self._expected):
            leases.hold(tx, self._namespace, self._lease, leases.CONTENT, self._expected)
            # Where they are not, the bytes were lost, or were wrong and are thrown away: who brings them writes them.
            size = rows.blob_size(tx, self._expected)
            if size is not None and not self._store.blobs.flaw(self._expected, size):
                return None
        self._shared = self._shareable(tx)
        self._make_way(tx)
        tx.ensure_namespace(self._namespace)
        held = leases.hold(tx, self._namespace, self._lease, leases.INGESTS, self._ref)
        row = rows.open_ingest(
            tx,
            self._namespace,
            self._ref,
            key=self._key,
            expected=self._expected if self._expected is not None and self._shared is not None else "",
            total=self._total,
            owner_uid=self._owner_uid,
            held=held,
        )
        self._store.allowances.open(tx, row, max(self._total, self._shared or 0))
        return row

    def _make_way(self, tx: Transaction) -> None:
        """Let go of what the ref's ingest has and this opening does not want.

        Who names another total means other bytes than those that are there. Source: resumeStatus.
        """
        old = rows.find_ingest(tx, self._namespace, self._ref)
        if old is None:
            return
        if self._total and old.total and self._total != old.total:
            self._store.remove_ingest(tx, self._namespace, self._ref)
        elif old.expected and (self._shared is None or old.expected != self._expected):
            tx.execute("UPDATE ingests SET expected = '' WHERE namespace = ? AND ref = ?", (self._namespace, self._ref))
            self._store.drop_claim(tx, old.expected)

    def _shareable(self, tx: Transaction) -> int | None:
        """The size of the expected blob if this namespace may have it by naming it."""
        if self._expected is None:
            return None
        size = rows.blob_size(tx, self._expected)
        if size is None or (self._total and self._total != size) or self._store.blobs.flaw(self._expected, size):
            return None
        if self._store.policy is SharingPolicy.ISOLATED and not rows.is_lent(tx, self._expected):
            return None
        return size

    async def _open(self, row: rows.IngestRow) -> ContentWriter:
        """Open the bytes and make the writer, which has the lock from then on."""
        algorithm = "sha256" if self._expected is None else self._expected.algorithm
        total = row.total or self._total
        ingest = self._store.blobs.ingest(row.key, f"{row.namespace}/{row.ref}", algorithm=algorithm, total=total)
        fresh = row.key == self._key
        shared = self._shared
        if shared is not None and not fresh and await ingest.exists():
            shared = None
        if shared is None:
            await ingest.open(fresh=fresh)
        writer = ContentWriter(
            self._store, row, ingest=ingest, total=total, lease=self._lease, owner_uid=self._owner_uid, shared=shared
        )
        self._store.register(row.namespace, row.ref, writer)
        return writer


def _digest_or_none(text: str) -> Digest | None:
    """An expectation that is no digest names no blob; that the bytes do not have it is said at the commit."""
    try:
        return Digest.parse(text)
    except InvalidArgumentError:
        return None
