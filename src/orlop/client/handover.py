"""From a copier's thread back to the client."""

from collections.abc import Callable, Coroutine
from typing import Any

from orlop.base.errdefs import OrlopError
from orlop.client.channel import drive
from orlop.client.session import Session


def call_from_thread(session: Session, operation: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an operation from a thread that is not the client's own.

    A failure is dropped: the process may have exited before it could be told that its input has ended.
    """
    try:
        if not session.asynchronous:
            drive(operation())
            return
        loop = session.connection.loop
        if loop is None or loop.is_closed():
            return
        import asyncio

        asyncio.run_coroutine_threadsafe(operation(), loop).result()
    except (OrlopError, RuntimeError):
        return
