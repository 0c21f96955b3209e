"""A bundle's root file system: undoing whatever is mounted on it."""

import logging
import os

from orlop.base import failpoints
from orlop.base.errdefs import FailedPreconditionError
from orlop.core.mount.perform import unmount, unmount_all
from orlop.linux.mount import mountinfo

_log = logging.getLogger(__name__)


def unmount_tree(rootfs: str) -> None:
    """Detach every mount at and below `rootfs`; none, or no such directory, is success.

    A mount that is busy although the container has ended (somebody of the host's works in it) goes out of sight at once
    and vanishes with its last user.

    Raises:
        OrlopError: one cannot be detached at all.
    """
    if not os.path.isdir(rootfs):
        return
    try:
        unmount_all(rootfs)
        failpoints.reach("shim.rootfs.unmounted")
        return
    except FailedPreconditionError:
        pass  # busy: mounts lie below it, or somebody is in it
    real = os.path.realpath(rootfs)
    below = [mount.mount_point for mount in mountinfo() if mount.mount_point.startswith(f"{real}/")]
    for path in reversed(below):
        unmount(path, detach=True)
    try:
        unmount_all(rootfs)
    except FailedPreconditionError as error:
        _log.warning("%s; detached, it goes with its last user", error)
        unmount_all(rootfs, detach=True)
