"""References resolved at registries that speak the OCI distribution protocol; the way to fetchers and pushers.

    async with RegistryResolver(hosts=HostOptions(), credentials=Chain(default_files(os.environ))) as resolver:
        name, descriptor = await resolver.resolve("docker.io/library/redis:latest")
        fetcher = resolver.fetcher(name)
        manifest = await fetcher.read(descriptor)
        async with fetcher.fetch(layer) as stream:
            async for piece in stream: ...

Resolving a tag is the one point where a registry is trusted: digest, size and type are taken from its answer. From
there on the digest rules.

Source: containerd's core/remotes/docker/resolver.go.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, Self

from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnavailableError,
)
from orlop.base.references import Spec
from orlop.core.remotes.answers import Errand, cleaned
from orlop.core.remotes.authorizer import Authorizer
from orlop.core.remotes.credentials import Store
from orlop.core.remotes.fetcher import RegistryFetcher
from orlop.core.remotes.hosts import Capability, Host, HostOptions, hosts_for, require
from orlop.core.remotes.parts import Parts
from orlop.core.remotes.pusher import RegistryPusher
from orlop.core.remotes.repository import Ask, Repository, Retry
from orlop.core.remotes.session import Answer, Session
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import MAX_MANIFEST_SIZE, Descriptor, decode_shape

_MANIFEST_TYPES: Final = (
    media_types.OCI_MANIFEST,
    media_types.OCI_INDEX,
    media_types.DOCKER_MANIFEST,
    media_types.DOCKER_MANIFEST_LIST,
)


class RegistryResolver:
    """See `remotes.Resolver`. Holds connections and tokens; an async context manager that closes them.

    Args:
        hosts: where to look for mirrors, and how to connect.
        credentials: who we are; nobody without.
        session: to share connections; a session given here is not closed.
    """

    def __init__(
        self,
        *,
        hosts: HostOptions | None = None,
        credentials: Store | None = None,
        retry: Retry | None = None,
        session: Session | None = None,
    ) -> None:
        self._hosts = hosts or HostOptions()
        self._retry = retry or Retry()
        self._session = session or Session()
        self._owns_session = session is None
        self._authorizer = Authorizer(self._session, credentials)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `remotes.Resolver.aclose`."""
        if self._owns_session:
            await self._session.aclose()

    def fetcher(self, ref: str, *, parts: Parts | None = None) -> RegistryFetcher:
        """See `remotes.Resolver.fetcher`; `parts` is how large content is fetched."""
        spec = parse_repository(ref)
        hosts = require(self._hosts_of(spec), Capability.PULL, "pull")
        return RegistryFetcher(self._repositories(spec, hosts), scopes=pull_scopes(spec), parts=parts)

    def pusher(self, ref: str) -> RegistryPusher:
        """See `remotes.Resolver.pusher`."""
        spec = parse_repository(ref)
        host = require(self._hosts_of(spec), Capability.PUSH, "push")[0]
        scopes = (f"repository:{spec.repository}:pull,push",)
        return RegistryPusher(self._repositories(spec, [host])[0], spec, scopes=scopes)

    async def referrers(self, ref: str, digest: Digest, *, artifact_types: Collection[str] = ()) -> list[Descriptor]:
        """What refers to a manifest in the repository that `ref` is in; see `remotes.referrers`."""
        from orlop.core.remotes.referrers import referrers

        spec = parse_repository(ref)
        repositories = self._repositories(spec, self._hosts_of(spec))
        return await referrers(repositories, digest, scopes=pull_scopes(spec), artifact_types=artifact_types)

    async def resolve(self, ref: str) -> tuple[str, Descriptor]:
        """See `remotes.Resolver.resolve`."""
        spec = parse_repository(ref)
        if not spec.object:
            raise InvalidArgumentError(f"resolve {ref}: object required")
        digest = Digest.parse(spec.digest) if "@" in spec.object else None
        needed = Capability.PULL if digest is not None else Capability.PULL | Capability.RESOLVE
        repositories = self._repositories(spec, require(self._hosts_of(spec), needed, "resolve"))
        # By digest it may be a blob: an image without a manifest, such as a plain layer.
        kinds = ("manifests", "blobs") if digest is not None else ("manifests",)
        errors: list[OrlopError] = []
        for kind in kinds:
            for repository in repositories:
                try:
                    found = await _resolve_at(repository, ref, spec, digest, kind, patient=len(repositories) == 1)
                except OrlopError as error:
                    errors.append(error)
                else:
                    return ref, found
        raise _most_telling(errors)

    def _hosts_of(self, spec: Spec) -> list[Host]:
        return hosts_for(spec.hostname, self._hosts)

    def _repositories(self, spec: Spec, hosts: Iterable[Host]) -> list[Repository]:
        return [
            Repository(host, spec.repository, session=self._session, authorizer=self._authorizer, retry=self._retry)
            for host in hosts
        ]


def parse_repository(ref: str) -> Spec:
    """The parts of a reference that names a repository.

    Raises:
        InvalidArgumentError: it is no reference, or a host alone.
    """
    spec = Spec.parse(ref)
    if not spec.repository:
        raise InvalidArgumentError(f"invalid reference {cleaned(ref)}: no repository")
    return spec


