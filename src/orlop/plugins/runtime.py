"""The task manager as a plug-in: finds the tasks of the daemon before it on starting."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Final

from orlop.base.errdefs import NotFoundError
from orlop.core.kinds import EVENT, RUNTIME
from orlop.core.plugin import Context, Registration
from orlop.core.runtime import TaskManager
from orlop.core.runtime.binaries import ShimHost, supervisor_path
from orlop.core.runtime.bundle import Bundles

log: Final = logging.getLogger(__name__)


async def _init(context: Context) -> TaskManager:
    host = ShimHost(
        state=context.daemon.state,
        address=context.daemon.grpc.address,
        ttrpc_address=context.daemon.ttrpc_address,
        publish_binary=_own_program(),
        debug=log.isEnabledFor(logging.DEBUG),
    )
    bundles = Bundles(state=context.state, root=context.root)
    manager = TaskManager(bundles, host, context.get(EVENT).publish, context.daemon.runtimes)
    context.on_close(manager.close)
    try:
        context.exports["supervisor"] = str(supervisor_path())
    except NotFoundError as error:
        log.warning("runtime io.containerd.runc.v2 cannot be served", extra={"reason": str(error)})
    await manager.load()
    return manager


def _own_program() -> str:
    """The daemon's program, which foreign shims call to publish events."""
    beside = Path(sys.executable).parent / "orlopd"
    return str(beside) if beside.exists() else shutil.which("orlopd") or "orlopd"


REGISTRATION: Final = Registration(kind=RUNTIME, id="task", requires=(EVENT,), init=_init)
