"""One repository on one host: requests that are authorised, asked again where that may help, and judged.

Source: distribution-spec; containerd's doWithRetries in core/remotes/docker/resolver.go.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

from orlop.base.errdefs import UnavailableError
from orlop.core.remotes.answers import (
    MAX_ERROR_BODY,
    RETRIED_STATUSES,
    Errand,
    cleaned,
    status_error,
    status_line,
)
from orlop.core.remotes.authorizer import Authorizer
from orlop.core.remotes.hosts import Host
from orlop.core.remotes.session import Answer, Body, ConnectionFailedError, Request, Session, origin

_MAX_CHALLENGES: Final = 2
_ANY_SUCCESS: Final = range(200, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how patiently a host is asked again.

    Attributes:
        attempts: requests altogether.
        first_delay_s: doubled after each attempt, up to `max_delay_s`; what a server asks for counts up to there too.
        sleep: for tests.
    """

    attempts: int = 5
    first_delay_s: float = 0.25
    max_delay_s: float = 10.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def wait(self, attempt: int, asked_s: float = 0.0) -> None:
        """Wait after the attempt of that number, from 1."""
        delay_s = max(self.first_delay_s * 2 ** (attempt - 1) * random.uniform(0.8, 1.2), asked_s)
        await self.sleep(min(delay_s, self.max_delay_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request to a repository.

    Attributes:
        where: parts of a path in the repository, or a whole URL.
        accept: statuses that are no error.
        scopes: of the token that it needs.
        body, size: what is sent; `body` gives it anew for each attempt.
        attempts: instead of the retry policy's.
        trusting: the answer is believed without a digest.
    """

    method: str
    where: Sequence[str] | str
    errand: Errand
    scopes: Sequence[str] = ()
    accept: Collection[int] = _ANY_SUCCESS
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    size: int | None = None
    attempts: int | None = None
    trusting: bool = False


class Repository:
    """Sends the requests of one repository to one host."""

    def __init__(self, host: Host, name: str, *, session: Session, authorizer: Authorizer, retry: Retry) -> None:
        self.host = host
        self.name = name
        self.retry = retry
        self._session = session
        self._authorizer = authorizer
        self._scheme = session.schemes.get(host.address, host.scheme) if host.try_https else host.scheme

    def url(self, *path: str, query: Mapping[str, str] | None = None) -> str:
        """Where something of this repository is: `url("manifests", tag)`."""
        parts = "/".join(quote(part, safe="/:@._~-") for part in (self.name, *path))
        asked = dict(query or {})
        if self.host.is_proxy:
            asked["ns"] = self.host.namespace
        encoded = f"?{urlencode(asked, safe='/:@')}" if asked else ""
        return f"{self._scheme}://{self.host.address}{self.host.path}/{parts}{encoded}"

    def is_ours(self, url: str) -> bool:
        """Whether a URL is on this host, so that our authorization may go there."""
        return origin(url) == origin(self.url())

    @asynccontextmanager
    async def open(self, ask: Ask) -> AsyncIterator[Answer]:
        """Send a request; inside the block its answer is open.

        Raises:
            OrlopError: of the class that the last status or failure stands for, naming registry and phase.
        """
        answer = await self._answered(ask)
        try:
            yield answer
        finally:
            answer.release()

    async def _answered(self, ask: Ask) -> Answer:
        allowed = ask.attempts or self.retry.attempts
        attempt, challenges = 1, 0
        while True:
            url = ask.where if isinstance(ask.where, str) else self.url(*ask.where, query=ask.query)
            used = await self._authorizer.header(self.host, url, ask.scopes, ask.errand) if self.is_ours(url) else None
            try:
                answer = await self._session.send(self._request(ask, url, used))
            except ConnectionFailedError as error:
                if self._guess_again():
                    continue
                if attempt >= allowed:
                    raise UnavailableError(f"{ask.errand.at(self.host.address)}: {error.text}") from error
                await self.retry.wait(attempt)
                attempt += 1
                continue
            if answer.status in ask.accept:
                self._settle()
                return answer
            try:
                if answer.status == 401 and self.is_ours(answer.url) and challenges < _MAX_CHALLENGES:
                    challenges += 1
                    await self._authorizer.challenged(self.host, answer, ask.scopes, ask.errand, used)
                    continue
                body = await _error_body(answer)
                if answer.status == 400 and b"HTTPS" in body and self._guess_again():
                    continue
                self._settle()
                if answer.status not in RETRIED_STATUSES or attempt >= allowed:
                    raise status_error(ask.errand, _shown_host(self.host, answer), answer.status, body)
                asked_s = _retry_after(answer)
            finally:
                answer.release()
            await self.retry.wait(attempt, asked_s)
            attempt += 1

    def _request(self, ask: Ask, url: str, authorization: str | None) -> Request:
        own: dict[str, str] = {}
        if self.is_ours(url):
            for name, value in self.host.headers:
                own[name] = f"{own[name]}, {value}" if name in own else value
        if authorization is not None:
            own["Authorization"] = authorization
        return Request(
            host=self.host,
            method=ask.method,
            url=url,
            headers=ask.headers,
            own_headers=own,
            body=ask.body,
            size=ask.size,
            trusting=ask.trusting,
        )

    def _settle(self) -> None:
        """Keep to the scheme that an answer came by."""
        self._session.schemes.setdefault(self.host.address, self._scheme)

    def _guess_again(self) -> bool:
        """Try TLS where plain HTTP was a guess and went wrong; where that goes wrong too, plain HTTP it was."""
        if not self.host.try_https or self.host.address in self._session.schemes:
            return False
        self._scheme = "https" if self._scheme == "http" else "http"
        if self._scheme == "http":
            self._session.schemes[self.host.address] = "http"
        return self._scheme == "https"


async def _error_body(answer: Answer) -> bytes:
    try:
        return (await answer.read(MAX_ERROR_BODY))[:MAX_ERROR_BODY]
    except ConnectionFailedError:
        return b""  # the status alone must do; it is the error to tell


def _shown_host(host: Host, answer: Answer) -> str:
    if not answer.redirected:
        return host.address
    return f"{host.address}, redirected to {origin(answer.url)[1]}"


def _retry_after(answer: Answer) -> float:
    """Seconds that the server asks to wait; dates are not read, for clocks differ."""
    text = answer.header("Retry-After")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0


def describe_status(answer: Answer) -> str:
    """Status and content type, for errors about odd successes."""
    return f"{status_line(answer.status)}, content type {cleaned(answer.header('Content-Type')) or 'none'}"
