"""Mounts of type `loop`: a file as a block device; where it is "mounted" lies a link to the device.

Options: `ro`, `direct-io`. Source: containerd's core/mount/loopback_handler_linux.go.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Final

from orlop.base.errdefs import FailedPreconditionError
from orlop.core.kinds import MOUNT_HANDLER
from orlop.core.mount import Mount, loop
from orlop.core.mount.activation import ActiveMount, Handler
from orlop.core.mount.perform import as_error
from orlop.core.plugin import Context, Registration, SkipPlugin

_NOTE: Final = "-file"
_CONTROL: Final = "/dev/loop-control"


class LoopHandler:
    """See `Handler`. Beside the link lies a note of the file's identity: a device's name is not enough to let it go, as
    after a boot, or behind our back, it may be anybody's.
    """

    def mount(self, mount: Mount, target: str, _active: Sequence[ActiveMount], /) -> ActiveMount:
        if not os.path.isfile(mount.source):
            raise FailedPreconditionError(f"loop device of {mount.source}: it is not a regular file")
        readonly, direct = "ro" in mount.options, "direct-io" in mount.options
        with loop.attached(mount.source, readonly=readonly, direct=direct) as device:
            try:
                with open(f"{target}{_NOTE}", "w", encoding="ascii") as note:
                    note.write(loop.backing(device.path))
                os.symlink(device.path, target)
                # Last: should this process die before, the device goes with it.
                loop.keep(device)
            except OSError as error:
                raise as_error(f"loop device of {mount.source}: keep {device.path}", error) from error
        return ActiveMount(mount=mount, mount_point=target, mounted_at=time.time_ns())

    def unmount(self, target: str, /) -> None:
        try:
            if self._is_ours(target):
                loop.let_go(os.readlink(target))
            for path in (target, f"{target}{_NOTE}"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        except OSError as error:
            raise as_error(f"loop device at {target}", error) from error

    def is_active(self, active: ActiveMount, /) -> bool:
        return self._is_ours(active.mount_point)

    def _is_ours(self, target: str) -> bool:
        try:
            with open(f"{target}{_NOTE}", encoding="ascii") as note:
                return note.read() == loop.backing(os.readlink(target)) != ""
        except OSError:
            return False


def _init(_context: Context) -> Handler:
    if not os.path.exists(_CONTROL):
        raise SkipPlugin(f"there are no loop devices here: no {_CONTROL}")
    return LoopHandler()


REGISTRATION: Final = Registration(kind=MOUNT_HANDLER, id="loop", init=_init)
