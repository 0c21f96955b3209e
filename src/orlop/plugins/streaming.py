"""The manager of streams as a plug-in. Source: containerd's plugins/streaming/manager.go."""

from typing import Final

from orlop.core.kinds import GC, METADATA, STREAMING
from orlop.core.metadata import Database
from orlop.core.plugin import Context, Registration
from orlop.core.streaming import Manager


def _init(context: Context) -> Manager:
    db: Database = context.get(METADATA)
    manager = Manager()

    def is_leased(namespace: str, lease: str) -> bool:
        return db.one("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, lease)) is not None

    async def collect() -> None:
        await manager.collect(is_leased)

    context.get(GC).after.append(collect)
    return manager


REGISTRATION: Final = Registration(kind=STREAMING, id="manager", requires=(METADATA, GC), init=_init)
