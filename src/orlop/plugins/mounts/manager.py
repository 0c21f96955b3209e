"""The manager of mounts as a plug-in. Source: containerd's plugins/mount/manager.go."""

import os
from pathlib import Path
from typing import Final

from orlop.core.kinds import METADATA, MOUNT_HANDLER, MOUNT_MANAGER
from orlop.core.mount.manager import MountManager
from orlop.core.plugin import Context, Registration


async def _init(context: Context) -> MountManager:
    manager = _manager(context)
    context.on_close(manager.aclose)
    await manager.reconcile()
    return manager


def _manager(context: Context) -> MountManager:
    root = Path(context.daemon.root)
    # Targets are compared with the kernel's list of mounts, which knows no links.
    targets = Path(os.path.realpath(context.state)) / "t"
    return MountManager(context.get(METADATA), targets, context.all(MOUNT_HANDLER), roots=(root, root.resolve()))


REGISTRATION: Final = Registration(kind=MOUNT_MANAGER, id="bolt", requires=(METADATA, MOUNT_HANDLER), init=_init)
