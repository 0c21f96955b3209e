"""Authorization at registries: basic, and tokens of the authorization server that a registry names.

A challenge is kept for its origin and repository, so that later requests bring their authorization at once. Tokens are
kept until shortly before they expire; of several requests that want the same one, one fetches it.

A registry's word sends our credentials to its token server: that is the protocol. It does not do so from HTTPS to plain
HTTP, and redirects of a token server do not take credentials along to another origin.

Source: distribution's docs/spec/auth/token.md and oauth.md; containerd's core/remotes/docker/authorizer.go.
"""

import asyncio
import base64
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from orlop.base.errdefs import FailedPreconditionError, OrlopError, UnauthenticatedError, UnavailableError
from orlop.core.remotes.answers import MAX_ERROR_BODY, Errand, cleaned, shown_url, status_error
from orlop.core.remotes.challenges import Challenge, merge_scopes, parse_challenges
from orlop.core.remotes.credentials import Anonymous, Credentials, Store
from orlop.core.remotes.hosts import Host, web_address
from orlop.core.remotes.session import Answer, Request, Session, origin

CLIENT_ID: Final = "containerd-client"
"""What token servers are told; some know this name and treat it well."""

MAX_TOKEN_ANSWER: Final = 1 << 20
DEFAULT_LIFETIME_S: Final = 60.0
_MARGIN_S: Final = 10.0

# Servers without the POST variant answer 404 (GCR), 401 (Artifactory), 400 (ACR) or 405.
_NO_POST: Final = frozenset({400, 401, 404, 405})

_Place = tuple[tuple[str, str, int], str]
"""Origin and repository: what a challenge holds for. Scopes, and podman's credentials, differ by repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answering:
    """How an origin wants to be answered; `credentials` None is anonymous."""

    scheme: str
    realm: str = ""
    service: str = ""
    scopes: frozenset[str] = frozenset()
    credentials: Credentials | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    expires_at: float


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None
    refresh_token: str | None = None


class Authorizer:
    """Gives the `Authorization` header for requests, and learns from 401 answers.

    Args:
        clock: monotonic seconds; for tests.
    """

    def __init__(
        self, session: Session, credentials: Store | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._credentials = credentials or Anonymous()
        self._clock = clock
        self._answering: dict[_Place, _Answering] = {}
        self._tokens: dict[tuple[_Place, tuple[str, ...]], _Token] = {}
        self._locks: dict[tuple[_Place, tuple[str, ...]], asyncio.Lock] = {}

    async def header(self, host: Host, url: str, scopes: Iterable[str], errand: Errand) -> str | None:
        """The value of `Authorization` for a request, or None while the origin has not asked for one.

        Raises:
            UnauthenticatedError, UnavailableError and others: the token server gave none; the text says whose fault.
        """
        place = (origin(url), errand.repository)
        answering = self._answering.get(place)
        if answering is None:
            return None
        if answering.scheme == "basic":
            assert answering.credentials is not None
            return _basic(answering.credentials)
        if answering.credentials is not None and answering.credentials.bearer:
            return f"Bearer {answering.credentials.bearer}"
        wanted = merge_scopes(scopes, answering.scopes)
        return f"Bearer {await self._token(place, answering, wanted, host, errand)}"

    async def challenged(
        self, host: Host, answer: Answer, scopes: Iterable[str], errand: Errand, used: str | None
    ) -> None:
        """Learn from a 401. Afterwards `header` may have something new to try.

        Args:
            used: the header that was refused, if one was sent.

        Raises:
            UnauthenticatedError: there is nothing new to try; the text says why.
        """
        place = (origin(answer.url), errand.repository)
        challenges = parse_challenges(answer.response.headers.getall("WWW-Authenticate", []))
        challenge = _choose(challenges)
        if challenge is None:
            raise UnauthenticatedError(f"{errand.at(host.address)}: 401 with no challenge that we can answer")
        known = self._answering.get(place)
        if used is not None and known is not None:
            self._forget(place, known, scopes)
            if known.scheme == "basic" or (known.credentials is not None and known.credentials.bearer):
                raise UnauthenticatedError(_refused(errand, host, known, challenge))
        credentials = await self._credentials.lookup(host, errand.repository)
        self._answering[place] = _understood(challenge, credentials, host, errand)

    def _forget(self, place: _Place, answering: _Answering, scopes: Iterable[str]) -> None:
        self._tokens.pop((place, merge_scopes(scopes, answering.scopes)), None)

    async def _token(
        self, place: _Place, answering: _Answering, scopes: tuple[str, ...], host: Host, errand: Errand
    ) -> str:
        key = (place, scopes)
        async with self._locks.setdefault(key, asyncio.Lock()):
            token = self._tokens.get(key)
            if token is None or token.expires_at <= self._clock():
                token = await self._fetch_token(answering, scopes, host, errand)
                self._tokens[key] = token
            return token.value

    async def _fetch_token(self, answering: _Answering, scopes: tuple[str, ...], host: Host, errand: Errand) -> _Token:
        asking = replace(errand, phase="token", subject=f"for {errand.phase} {errand.subject}")
        # The realm is asked as a host of its own: the registry's headers, proxy and TLS files are not for it, unless
        # it is the registry itself.
        at_registry = urlsplit(answering.realm).netloc == host.address
        server = (
            host
            if at_registry
            else replace(
                host,
                address=urlsplit(answering.realm).netloc,
                headers=(),
                proxy=None,
                tls=replace(host.tls, client_pairs=()),
            )
        )
        credentials = answering.credentials
        if credentials is not None and credentials.secret:
            _check_realm(answering.realm, host, asking)
            answer = await self._post(answering, scopes, server, asking, credentials)
            if answer is not None:
                return answer
        return await self._get(answering, scopes, server, asking, credentials)

    async def _post(
        self, answering: _Answering, scopes: tuple[str, ...], server: Host, errand: Errand, credentials: Credentials
    ) -> _Token | None:
        """The OAuth2 variant; None if this server does not have it."""
        form = {"client_id": CLIENT_ID, "service": answering.service}
        if scopes:
            form["scope"] = " ".join(scopes)
        if credentials.username:
            form |= {"grant_type": "password", "username": credentials.username, "password": credentials.secret}
        else:
            form |= {"grant_type": "refresh_token", "refresh_token": credentials.secret}
        data = urlencode(form).encode()
        request = Request(
            host=server,
            method="POST",
            url=answering.realm,
            headers={"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
            body=data,
            size=len(data),
            trusting=True,
            keeps_origin=True,
        )
        status, body = await self._ask(request, errand)
        if status in _NO_POST and (credentials.username or status != 405):
            return None
        return self._read_token(status, body, server, errand)

    async def _get(
        self,
        answering: _Answering,
        scopes: tuple[str, ...],
        server: Host,
        errand: Errand,
        credentials: Credentials | None,
    ) -> _Token:
        query = ([("service", answering.service)] if answering.service else []) + [("scope", scope) for scope in scopes]
        separator = "&" if urlsplit(answering.realm).query else "?"
        url = f"{answering.realm}{separator}{urlencode(query)}" if query else answering.realm
        own = {"Authorization": _basic(credentials)} if credentials is not None and credentials.secret else {}
        request = Request(host=server, method="GET", url=url, own_headers=own, trusting=True)
        status, body = await self._ask(request, errand)
        return self._read_token(status, body, server, errand)

    async def _ask(self, request: Request, errand: Errand) -> tuple[int, bytes]:
        try:
            answer = await self._session.send(request)
        except OrlopError as error:
            raise UnavailableError(f"{errand.at(request.host.address)}: {error.text}") from error
        try:
            return answer.status, await answer.read(MAX_TOKEN_ANSWER)
        finally:
            answer.release()

    def _read_token(self, status: int, body: bytes, server: Host, errand: Errand) -> _Token:
        if not 200 <= status < 300:
            raise status_error(errand, server.address, status, body[:MAX_ERROR_BODY])
        if len(body) > MAX_TOKEN_ANSWER:
            raise FailedPreconditionError(f"{errand.at(server.address)}: more than {MAX_TOKEN_ANSWER} bytes of token")
        try:
            answer = msgspec.json.decode(body, type=_TokenAnswer)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise FailedPreconditionError(f"{errand.at(server.address)}: the answer is no token") from None
        value = answer.access_token or answer.token
        if not value or not value.isprintable():
            raise FailedPreconditionError(f"{errand.at(server.address)}: the answer has no token in it")
        lifetime_s = max(DEFAULT_LIFETIME_S if answer.expires_in is None else answer.expires_in, 0.0)
        return _Token(value, self._clock() + max(lifetime_s - _MARGIN_S, lifetime_s / 2))


def _choose(challenges: list[Challenge]) -> Challenge | None:
    """The first bearer challenge, else the first basic one."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    return None


