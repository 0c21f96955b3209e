"""The Fsck service, ours: checks of what the daemon knows against what there is. For root's socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from orlop.api.services.fsck.v1 import fsck_pb2 as pb
from orlop.base.rpc import Call, Service, bind
from orlop.core.fsck import Finding
from orlop.core.fsck.running import Fsck as Running
from orlop.core.fsck.snapshots import SnapshotsCheck
from orlop.core.kinds import (
    CHECK,
    CONTENT,
    DIFFER,
    GRPC,
    METADATA,
    MOUNT_MANAGER,
    RUNTIME,
    SANDBOX_CONTROLLER,
    SNAPSHOTS,
    TRASH,
)
from orlop.core.metadata.check import DatabaseCheck
from orlop.core.mount.check import MountsCheck
from orlop.core.plugin import Context, Registration
from orlop.core.runtime.check import RuntimeCheck
from orlop.core.runtime.check_host import Host
from orlop.core.runtime.sandboxes import ShimController


class Fsck:
    """orlop.services.fsck.v1.Fsck."""

    def __init__(self, running: Running) -> None:
        self._running = running

    async def check(self, _call: Call, request: pb.CheckRequest) -> AsyncIterator[pb.CheckResponse]:
        run = self._running.run(repair=request.repair, quick=request.quick)
        try:
            async for one in run:
                if isinstance(one, Finding):
                    yield pb.CheckResponse(finding=_finding(one))
                else:
                    yield pb.CheckResponse(unchecked=pb.Unchecked(what=one.what, why=one.why))
        finally:
            await run.aclose()


def _finding(one: Finding) -> pb.Finding:
    return pb.Finding(
        kind=one.kind,
        object=one.object,
        namespaces=one.namespaces,
        wrong=one.wrong,
        mends=one.mends,
        mended=one.mended,
    )


def _database(context: Context) -> DatabaseCheck:
    return DatabaseCheck(context.get(METADATA))


def _snapshots(context: Context) -> SnapshotsCheck:
    return SnapshotsCheck(
        context.get(METADATA),
        context.get(TRASH),
        context.get(SNAPSHOTS),
        context.get(CONTENT),
        list(context.all(DIFFER).values()),
    )


def _mounts(context: Context) -> MountsCheck:
    daemon = context.daemon
    return MountsCheck(context.get(MOUNT_MANAGER), [Path(daemon.root), Path(daemon.state)])


def _tasks(context: Context) -> RuntimeCheck:
    daemon = context.daemon
    host = Host(root=Path(daemon.root), state=Path(daemon.state), address=daemon.grpc.address)
    sandboxes = context.all(SANDBOX_CONTROLLER).get("shim")
    owner = sandboxes if isinstance(sandboxes, ShimController) else None
    return RuntimeCheck(context.get(METADATA), context.get(RUNTIME), owner, host)


def _init(context: Context) -> Service:
    running = Running(context.all(CHECK))
    if context.get(METADATA).unclean:
        checking = asyncio.create_task(running.after_unclean_stop(), name="fsck after an unclean stop")

        async def stop() -> None:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)

        context.on_close(stop)
    return bind(pb.DESCRIPTOR.services_by_name["Fsck"], Fsck(running))


REGISTRATIONS: Final = (
    Registration(kind=CHECK, id="metadata", requires=(METADATA,), init=_database),
    Registration(kind=CHECK, id="snapshots", requires=(METADATA, TRASH, SNAPSHOTS, CONTENT, DIFFER), init=_snapshots),
    Registration(kind=CHECK, id="mounts", requires=(MOUNT_MANAGER,), init=_mounts),
    Registration(kind=CHECK, id="tasks", requires=(METADATA, RUNTIME, SANDBOX_CONTROLLER), init=_tasks),
    Registration(kind=GRPC, id="fsck", requires=(CHECK, METADATA), init=_init),
)
