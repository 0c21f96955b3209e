"""The check of a content store whose bytes lie elsewhere: every row has its bytes there, and they have their digest.

    blob-missing, blob-truncated, blob-corrupt      as of files here; see docs/fsck.md

What lies there without a row is no finding: the sweep after a start removes it. Reading all bytes takes them through
the socket; a quick check asks for their sizes only.
"""

from collections.abc import Iterator
from typing import Final

from orlop.base.errdefs import DataLossError
from orlop.core.content.remote import RemoteBlobs
from orlop.core.fsck import Finding
from orlop.core.fsck.checks import Order
from orlop.core.metadata import Database
from orlop.oci.digest import Digest, new_hash

PAGE: Final = 256
_READ_BYTES: Final = 4 << 20


class ElsewhereCheck:
    """See `orlop.core.fsck.Check`."""

    what = "content elsewhere"

    def __init__(self, db: Database, blobs: RemoteBlobs) -> None:
        self._db = db
        self._blobs = blobs

    def run(self, order: Order) -> Iterator[Finding]:
        there = order.wait(self._there())
        after = ""
        while page := self._db.all(
            "SELECT digest, size_bytes FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?", (after, PAGE)
        ):
            for row in page:
                order.go_on()
                after = digest = row["digest"]
                size = there.get(digest)
                # One that has come since is right by its size: it was looked at when it was committed.
                found = self._look(order, digest, row["size_bytes"], size if size is not None else -1)
                if found is not None:
                    order.damaged.add(digest)
                    yield found

    async def _there(self) -> dict[str, int]:
        return {str(info.digest): info.size async for info in self._blobs.store.walk(self._blobs.namespace)}

    def _look(self, order: Order, digest: str, wanted: int, size: int) -> Finding | None:
        if order.quick and size == wanted:
            return None
        try:
            actual = self._digest(order, digest, wanted)
        except DataLossError as error:
            return self._finding(order, digest, "blob-missing" if size < 0 else "blob-truncated", error.text)
        if order.quick or actual == digest:
            return None
        return self._finding(order, digest, "blob-corrupt", f"its bytes have the digest {actual}")

    def _digest(self, order: Order, digest: str, size: int) -> Digest:
        """Of what is there; of its beginning only, if bytes are not to be read."""
        algorithm = Digest.parse(digest).algorithm
        state = new_hash(algorithm)
        reader = order.call(lambda: self._blobs.open(digest, size))
        assert reader is not None
        try:
            for at in range(0, min(size, 1) if order.quick else size, _READ_BYTES):
                state.update(order.wait(reader.read_at(at, _READ_BYTES)))
                order.go_on()
        finally:
            order.call(reader.close)
        return Digest.of_hash(state, algorithm)

    def _finding(self, order: Order, digest: str, kind: str, wrong: str) -> Finding | None:
        rows = self._db.all("SELECT namespace FROM content WHERE digest = ? ORDER BY namespace", (digest,))
        if self._db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is None:
            return None  # it was deleted meanwhile
        mends = "the next pull or import of it: the store takes its bytes again"
        if order.repair and kind != "blob-missing" and order.wait(self._blobs.throw_away(digest)):
            mends += "; the wrong ones have been thrown away"
        return Finding(
            kind=kind, object=digest, namespaces=tuple(row["namespace"] for row in rows), wrong=wrong, mends=mends
        )
