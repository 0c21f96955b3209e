"""The mounts of one activation on disk: performed in a directory of their own, and undone from what lies there.

    <targets>/<number>/
        2-type   what is mounted at 2: its type, for who undoes it without a row
        2        where the first of two mounts is: a directory, or what its handler made
        1-type
        1        the last one; undone first
        2-…      what a handler keeps beside, and removes

Nothing is ever removed behind a mount: directories go by rmdir(2), names by unlink(2).

Source: containerd's core/mount/manager/manager.go, for the names.
"""

import contextlib
import logging
import os
import stat
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.core.mount import Mount, transforms
from orlop.core.mount.activation import ActiveMount, Handler
from orlop.core.mount.perform import as_error, mount_all, unmount_below
from orlop.core.mount.plans import Plan, Step

log: Final = logging.getLogger(__name__)


def perform_plan(
    plan: Plan, directory: Path, handlers: Mapping[str, Handler], roots: Sequence[str], *, temporary: bool
) -> tuple[list[ActiveMount], list[Mount]]:
    """Mount what a plan performs in `directory`, which is made. When this raises, `remove` is for what stands by then.

    Args:
        temporary: what is left is a bind mount of the last one.

    Returns:
        What was mounted, and what is left to mount.

    Raises:
        OrlopError: of a transform, a handler or the kernel; the text names the mount.
    """
    try:
        directory.mkdir(mode=0o700)
        failpoints.reach("mounts.perform.made")
    except OSError as error:
        raise as_error(f"make {directory}", error) from error
    active: list[ActiveMount] = []
    for position, step in enumerate(plan.performed):
        mount = transforms.apply(step, active, roots)
        place = directory / str(len(plan.performed) - position)
        active.append(_perform(mount, place, handlers.get(mount.type), active))
        failpoints.reach("mounts.perform.mounted")
    left = [_left(step, position, active, roots) for position, step in enumerate(plan.left)]
    if temporary and active:
        left.append(Mount(type="bind", source=active[-1].mount_point, options=("rbind",)))
    return active, left


def remove(directory: Path, handlers: Mapping[str, Handler], *, patience_s: float) -> None:
    """Undo every mount in `directory`, the last one first, then remove it; no such directory is success.

    Args:
        patience_s: how long to try again while one is busy.

    Raises:
        OrlopError: one cannot be undone, FailedPreconditionError if it is busy; those before it are undone, and the
            directory stays.
    """
    for place in _places(directory):
        handler = handlers.get(_read(Path(f"{place}-type")))
        if handler is not None:
            handler.unmount(os.fspath(place))
        unmount_below(os.fspath(place), patience_s=patience_s)
        failpoints.reach("mounts.remove.unmounted")
        _remove_name(place)
        _remove_name(Path(f"{place}-type"))
    try:
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()
        failpoints.reach("mounts.remove.removed")
    except OSError as error:
        raise as_error(f"remove {directory}", error) from error


def is_whole(active: Sequence[ActiveMount], handlers: Mapping[str, Handler], mounted: Collection[str]) -> bool:
    """Whether everything is still mounted as it was; `mounted` are the places where something is, of all this host."""
    for one in active:
        handler = handlers.get(one.mount.type)
        if handler is not None:
            if not handler.is_active(one):
                return False
        elif one.mount.target:
            if not any(place.startswith(f"{one.mount_point}/") for place in mounted):
                return False
        elif one.mount_point not in mounted:
            return False
    return True


def _perform(mount: Mount, place: Path, handler: Handler | None, active: Sequence[ActiveMount]) -> ActiveMount:
    try:
        Path(f"{place}-type").write_text(mount.type)
        if handler is None:
            place.mkdir(mode=0o700)
        failpoints.reach("mounts.perform.noted")
    except OSError as error:
        raise as_error(f"prepare {place}", error) from error
    if handler is not None:
        return handler.mount(mount, os.fspath(place), active)
    mount_all([mount], os.fspath(place))
    return ActiveMount(mount=mount, mount_point=os.fspath(place), mounted_at=time.time_ns())


def _left(step: Step, position: int, active: Sequence[ActiveMount], roots: Sequence[str]) -> Mount:
    """The first of what is left is prepared, as it may point at what was mounted."""
    return transforms.apply(step, active, roots) if position == 0 else step.mount


def _places(directory: Path) -> list[Path]:
    """Where something was or was about to be mounted, the last one first."""
    try:
        names = {name.removesuffix("-type") for name in os.listdir(directory)}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise as_error(f"read {directory}", error) from error
    return [directory / name for name in sorted(filter(str.isdecimal, names), key=int)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # a crash came between: then nothing is mounted there
        return ""


def _remove_name(path: Path) -> None:
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            path.rmdir()
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise as_error(f"remove {path}", error) from error
