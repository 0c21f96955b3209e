"""Mounts of type `erofs`: straight from the file where the kernel can (Linux 6.12), else over loop devices.

The option `loop` is ignored, as this is what it would ask for; files in options `device=` get devices of their own.

Source: containerd's plugins/mount/erofs/plugin_linux.go.
"""

import contextlib
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.core.kinds import MOUNT_HANDLER
from orlop.core.mount import Mount, loop
from orlop.core.mount.activation import ActiveMount, Handler
from orlop.core.mount.perform import as_error, mount_all, unmount
from orlop.core.plugin import Context, Registration

_EXTRA: Final = "device="
_PATIENCE_S: Final = 2.5


class ErofsHandler:
    """See `Handler`.

    Args:
        over_loop: never mount straight from a file; found out by itself where the kernel cannot.
    """

    def __init__(self, *, over_loop: bool = False) -> None:
        self._over_loop = over_loop

    def mount(self, mount: Mount, target: str, _active: Sequence[ActiveMount], /) -> ActiveMount:
        mount = replace(mount, options=tuple(option for option in mount.options if option != "loop"))
        try:
            os.mkdir(target, 0o700)
        except OSError as error:
            raise as_error(f"make {target}", error) from error
        if self._over_loop or not self._straight(mount, target):
            mount = self._over_devices(mount, target)
        return ActiveMount(mount=mount, mount_point=target, mounted_at=time.time_ns())

    def unmount(self, target: str, /) -> None:
        unmount(target, patience_s=_PATIENCE_S)

    def is_active(self, active: ActiveMount, /) -> bool:
        return os.path.ismount(active.mount_point)

    def _straight(self, mount: Mount, target: str) -> bool:
        try:
            mount_all([mount], target)
        except OrlopError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENOTBLK:
                raise
            self._over_loop = True
            return False
        return True

    def _over_devices(self, mount: Mount, target: str) -> Mount:
        """Mount from loop devices, which go with the mount; returns it as it was mounted."""
        with contextlib.ExitStack() as devices:

            def device_of(path: str) -> str:
                return devices.enter_context(loop.attached(path, readonly=True)).path

            options = [
                f"{_EXTRA}{device_of(option[len(_EXTRA) :])}" if option.startswith(_EXTRA) else option
                for option in mount.options
            ]
            mount = replace(mount, source=device_of(mount.source), options=tuple(options))
            mount_all([mount], target)
        return mount


def _init(_context: Context) -> Handler:
    return ErofsHandler()


REGISTRATION: Final = Registration(kind=MOUNT_HANDLER, id="erofs", init=_init)
