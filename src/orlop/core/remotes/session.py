"""HTTP to registries: connections, TLS, proxies and redirects; nothing of the registry's protocol.

One `Session` serves all hosts and holds their connections. It follows redirects itself, because what belongs to one
server must not reach another: `Authorization` and configured headers are left out as soon as the origin changes.

aiohttp is imported at the first request, not with this module.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, UnavailableError
from orlop.core.remotes.answers import cleaned, shown_url
from orlop.core.remotes.hosts import Host, Tls, web_address
from orlop.version import __version__

if TYPE_CHECKING:
    import aiohttp

USER_AGENT: Final = f"orlop/{__version__}"
DEFAULT_DIAL_TIMEOUT_S: Final = 30.0
DEFAULT_IDLE_TIMEOUT_S: Final = 60.0
MAX_REDIRECTS: Final = 10

_READ_BUFFER: Final = 1 << 20
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

Body = bytes | Callable[[], AsyncIterator[bytes]]
"""A request's body: its bytes, or what gives them anew each time it is sent."""


class ConnectionFailedError(UnavailableError):
    """No answer: the server was not reached, or the connection broke before one came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a host.

    Attributes:
        own_headers: for this origin only; they do not follow a redirect elsewhere.
        size: of the body in bytes, where there is one.
        trusting: the answer is believed without a digest, so a redirect must not leave TLS.
        keeps_origin: the body is secret; a redirect to another origin is an error.
    """

    host: Host
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    own_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Body | None = None
    size: int | None = None
    trusting: bool = False
    keeps_origin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An open response. `url` is where it came from after redirects; `redirected` whether that is another origin."""

    response: "aiohttp.ClientResponse"
    url: str
    redirected: bool

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str:
        """The first value of a header, or an empty string."""
        return self.response.headers.get(name, "")

    @property
    def length(self) -> int | None:
        """The Content-Length, if there is a sound one."""
        text = self.header("Content-Length")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    async def read(self, limit: int) -> bytes:
        """At most `limit` bytes of the body, one more if there are more.

        Raises:
            ConnectionFailedError: the connection broke.
        """
        data = bytearray()
        async for piece in self.pieces():
            data += piece
            if len(data) > limit:
                break
        return bytes(data[: limit + 1])

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises:
            ConnectionFailedError: the connection broke, or nothing came for too long.
        """
        import aiohttp

        try:
            async for piece in self.response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ConnectionFailedError(f"{shown_url(self.url)}: {describe(error)}") from error

    def release(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        self.response.release()


class Session:
    """All connections of a registry client. Close it with `aclose`."""

    def __init__(self, *, idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S, connections: int = 32) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._connections = connections
        self._client: aiohttp.ClientSession | None = None
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self.schemes: dict[str, str] = {}
        """By address: the scheme that was found to work where the configured one was a guess."""
        self.told: Callable[[str], None] | None = None
        """Called with lines about each request and answer, without secrets."""

    async def aclose(self) -> None:
        """Close all connections and wait until they are."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def send(self, request: Request) -> Answer:
        """Send a request and follow its redirects. The answer must be released.

        Raises:
            ConnectionFailedError: no answer came.
            FailedPreconditionError: a redirect that must not be followed, or too many.
        """
        url, method, body = request.url, request.method, request.body
        for _ in range(MAX_REDIRECTS + 1):
            same_origin = origin(url) == origin(request.url)
            response = await self._send_once(request, method, url, body, same_origin=same_origin)
            answer = Answer(response=response, url=url, redirected=not same_origin)
            location = answer.header("Location")
            if response.status not in _REDIRECTS or not location:
                return answer
            response.release()
            url = self._redirected(request, url, location)
            if response.status == 303 and method != "HEAD":
                method, body = "GET", None
        raise FailedPreconditionError(f"{shown_url(request.url)}: more than {MAX_REDIRECTS} redirects")

    async def _send_once(
        self, request: Request, method: str, url: str, body: Body | None, *, same_origin: bool
    ) -> "aiohttp.ClientResponse":
        import aiohttp
        from yarl import URL

        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **request.headers}
        if same_origin:
            headers |= request.own_headers
        if body is not None and request.size is not None:
            headers["Content-Length"] = str(request.size)
        dial_timeout_s = request.host.dial_timeout_s or DEFAULT_DIAL_TIMEOUT_S
        if self.told is not None:
            self.told(f"> {method} {shown_url(url)}{_shown_headers(headers)}")
        try:
            response = await self._opened().request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=None if body is None else _data(body),
                allow_redirects=False,
                ssl=self._context(request.host.tls) if url.startswith("https:") else True,
                proxy=_proxy_for(request.host, url),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=dial_timeout_s, sock_read=self._idle_timeout_s),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self.told is not None:
                self.told(f"< {shown_url(url)}: {describe(error)}")
            raise ConnectionFailedError(f"{shown_url(url)}: {describe(error)}") from error
        except ValueError as error:  # aiohttp's verdict on a URL or header
            raise InvalidArgumentError(f"{shown_url(url)}: {error}") from error
        if self.told is not None:
            self.told(f"< {response.status} {shown_url(url)}{_shown_headers(response.headers)}")
        return response

    def _redirected(self, request: Request, url: str, location: str) -> str:
        target = join(url, location)
        parts = web_address(target)
        if parts is None:
            raise FailedPreconditionError(f"{shown_url(url)}: redirect to {shown_url(target)}, which is no web address")
        if request.trusting and url.startswith("https:") and parts.scheme == "http":
            raise FailedPreconditionError(f"{shown_url(url)}: redirect to {shown_url(target)} would give up TLS")
        if request.keeps_origin and origin(target) != origin(request.url):
            raise FailedPreconditionError(
                f"{shown_url(url)}: redirect to {shown_url(target)} is not followed with secrets"
            )
        return target

    def _opened(self) -> "aiohttp.ClientSession":
        if self._client is None:
            import aiohttp

            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
                trust_env=False,  # it would read ~/.netrc too; proxies are chosen in _proxy_for
            )
        return self._client

    def _context(self, tls: Tls) -> ssl.SSLContext:
        context = self._contexts.get(tls)
        if context is None:
            context = self._contexts[tls] = tls_context(tls)
        return context


class _Replayable:
    """A body that begins anew when it is iterated again: aiohttp repeats a PUT whose kept connection was closed."""

    def __init__(self, begin: Callable[[], AsyncIterator[bytes]]) -> None:
        self._begin = begin

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._begin()


_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "set-cookie", "proxy-authorization", "location"})


def _shown_headers(headers: Mapping[str, str]) -> str:
    """Headers as one line; of those that may carry secrets only the names."""
    shown = (f"{name}: {'…' if name.lower() in _SECRET_HEADERS else value}" for name, value in headers.items())
    return "".join(f"; {one}" for one in shown)


def _data(body: Body) -> "bytes | _Replayable":
    return body if isinstance(body, bytes) else _Replayable(body)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The TLS settings for a host.

    Raises:
        InvalidArgumentError: a file is missing or is no certificate; the text names it.
    """
    context = ssl.create_default_context()
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in tls.ca_files:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgumentError(f"unable to load CA cert {path}: {describe(error)}") from error
    for certificate, key in tls.client_pairs:
        try:
            context.load_cert_chain(certificate, key or None)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgumentError(f"unable to load client cert {certificate}: {describe(error)}") from error
    return context


def join(base: str, location: str) -> str:
    """Where a `Location` that came with an answer from `base` points; unchanged if it is no URL at all."""
    try:
        return urljoin(base, location)
    except ValueError:
        return location


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def describe(error: BaseException) -> str:
    """Why a connection failed, in one line."""
    import aiohttp

    if isinstance(error, (asyncio.TimeoutError, aiohttp.ServerTimeoutError)):
        return "no answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "connection closed without an answer"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"certificate not trusted: {getattr(error.certificate_error, 'verify_message', error.certificate_error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "connection cut"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return cleaned(str(error).partition("\n")[0]) or type(error).__name__  # it may quote what the server sent


def _proxy_for(host: Host, url: str) -> str | None:
    """The proxy of the host's configuration, else of the environment (HTTPS_PROXY, NO_PROXY)."""
    if host.proxy is not None:
        return host.proxy
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
