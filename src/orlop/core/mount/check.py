"""The check of mounts that the daemon performs.

    activation-broken   a row says that something is mounted, and it is not
    mount-orphan        mounts, or what is left of their directory, and no row; a temporary mount that nobody has

A row is there before the first mount and goes before the last, by who undoes them.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orlop.base.errdefs import OrlopError
from orlop.core.fsck import Finding
from orlop.core.fsck.checks import Order
from orlop.core.mount import perform
from orlop.core.mount.manager import MountManager


class MountsCheck:
    """See `orlop.core.fsck.checks.Check`.

    Args:
        roots: directories that are the daemon's alone.
    """

    what = "mounts"

    def __init__(self, manager: MountManager, roots: Sequence[Path]) -> None:
        self._manager = manager
        self._roots = roots

    def run(self, order: Order) -> Iterator[Finding]:
        if not order.after_stop:  # the manager has looked already
            yield from self._broken(order)
        for number in self._manager.orphans():
            order.go_on()
            path = os.fspath(self._manager.directory(number))
            yield _orphan(path, *_attempt(order, lambda number=number: self._manager.undo(number)))  # type: ignore[misc]
        for path in self._temporary():
            order.go_on()
            yield _orphan(path, *_attempt(order, lambda path=path: _remove(path)))  # type: ignore[misc]

    def _broken(self, order: Order) -> Iterator[Finding]:
        for entry in self._manager.broken():
            order.go_on()
            found = Finding(
                kind="activation-broken",
                object=entry.name,
                namespaces=(entry.namespace,),
                wrong="not everything is mounted that its record says",
                mends="--repair deactivates it, so that it can be activated anew",
            )
            if order.repair:
                with contextlib.suppress(OrlopError):  # busy ones are undone later, others were quicker
                    order.wait(self._manager.deactivate(entry.namespace, entry.name))
                found = found.after(True, "deactivated, so that it can be activated anew")
            yield found

    def _temporary(self) -> list[str]:
        """Mounts for a moment below our directories whose daemon was killed meanwhile."""
        suspects = [path for path in self._mounted() if path not in perform.temporary]
        # Names are never used twice: what is still there and nobody's now was nobody's before.
        there = set(self._mounted()) if suspects else set()
        return [path for path in suspects if path in there and path not in perform.temporary]

    def _mounted(self) -> list[str]:
        return [
            path
            for root in self._roots
            for path in perform.mounts_below(os.fspath(root))
            if os.path.basename(path).startswith(perform.TEMPORARY)
        ]


def _orphan(path: str, mended: bool, why: str) -> Finding:
    return Finding(
        kind="mount-orphan",
        object=path,
        wrong="there is no record of it, and nobody is at work there",
        mends=("undone" if mended else "--repair undoes it") + (f": {why}" if why else ""),
        mended=mended,
    )


def _attempt(order: Order, undo: Callable[[], object]) -> tuple[bool, str]:
    if not order.repair:
        return False, ""
    try:
        undo()
    except (OSError, OrlopError) as error:
        return False, str(error)
    return True, ""


def _remove(path: str) -> None:
    perform.unmount_all(path, detach=True)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)
