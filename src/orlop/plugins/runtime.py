"""The managers of shims, tasks and sandboxes as plug-ins; those of the daemon before are found on starting."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Final

from orlop.base.errdefs import NotFoundError
from orlop.core.kinds import EVENT, METADATA, MOUNT_MANAGER, RUNTIME, SANDBOX_CONTROLLER, SHIM
from orlop.core.metadata.quotas import MEMORY
from orlop.core.plugin import Context, Registration
from orlop.core.runtime import TaskManager
from orlop.core.runtime.binaries import ShimHost, supervisor_path
from orlop.core.runtime.bundle import Bundles
from orlop.core.runtime.memory import MemoryQuotas
from orlop.core.runtime.sandboxes import ShimController
from orlop.core.runtime.shim_manager import ShimManager

log: Final = logging.getLogger(__name__)


def _shims(context: Context) -> ShimManager:
    host = ShimHost(
        state=context.daemon.state,
        address=context.daemon.grpc.address,
        ttrpc_address=context.daemon.ttrpc_address,
        publish_binary=_own_program(),
        debug=log.isEnabledFor(logging.DEBUG),
        early_deletion=context.daemon.early_deletion,
    )
    shims = ShimManager(host, context.daemon.runtimes)
    context.on_close(shims.close)
    return shims


async def _tasks(context: Context) -> TaskManager:
    bundles = Bundles(state=context.state, root=context.root)
    mounts = next(iter(context.all(MOUNT_MANAGER).values()), None)
    database = context.get(METADATA)
    memory = MemoryQuotas(lambda namespace: database.quotas.limit(database, namespace, MEMORY))
    manager = TaskManager(bundles, context.get(SHIM), context.get(EVENT).publish, mounts=mounts, memory=memory)
    try:
        context.exports["supervisor"] = str(supervisor_path())
    except NotFoundError as error:
        log.warning("runtime io.containerd.runc.v2 cannot be served", extra={"reason": str(error)})
    await manager.load()
    return manager


async def _sandboxes(context: Context) -> ShimController:
    controller = ShimController(Bundles(state=context.state, root=context.root), context.get(SHIM))
    await controller.load()
    return controller


def _own_program() -> str:
    """The daemon's program, which foreign shims call to publish events."""
    beside = Path(sys.executable).parent / "orlopd"
    return str(beside) if beside.exists() else shutil.which("orlopd") or "orlopd"


REGISTRATIONS: Final = (
    Registration(kind=SHIM, id="manager", init=_shims),
    Registration(kind=RUNTIME, id="task", requires=(SHIM, EVENT, MOUNT_MANAGER, METADATA), init=_tasks),
    Registration(kind=SANDBOX_CONTROLLER, id="shim", requires=(SHIM, RUNTIME), init=_sandboxes),
)
