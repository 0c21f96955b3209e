"""Listeners that speak HTTP, for metrics and for debugging: a handful of pages, each a coroutine that makes a body.

Imported only where one is configured: aiohttp is not for every daemon's memory.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Self

from aiohttp import web

from orlop.base.errdefs import InvalidArgumentError, OrlopError, UnavailableError
from orlop.server.doors import sockets

log: Final = logging.getLogger(__name__)


class Page:
    """One page: its content type, and what makes its body from the query."""

    def __init__(self, make: Callable[[Mapping[str, str]], Awaitable[bytes]], content_type: str) -> None:
        self.make = make
        self.content_type = content_type


class HttpDoor:
    """An async context manager: entering binds and serves, leaving stops.

    Args:
        address: `host:port`, or the absolute path of a unix socket, which gets mode 0660.
        pages: by path; GET only.

    Raises on entering:
        InvalidArgumentError: the address is none.
        AlreadyExistsError: somebody listens at the unix socket.
        UnavailableError: the address cannot be bound.
    """

    def __init__(self, address: str, pages: Mapping[str, Page], *, uid: int = 0, gid: int = 0) -> None:
        self._address = address
        self._uid, self._gid = uid, gid
        app = web.Application()
        for path, page in pages.items():
            app.router.add_get(path, _handler(page))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await self._site().start()
        except OSError as error:
            await self._runner.cleanup()
            raise UnavailableError(f'HTTP listener: cannot listen at "{self._address}": {error.strerror}') from error
        except BaseException:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()
        if self._address.startswith("/"):
            sockets.path_of(self._address).unlink(missing_ok=True)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with the port that a port of 0 became."""
        return [
            address if isinstance(address, str) else f"{address[0]}:{address[1]}" for address in self._runner.addresses
        ]

    def _site(self) -> web.BaseSite:
        if self._address.startswith(("/", "unix://")):
            path = sockets.path_of(self._address)
            self._address = os.fspath(path)
            return web.SockSite(self._runner, sockets.listen(path, uid=self._uid, gid=self._gid))
        host, separator, port = self._address.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise InvalidArgumentError(f'HTTP listener: address "{self._address}": must be host:port or a path')
        return web.TCPSite(self._runner, host.strip("[]") or None, int(port))


def _handler(page: Page) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            body = await page.make(request.query)
        except InvalidArgumentError as error:
            return web.Response(status=400, text=f"{error}\n")
        except OrlopError as error:
            return web.Response(status=501 if error.code == 12 else 500, text=f"{error}\n")
        return web.Response(body=body, headers={"Content-Type": page.content_type})

    return handle
