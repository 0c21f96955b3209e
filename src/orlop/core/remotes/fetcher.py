"""Content of a repository, read so that it can be trusted: sized, verified, resumed.

The reader stops at the expected size. A cut connection goes on at the byte where it was cut, by a range request; from a
server that ignores ranges the bytes before are read again and dropped. Progress pays back attempts: only failures in a
row count.

Source: containerd's core/remotes/docker/fetcher.go and httpreadseeker.go; umoci's pkg/hardening/verified_reader.go.
"""

import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final

from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    OrlopError,
    OutOfRangeError,
    UnavailableError,
)
from orlop.core.remotes.answers import Errand, shown_url
from orlop.core.remotes.hosts import Host
from orlop.core.remotes.parts import Parts, in_order
from orlop.core.remotes.repository import Ask, Repository
from orlop.core.remotes.session import Answer, ConnectionFailedError
from orlop.oci import media_types
from orlop.oci.digest import Verifier
from orlop.oci.image import MAX_MANIFEST_SIZE, Descriptor

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")
_PAYBACK: Final = 1 << 20
"""Bytes of progress after which earlier failures are forgiven."""

_ATTEMPTS_OF_SEVERAL: Final = 2
"""Requests to each of several hosts; with but one there is nothing to do but to be patient."""

_HTML: Final = ("text/html", "application/xhtml+xml")


class _NoRangesError(Exception):
    """The server does not give parts of this content."""


