"""Runs checks one after the other in a thread, and hands on what they find as they find it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.base.settling import settle
from orlop.core.fsck import Finding, Unchecked
from orlop.core.fsck.checks import Check, Order, Stopped

log: Final = logging.getLogger(__name__)

Found = Finding | Unchecked


class Fsck:
    """Args:
    checks: by name, in the order in which they run: what mends needs comes first.
    """

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks
        self._turn = asyncio.Lock()

    async def run(
        self, *, repair: bool = False, quick: bool = False, after_stop: bool = False
    ) -> AsyncGenerator[Found, None]:
        """Check once. Closing the generator ends the checks, in the middle of what they do if that can be left so."""
        async with self._turn:
            loop = asyncio.get_running_loop()
            order = Order(loop=loop, repair=repair, quick=quick, after_stop=after_stop)
            found: asyncio.Queue[Found | None] = asyncio.Queue()

            def tell(one: Found | None) -> None:
                order.loop.call_soon_threadsafe(found.put_nowait, one)

            running = asyncio.ensure_future(asyncio.to_thread(self._run, order, tell))
            try:
                while (one := await found.get()) is not None:
                    yield one
            finally:
                order.stopped.set()
                await settle(running)  # half a repair must not go on alone

    async def after_unclean_stop(self) -> None:
        """Check and mend what was being written when the last daemon ended; each thing that is done is told in the log.

        Snapshots whose files a stop of the machine may have taken are `core.snapshots.recovery`'s.
        """
        log.warning("the last daemon did not stop cleanly: checking what was being written")
        found = [one async for one in self.run(repair=True, after_stop=True)]
        mended = sum(isinstance(one, Finding) and one.mended for one in found)
        log.warning("checked what was being written", extra={"found": len(found), "mended": mended})

    def _run(self, order: Order, tell: Callable[[Found | None], None]) -> None:
        try:
            for check in self._checks.values():
                try:
                    for one in check.run(order):
                        _note(one, tell)
                        order.go_on()
                except (OSError, OrlopError) as error:
                    _note(Unchecked(what=check.what, why=str(error)), tell)
                except Stopped:
                    return
                except Exception as error:
                    # A check may be anybody's plug-in; the others are worth their run all the same.
                    log.exception("fsck: a check failed", extra={"what": check.what})
                    _note(Unchecked(what=check.what, why=f"{type(error).__name__}: {error}"), tell)
        finally:
            tell(None)


def _note(one: Found, tell: Callable[[Found | None], None]) -> None:
    if isinstance(one, Finding):
        log.warning(
            "fsck: mended" if one.mended else "fsck: found",
            extra={
                "kind": one.kind,
                "object": one.object,
                "namespaces": ",".join(one.namespaces),
                "wrong": one.wrong,
                "mends": one.mends,
            },
        )
    else:
        log.warning("fsck: could not check", extra={"what": one.what, "why": one.why})
    tell(one)