def pull_scopes(spec: Spec) -> tuple[str, ...]:
    """What a token must allow for reading the repository."""
    return (f"repository:{spec.repository}:pull",)


async def _resolve_at(
    repository: Repository, ref: str, spec: Spec, digest: Digest | None, kind: str, *, patient: bool
) -> Descriptor:
    errand = Errand(phase="resolve", subject=ref, repository=repository.name)
    where = (kind, digest if digest is not None else spec.tag)
    asking = {"where": where, "errand": errand, "attempts": None if patient else 2}
    head = _ask("HEAD", asking, spec)
    async with repository.open(head) as answer:
        found = None
        if answer.status != 405:
            found = _described(answer, digest, errand, repository.host, is_blob=kind == "blobs")
    if found is None:
        async with repository.open(_ask("GET", asking, spec)) as answer:
            found = await _read_described(answer, digest, errand, repository.host, is_blob=kind == "blobs")
    if found.size > MAX_MANIFEST_SIZE and kind == "manifests":
        # The class is containerd's: another host may have a manifest that can be used.
        raise NotFoundError(f"{errand.at(repository.host.address)}: rejecting {found.size} byte manifest for {ref}")
    return found


def _ask(method: str, asking: dict[str, object], spec: Spec) -> Ask:
    return Ask(
        method=method,
        scopes=pull_scopes(spec),
        headers={"Accept": media_types.MANIFEST_ACCEPT},
        accept=(200, 405) if method == "HEAD" else (200,),
        trusting=True,
        **asking,  # type: ignore[arg-type]
    )


def _described(
    answer: Answer, digest: Digest | None, errand: Errand, host: Host, *, is_blob: bool
) -> Descriptor | None:
    """The descriptor that the headers of an answer give, or None if they do not suffice."""
    content_type = _content_type(answer)
    told = answer.header("Docker-Content-Digest")
    told_digest = _told_digest(told, errand, host) if told else None
    if digest is not None and told_digest is not None and told_digest != digest:
        raise FailedPreconditionError(f"{errand.at(host.address)}: asked for {digest}, the registry has {told_digest}")
    found = digest or told_digest
    if found is None or answer.length is None:
        return None
    if not is_blob and content_type not in _MANIFEST_TYPES:
        return None  # the document itself says what it is
    return Descriptor(media_type=content_type, digest=found, size=answer.length)


async def _read_described(
    answer: Answer, digest: Digest | None, errand: Errand, host: Host, *, is_blob: bool
) -> Descriptor:
    """The descriptor of what an answer has in its body, for registries that say too little in their headers."""
    at = errand.at(host.address)
    if answer.length is not None and answer.length > MAX_MANIFEST_SIZE:
        raise NotFoundError(f"{at}: rejecting {answer.length} byte manifest for {errand.subject}")
    body = await answer.read(MAX_MANIFEST_SIZE)
    if len(body) > MAX_MANIFEST_SIZE:
        raise NotFoundError(f"{at}: rejecting manifest of more than {MAX_MANIFEST_SIZE} bytes for {errand.subject}")
    told = answer.header("Docker-Content-Digest")
    expected = digest or (_told_digest(told, errand, host) if told else None)
    found = Digest.of(body, expected.algorithm if expected is not None else "sha256")
    if expected is not None and found != expected:
        raise FailedPreconditionError(f"{at}: unexpected digest {found}, expected {expected}")
    media_type = _content_type(answer)
    if not is_blob and media_type not in _MANIFEST_TYPES:
        media_type = _media_type_of(body, media_type, errand, host)
    return Descriptor(media_type=media_type, digest=found, size=len(body))


def _media_type_of(body: bytes, content_type: str, errand: Errand, host: Host) -> str:
    try:
        shape = decode_shape(body, what=errand.at(host.address))
    except InvalidArgumentError as error:
        told = cleaned(content_type) or "no content type"
        raise FailedPreconditionError(f"{error.text}: the registry sends {told}, not a manifest") from error
    if shape.media_type:
        return shape.media_type
    if shape.is_index:
        return media_types.OCI_INDEX
    if shape.is_manifest:
        return media_types.OCI_MANIFEST
    raise FailedPreconditionError(
        f"{errand.at(host.address)}: the registry sends {cleaned(content_type)}, not a manifest"
    )


def _told_digest(text: str, errand: Errand, host: Host) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidArgumentError as error:
        raise FailedPreconditionError(f"{errand.at(host.address)}: {error.text} in header") from error


def _content_type(answer: Answer) -> str:
    return answer.header("Content-Type").partition(";")[0].strip()


def _most_telling(errors: Sequence[OrlopError]) -> OrlopError:
    """Of all hosts' errors the one that came furthest: a wrong answer, then a refusal, then absence, then silence."""
    for cls in (FailedPreconditionError, InvalidArgumentError):
        for error in errors:
            if isinstance(error, cls):
                return error
    definite = [error for error in errors if not isinstance(error, NotFoundError | UnavailableError)]
    absent = [error for error in errors if isinstance(error, NotFoundError)]
    return [*definite, *absent, *errors][0]