def _understood(challenge: Challenge, credentials: Credentials | None, host: Host, errand: Errand) -> _Answering:
    if challenge.scheme == "basic":
        if credentials is None or not credentials.username or not credentials.secret:
            raise UnauthenticatedError(
                f"{errand.at(host.address)}: 401 Unauthorized: no basic auth credentials",
                hint="log in, or give --user",
            )
        return _Answering(scheme="basic", credentials=credentials)
    realm = challenge.parameters.get("realm", "")
    if web_address(realm) is None:
        raise UnauthenticatedError(
            f"{errand.at(host.address)}: token realm {cleaned(shown_url(realm))!r} is no address"
        )
    return _Answering(
        scheme="bearer",
        realm=realm,
        service=challenge.parameters.get("service", ""),
        scopes=challenge.scopes,
        credentials=credentials,
    )


def _check_realm(realm: str, host: Host, errand: Errand) -> None:
    if host.scheme == "https" and urlsplit(realm).scheme != "https":
        raise UnauthenticatedError(
            f"{errand.at(host.address)}: credentials are not sent to {cleaned(shown_url(realm))} over plain HTTP"
        )


def _refused(errand: Errand, host: Host, known: _Answering, challenge: Challenge) -> str:
    source = known.credentials.source if known.credentials is not None else ""
    told = challenge.parameters.get("error_description") or challenge.parameters.get("error") or ""
    reason = f": {cleaned(told)}" if told else ""
    return f"{errand.at(host.address)}: 401 Unauthorized: credentials from {source or 'the caller'} refused{reason}"


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.secret}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
