"""Content put into a repository: blobs uploaded in one piece or mounted from beside, manifests by tag or digest.

Source: distribution-spec, "Push"; containerd's core/remotes/docker/pusher.go and handler.go.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    OrlopError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from orlop.base.labels import DISTRIBUTION_SOURCE
from orlop.base.references import Spec
from orlop.core.remotes import PushResult, PushStatus, Source
from orlop.core.remotes.answers import Errand, cleaned, shown_url
from orlop.core.remotes.hosts import split_port, web_address
from orlop.core.remotes.repository import Ask, Repository, describe_status
from orlop.core.remotes.session import Answer, join
from orlop.oci import media_types
from orlop.oci.digest import Verifier
from orlop.oci.image import Descriptor

_STORED: Final = frozenset({200, 201, 202, 204})  # 201 by the spec; some registries say otherwise


class RegistryPusher:
    """Writes to one repository of one host; see `remotes.Pusher`."""

    def __init__(self, repository: Repository, spec: Spec, *, scopes: Sequence[str]) -> None:
        self._repository = repository
        self._spec = spec
        self._scopes = scopes

    async def push(
        self, descriptor: Descriptor, source: Source, *, labels: Mapping[str, str] | None = None
    ) -> PushResult:
        """See `remotes.Pusher.push`."""
        errand = Errand(phase="push", subject=descriptor.digest, repository=self._repository.name)
        is_manifest = media_types.is_manifest(descriptor.media_type) or media_types.is_index(descriptor.media_type)
        where = manifest_path(self._spec, descriptor) if is_manifest else ("blobs", descriptor.digest)
        if await self._exists(descriptor, where, errand):
            return PushResult(status=PushStatus.EXISTS)
        if is_manifest:
            await self._put_manifest(descriptor, where, source, errand)
            return PushResult(status=PushStatus.UPLOADED)
        repository = mount_candidate(self._spec, {**descriptor.annotations, **(labels or {})})
        return await self._put_blob(descriptor, source, errand, repository)

    async def _exists(self, descriptor: Descriptor, where: tuple[str, str], errand: Errand) -> bool:
        """Whether the registry has it already, under the tag too if it is to have one."""
        ask = Ask(
            method="HEAD",
            where=where,
            errand=errand,
            scopes=self._scopes,
            headers={"Accept": f"{descriptor.media_type}, */*"},
            accept=(200, 404),
        )
        try:
            async with self._repository.open(ask) as answer:
                if answer.status == 404:
                    return False
                return where[1] == descriptor.digest or answer.header("Docker-Content-Digest") == descriptor.digest
        except (UnauthenticatedError, PermissionDeniedError):
            # Who may write need not be allowed to look; if writing is refused too, that is the error to tell.
            return False

    async def _put_manifest(
        self, descriptor: Descriptor, where: tuple[str, str], source: Source, errand: Errand
    ) -> None:
        data = b"".join([piece async for piece in _checked(descriptor, source, errand)])
        ask = Ask(
            method="PUT",
            where=where,
            errand=errand,
            scopes=self._scopes,
            headers={"Content-Type": descriptor.media_type},
            body=data,
            size=len(data),
            accept=_STORED,
        )
        async with self._repository.open(ask) as answer:
            _check_stored(answer, descriptor, errand, self._repository)

    async def _put_blob(self, descriptor: Descriptor, source: Source, errand: Errand, mount_from: str) -> PushResult:
        for attempt in range(1, self._repository.retry.attempts + 1):
            begun = await self._begin(descriptor, errand, mount_from)
            if begun.mounted:
                return PushResult(status=PushStatus.MOUNTED, mounted_from=f"{self._spec.hostname}/{mount_from}")
            try:
                await self._upload(descriptor, source, errand, begun.location)
            except UnavailableError:
                # The upload's place may be gone with the connection: begin anew, with a new source.
                if attempt == self._repository.retry.attempts:
                    raise
                await self._repository.retry.wait(attempt)
                mount_from = ""
            else:
                break
        return PushResult(status=PushStatus.UPLOADED)

    async def _begin(self, descriptor: Descriptor, errand: Errand, mount_from: str) -> "_Begun":
        """Ask for a mount from another repository if there is one, and for a place to upload to."""
        if mount_from:
            scopes = [*self._scopes, f"repository:{mount_from}:pull"]
            try:
                return await self._post(errand, scopes, {"mount": descriptor.digest, "from": mount_from})
            except (UnauthenticatedError, PermissionDeniedError):
                pass  # the other repository may be private: upload instead
        return await self._post(errand, self._scopes, {})

    async def _post(self, errand: Errand, scopes: Sequence[str], query: Mapping[str, str]) -> "_Begun":
        ask = Ask(
            method="POST",
            where=("blobs", "uploads/"),
            errand=errand,
            scopes=scopes,
            query=query,
            body=b"",
            size=0,
            accept=(200, 201, 202, 204),
        )
        async with self._repository.open(ask) as answer:
            if answer.status == 201 and query:
                return _Begun(mounted=True)
            location = answer.header("Location")
            if not location:
                raise FailedPreconditionError(
                    f"{errand.at(self._repository.host.address)}: no place to upload to ({describe_status(answer)})"
                )
            return _Begun(location=self._located(answer, location, errand))

    def _located(self, answer: Answer, location: str, errand: Errand) -> str:
        """The address to upload to. Another origin than the registry gets no authorization."""
        url = join(answer.url, location)
        if web_address(url) is None:
            raise FailedPreconditionError(
                f"{errand.at(self._repository.host.address)}: {cleaned(shown_url(url))} is no place to upload to"
            )
        return url

    async def _upload(self, descriptor: Descriptor, source: Source, errand: Errand, location: str) -> None:
        separator = "&" if urlsplit(location).query else "?"
        failed: list[Exception] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in _checked(descriptor, source, errand):
                    yield piece
            except Exception as error:
                failed.append(error)  # the HTTP library tells of a broken connection only
                raise

        ask = Ask(
            method="PUT",
            where=f"{location}{separator}{urlencode({'digest': descriptor.digest}, safe=':')}",
            errand=errand,
            scopes=self._scopes,
            headers={"Content-Type": media_types.OCTET_STREAM},
            body=body,
            size=descriptor.size,
            accept=_STORED,
            attempts=1,
        )
        try:
            async with self._repository.open(ask) as answer:
                _check_stored(answer, descriptor, errand, self._repository)
        except OrlopError as error:
            if failed:
                raise failed[0] from error
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    location: str = ""
    mounted: bool = False


async def _checked(descriptor: Descriptor, source: Source, errand: Errand) -> AsyncIterator[bytes]:
    """What the source gives, refused if it is not what the descriptor says."""
    what = f"push {descriptor.digest}: local content for repository {errand.repository}"
    verifier = Verifier(descriptor.digest, size=descriptor.size, what=what)
    async for piece in source():
        verifier.update(piece)
        yield piece
    verifier.finish()


def _check_stored(answer: Answer, descriptor: Descriptor, errand: Errand, repository: Repository) -> None:
    told = answer.header("Docker-Content-Digest")
    if told and told != descriptor.digest:
        raise FailedPreconditionError(
            f"{errand.at(repository.host.address)}: stored as {cleaned(told)}, expected {descriptor.digest}"
        )


def manifest_path(spec: Spec, descriptor: Descriptor) -> tuple[str, str]:
    """Where a manifest is put: under the reference's tag, unless the reference names another digest or no tag."""
    if "@" in spec.object and spec.digest != descriptor.digest:
        return "manifests", descriptor.digest
    return "manifests", spec.tag or descriptor.digest


def mount_candidate(spec: Spec, labels: Mapping[str, str]) -> str:
    """The repository on the same registry that is known to have the blob and is most like the target; else empty."""
    host = split_port(spec.hostname)[0]
    known = labels.get(f"{DISTRIBUTION_SOURCE}.{host}", "")
    target = spec.repository.split("/")
    best, best_length = "", -1
    for repository in filter(None, known.split(",")):
        length = _common_prefix(target, repository.split("/"))
        if repository != spec.repository and length >= best_length:
            best, best_length = repository, length
    return best


def append_source(known: str, repository: str) -> str:
    """The value of a distribution source label with one more repository: sorted, each once."""
    return ",".join(sorted({*filter(None, known.split(",")), repository}))


def source_label(ref: str) -> tuple[str, str]:
    """Key of the distribution source label for a reference's registry, and the repository to note there.

    Raises:
        InvalidArgumentError: it is no reference.
    """
    spec = Spec.parse(ref)
    if not spec.repository:
        raise InvalidArgumentError(f"invalid reference {ref}: no repository")
    return f"{DISTRIBUTION_SOURCE}.{split_port(spec.hostname)[0]}", spec.repository


def _common_prefix(one: Sequence[str], other: Sequence[str]) -> int:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length
