"""What refers to a manifest: signatures, attestations and other documents that name it as their subject.

A registry is asked by the referrers API; one without it keeps an index under a tag made of the digest.

Source: "Listing Referrers" of distribution-spec; containerd's core/remotes/docker/referrers.go.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final
from urllib.parse import urljoin, urlsplit

from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnimplementedError,
)
from orlop.core.remotes.answers import Errand, cleaned
from orlop.core.remotes.hosts import Capability
from orlop.core.remotes.repository import Ask, Repository
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import MAX_MANIFEST_SIZE, Descriptor, decode_index

MAX_PAGES: Final = 64
MAX_REFERRERS: Final = 4096

_LINK: Final = re.compile(r"<([^<>]*)>([^<]*)")
_NEXT: Final = re.compile(r""";\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next\b)""", re.IGNORECASE)
# How a registry says that it has no such API; the tag is asked for then.
_NO_API: Final = (NotFoundError, UnimplementedError, InvalidArgumentError)
_NO_TAG: Final = (NotFoundError,)


async def referrers(
    repositories: Sequence[Repository], digest: Digest, *, scopes: Sequence[str], artifact_types: Collection[str] = ()
) -> list[Descriptor]:
    """The descriptors of what refers to `digest`, of the first host that answers; none if there are none.

    Args:
        repositories: of all the registry's hosts; asked are those with the capability `referrers`, or, where none has
            it, those that resolve tags, for the tag alone.
        artifact_types: only these; all when empty.

    Raises:
        NotFoundError: no host may be asked.
        FailedPreconditionError: an answer is larger than allowed, or goes on elsewhere.
        OrlopError: no host answered; of several errors the first.
    """
    able = [one for one in repositories if Capability.REFERRERS in one.host.capabilities]
    tagged = able or [one for one in repositories if Capability.RESOLVE in one.host.capabilities]
    if not tagged:
        raise NotFoundError("no referrers hosts")
    first: OrlopError | None = None
    for hosts, tag, absent in ((able, False, _NO_API), (tagged, True, _NO_TAG)):
        for repository in hosts:
            listing = _Listing(repository, digest, scopes, artifact_types)
            try:
                found = await (listing.of_tag() if tag else listing.of_api())
            except absent:
                continue
            except OrlopError as error:
                first = first or error
                continue
            return [one for one in found if not artifact_types or one.artifact_type in artifact_types]
    if first is not None:
        raise first
    return []


class _Listing:
    """The questions to one host."""

    def __init__(
        self, repository: Repository, digest: Digest, scopes: Sequence[str], artifact_types: Collection[str]
    ) -> None:
        self._repository = repository
        self._digest = digest
        self._scopes = scopes
        self._query: Mapping[str, str] = {}
        if len(artifact_types) == 1:  # the API takes one; whether it was heeded does not matter
            self._query = {"artifactType": next(iter(artifact_types))}
        self._errand = Errand(phase="list referrers", subject=digest, repository=repository.name)
        self._left = MAX_MANIFEST_SIZE

    async def of_tag(self) -> Sequence[Descriptor]:
        found, _next = await self._page(("manifests", self._digest.replace(":", "-")))
        return found

    async def of_api(self) -> Sequence[Descriptor]:
        found, link = await self._page(("referrers", self._digest), self._query)
        if not link:
            return found
        try:
            return await self._rest(list(found), link)
        except _NO_API as error:
            # A list that lacks its end must not pass for one that is there, nor for none.
            raise FailedPreconditionError(f"{self._errand.at(self._repository.host.address)}: {error.text}") from error

    async def _rest(self, found: list[Descriptor], link: str) -> Sequence[Descriptor]:
        at = self._repository.url("referrers", self._digest, query=self._query)
        seen = {at}
        while link:
            following = urljoin(at, link)
            if urlsplit(following)[:3] != urlsplit(at)[:3] or following in seen or len(seen) >= MAX_PAGES:
                self._refuse(f"the list goes on at {cleaned(link)}, which is not followed")
            seen.add(following)
            more, link = await self._page(following)
            found += more
            if len(found) > MAX_REFERRERS:
                self._refuse(f"more than {MAX_REFERRERS} referrers")
            at = following
        return found

    async def _page(
        self, where: Sequence[str] | str, query: Mapping[str, str] | None = None
    ) -> tuple[Sequence[Descriptor], str]:
        """One answer's descriptors, and where the next one is."""
        ask = Ask(
            method="GET",
            where=where,
            errand=self._errand,
            scopes=self._scopes,
            headers={"Accept": media_types.OCI_INDEX},
            query=query or {},
            accept=(200,),
            trusting=True,
        )
        async with self._repository.open(ask) as answer:
            body = await answer.read(self._left)
            link = answer.header("Link")
        if len(body) > self._left:
            self._refuse(f"more than {MAX_MANIFEST_SIZE} bytes")
        self._left -= len(body)
        found = decode_index(body, what=self._errand.at(self._repository.host.address)).manifests
        if len(found) > MAX_REFERRERS:
            self._refuse(f"more than {MAX_REFERRERS} referrers")
        return found, next((target for target, said in _LINK.findall(link) if _NEXT.search(said)), "")

    def _refuse(self, reason: str) -> None:
        raise FailedPreconditionError(f"{self._errand.at(self._repository.host.address)}: {reason}")