class RegistryFetcher:
    """Reads content of one repository from the first host that has it; see `remotes.Fetcher`.

    Args:
        parts: how large content is fetched in parts; None fetches all in one piece.
    """

    def __init__(
        self, repositories: Sequence[Repository], *, scopes: Sequence[str], parts: Parts | None = None
    ) -> None:
        self._repositories = list(repositories)
        self._scopes = scopes
        self._parts = parts

    @asynccontextmanager
    async def fetch(
        self, descriptor: Descriptor, *, offset: int = 0, verify: bool = True
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `remotes.Fetcher.fetch`."""
        if offset > descriptor.size:
            raise OutOfRangeError(f"fetch {descriptor.digest}: offset {offset} is beyond the {descriptor.size} bytes")
        async with aclosing(self._stream(descriptor, offset, verify=verify)) as stream:
            yield stream

    async def read(self, descriptor: Descriptor) -> bytes:
        """See `remotes.Fetcher.read`."""
        if descriptor.size > MAX_MANIFEST_SIZE:
            raise InvalidArgumentError(
                f"fetch {descriptor.digest}: {descriptor.size} bytes, more than the allowed {MAX_MANIFEST_SIZE}"
            )
        async with self.fetch(descriptor) as stream:
            return b"".join([piece async for piece in stream])

    async def _stream(self, descriptor: Descriptor, offset: int, *, verify: bool) -> AsyncGenerator[bytes, None]:
        verifier = Verifier(descriptor.digest, size=descriptor.size, what=f"fetch {descriptor.digest}")
        checks = verify and offset == 0
        async with aclosing(self._pieces(descriptor, offset)) as pieces:
            async for piece in pieces:
                if checks:
                    verifier.update(piece)
                yield piece
        if checks:
            verifier.finish()

    async def _pieces(self, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        """In parts where that is wanted and the server has ranges, and from there on in one piece."""
        position = offset
        if self._parts is not None and self._parts.worthwhile(descriptor.size - offset):
            fetch = functools.partial(self._part, descriptor)
            try:
                async with aclosing(in_order(fetch, offset, descriptor.size, self._parts)) as parts:
                    async for part in parts:
                        position += len(part)
                        yield part
            except _NoRangesError:
                pass  # one piece, then
            else:
                return
        async with aclosing(self._in_one(descriptor, position)) as pieces:
            async for piece in pieces:
                yield piece

    async def _in_one(self, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
        position, failures, forgiven_at = offset, 0, offset
        # An empty blob needs no request; what it is, is known.
        while position < descriptor.size:
            try:
                async with self._opened(descriptor, position) as (answer, skip):
                    async for piece in _exactly(answer, skip, descriptor, position):
                        position += len(piece)
                        yield piece
                if position < descriptor.size:
                    raise ConnectionFailedError(f"body ended after {position} of {descriptor.size} bytes")
            except ConnectionFailedError as error:
                if position - forgiven_at >= _PAYBACK:
                    failures, forgiven_at = 0, position
                failures += 1
                await self._bear(descriptor, position, failures, error)

    async def _part(self, descriptor: Descriptor, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`. Raises _NoRangesError if the server does not give parts."""
        found = bytearray()
        failures = 0
        while len(found) < end - start:
            before = len(found)
            try:
                async with self._opened(descriptor, start + before, end) as (answer, _):
                    async for piece in answer.pieces():
                        found += piece
                        if len(found) > end - start:
                            raise FailedPreconditionError(
                                f"fetch {descriptor.digest}: {shown_url(answer.url)} sends more than was asked for"
                            )
                if len(found) < end - start:
                    raise ConnectionFailedError(f"body ended after {start + len(found)} of {end} bytes")
            except ConnectionFailedError as error:
                failures = 1 if len(found) - before >= _PAYBACK else failures + 1
                await self._bear(descriptor, start + len(found), failures, error)
        return bytes(found)

    async def _bear(self, descriptor: Descriptor, position: int, failures: int, error: ConnectionFailedError) -> None:
        """Wait after a cut connection, or raise UnavailableError if there were too many."""
        repository = self._repositories[0]
        if failures >= repository.retry.attempts:
            told = self._errand(descriptor, repository).at(repository.host.address)
            raise UnavailableError(f"{told}: {error.text} (at byte {position} of {descriptor.size})") from error
        await repository.retry.wait(failures)

    @asynccontextmanager
    async def _opened(self, descriptor: Descriptor, position: int, end: int = 0) -> AsyncIterator[tuple[Answer, int]]:
        """An answer that has the content, and how many bytes of it come before `position`.

        Args:
            end: only so far, and exactly: who does not answer so raises _NoRangesError.
        """
        async with AsyncExitStack() as stack:
            yield await self._open_any(stack, descriptor, position, end)

    async def _open_any(
        self, stack: AsyncExitStack, descriptor: Descriptor, position: int, end: int
    ) -> tuple[Answer, int]:
        first_error: OrlopError | None = None
        for url in _own_urls(descriptor):
            try:
                return await self._open_at(stack, self._repositories[0], url, descriptor, position, end)
            except OrlopError as error:
                first_error = first_error or error
        for repository in tuple(self._repositories):
            where = ("manifests" if _is_manifest(descriptor) else "blobs", descriptor.digest)
            try:
                opened = await self._open_at(stack, repository, where, descriptor, position, end)
            except OrlopError as error:
                # The next host may do better; of all errors the first is the one to tell, but a definite one is better
                # than a mirror that is down.
                if first_error is None or isinstance(first_error, UnavailableError):
                    first_error = error
                continue
            self._prefer(repository)
            return opened
        assert first_error is not None
        raise first_error

    def _prefer(self, repository: Repository) -> None:
        """Ask the host that answered first from now on: a resumed blob should come from where it began."""
        self._repositories.remove(repository)
        self._repositories.insert(0, repository)

    async def _open_at(
        self,
        stack: AsyncExitStack,
        repository: Repository,
        where: Sequence[str] | str,
        descriptor: Descriptor,
        position: int,
        end: int,
    ) -> tuple[Answer, int]:
        errand = self._errand(descriptor, repository)
        headers = {"Accept": f"{descriptor.media_type}, */*" if descriptor.media_type else "*/*"}
        ranged = bool(position or end)
        ask = Ask(
            method="GET",
            where=where,
            errand=errand,
            scopes=self._scopes,
            headers=headers | {"Range": f"bytes={position}-{end - 1 if end else ''}"} if ranged else headers,
            accept=(200, 206, 416) if ranged else (200,),
            attempts=_ATTEMPTS_OF_SEVERAL if len(self._repositories) > 1 else None,
        )
        answer = await stack.enter_async_context(repository.open(ask))
        if end:
            if not _is_part(answer, position, end):
                raise _NoRangesError(f"{errand.at(repository.host.address)}: no parts")
            return answer, 0
        if position and not _resumes(answer, position):
            # It answers the range wrongly, or not at all: take everything and drop what we have.
            answer.release()
            whole = Ask(method="GET", where=where, errand=errand, scopes=self._scopes, headers=headers, accept=(200,))
            answer = await stack.enter_async_context(repository.open(whole))
        skip = position if answer.status == 200 else 0
        _check_answer(answer, descriptor, position - skip, errand, repository.host)
        return answer, skip

    def _errand(self, descriptor: Descriptor, repository: Repository) -> Errand:
        return Errand(phase="fetch", subject=descriptor.digest, repository=repository.name)


async def _exactly(answer: Answer, skip: int, descriptor: Descriptor, position: int) -> AsyncIterator[bytes]:
    """The body without its first `skip` bytes, up to the expected size and no further."""
    left = descriptor.size - position
    async for piece in answer.pieces():
        if skip >= len(piece):
            skip -= len(piece)
            continue
        data = piece[skip:] if skip else piece
        skip = 0
        if len(data) > left:
            told = shown_url(answer.url)
            raise FailedPreconditionError(
                f"fetch {descriptor.digest}: {told} sends more than the expected {descriptor.size} bytes"
            )
        left -= len(data)
        yield data
        if left == 0:
            return


def _own_urls(descriptor: Descriptor) -> list[str]:
    """Where a layer that may not be distributed comes from; of other content such addresses do not count."""
    if not media_types.is_nondistributable(descriptor.media_type):
        return []
    return [url for url in descriptor.urls if re.match(r"https?://[^/@]+(/|$)", url)]


def _is_manifest(descriptor: Descriptor) -> bool:
    return media_types.is_manifest(descriptor.media_type) or media_types.is_index(descriptor.media_type)


def _is_part(answer: Answer, position: int, end: int) -> bool:
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip())
    return answer.status == 206 and match is not None and (int(match[1]), int(match[2])) == (position, end - 1)


