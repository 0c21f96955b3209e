"""A registry as a transfer's end: how it is reached, who we are there, and what is told of the traffic."""

import asyncio
import base64
import binascii
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

from orlop.base.errdefs import UnauthenticatedError, UnavailableError
from orlop.core.remotes.credentials import Credentials, Store
from orlop.core.remotes.hosts import Host, HostOptions
from orlop.core.remotes.resolver import RegistryResolver
from orlop.core.remotes.session import Session
from orlop.core.transfer.ends import AuthKind, CredentialHelper, HTTPDebug, OCIRegistry, Secret, Sink

log: Final = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 60.0
"""For the client's answer to who we are; it may be asking a person."""


@contextlib.asynccontextmanager
async def resolving(registry: OCIRegistry, *, hosts_dirs: tuple[str, ...]) -> AsyncIterator[RegistryResolver]:
    """A resolver for the time of a transfer; `hosts_dirs` are the daemon's, where the registry names none."""
    hosts = HostOptions(
        hosts_dirs=(registry.host_dir,) if registry.host_dir else hosts_dirs,
        plain_http=registry.default_scheme == "http",
        headers=tuple(registry.headers.items()),
    )
    credentials = None if registry.credentials is None else Asking(registry.credentials, registry.reference)
    async with contextlib.AsyncExitStack() as stack:
        session = Session()
        stack.push_async_callback(session.aclose)
        if registry.http_debug is not HTTPDebug.DISABLED:
            traffic = await stack.enter_async_context(Traffic(registry.logs))
            session.told = traffic.tell
        yield RegistryResolver(hosts=hosts, credentials=credentials, session=session)


class Asking(Store):
    """Credentials from whoever wants the transfer, one question at a time."""

    def __init__(self, helper: CredentialHelper, reference: str) -> None:
        self._helper = helper
        self._reference = reference
        self._lock = asyncio.Lock()

    async def lookup(self, host: Host, repository: str) -> Credentials | None:
        """See `core.remotes.credentials.Store`."""
        try:
            async with self._lock, asyncio.timeout(ANSWER_TIMEOUT_S):
                return _credentials(await self._helper.secret(self._reference, host.address))
        except TimeoutError as error:
            raise UnauthenticatedError(
                f"registry {host.address}: the client gave no credentials in {ANSWER_TIMEOUT_S:.0f} s"
            ) from error


def _credentials(given: Secret) -> Credentials | None:
    match given.kind:
        case AuthKind.CREDENTIALS:
            return Credentials(username=given.username, secret=given.secret, source="the client")
        case AuthKind.REFRESH:
            return Credentials(secret=given.secret, source="the client") if given.secret else None
        case AuthKind.HEADER:
            return _of_header(given.secret)
    return None


def _of_header(value: str) -> Credentials:
    """What the value of an `Authorization` header says."""
    scheme, _, rest = value.partition(" ")
    if scheme.lower() != "basic":
        return Credentials(bearer=rest if scheme.lower() == "bearer" else value, source="the client")
    try:
        username, _, secret = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UnauthenticatedError("the client gave a basic authorization that cannot be decoded") from error
    return Credentials(username=username, secret=secret, source="the client")


class Traffic:
    """Lines about requests and answers, to a sink or the daemon's log. A sink that is slow loses lines, not time."""

    _BACKLOG: Final = 1000

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self._lines: asyncio.Queue[str] = asyncio.Queue(self._BACKLOG)
        self._task: asyncio.Task[None] | None = None

    def tell(self, line: str) -> None:
        """Note a line."""
        if self._sink is None:
            log.info("registry: %s", line)
            return
        with contextlib.suppress(asyncio.QueueFull):
            self._lines.put_nowait(line)

    async def __aenter__(self) -> "Traffic":
        if self._sink is not None:
            self._task = asyncio.create_task(self._send(self._sink), name="registry traffic")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._task is None or self._sink is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._lines.join()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._sink.close()

    async def _send(self, sink: Sink) -> None:
        while True:
            line = await self._lines.get()
            with contextlib.suppress(UnavailableError):  # nobody reads any more
                await sink.write(f"{line}\n".encode())
            self._lines.task_done()