def _resumes(answer: Answer, position: int) -> bool:
    """Whether the answer can be used from `position` on: the right range, or (to be skipped) everything."""
    if answer.status == 200:
        return True
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip())
    return answer.status == 206 and match is not None and int(match[1]) == position


def _check_answer(answer: Answer, descriptor: Descriptor, start: int, errand: Errand, host: Host) -> None:
    """Refuse what cannot be the content, before any of it is taken."""
    length = answer.length
    if length is not None and length != descriptor.size - start:
        raise FailedPreconditionError(
            f"{errand.at(host.address)}: the server offers {start + length} bytes, expected {descriptor.size}"
        )
    content_type = answer.header("Content-Type").partition(";")[0].strip().lower()
    total = _CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip()) if answer.status == 206 else None
    if total is not None and total[3] not in {"*", str(descriptor.size)}:
        raise FailedPreconditionError(
            f"{errand.at(host.address)}: the server has {total[3]} bytes, expected {descriptor.size}"
        )
    if content_type in _HTML and content_type != descriptor.media_type:
        raise FailedPreconditionError(
            f"{errand.at(host.address)}: the server sends {content_type}, a page for browsers"
        )
    if _is_manifest(descriptor) and _contradicts(content_type, descriptor.media_type):
        raise FailedPreconditionError(
            f"{errand.at(host.address)}: the server sends {content_type}, expected {descriptor.media_type}"
        )


def _contradicts(content_type: str, media_type: str) -> bool:
    """Whether a manifest comes as an index or the other way round; other types say nothing."""
    if media_types.is_manifest(media_type):
        return media_types.is_index(content_type)
    return media_types.is_manifest(content_type)
