"""References to images: `docker.io/library/redis:latest` and what people write for it.

Two grammars meet here. `Spec` is containerd's: a locator (host and path) and an object (a tag, `@` and a digest, or
both), with few rules; it is what names images in the API. `Named` is Docker's, for what people write: `redis`,
`user/app:1`; it is strict, and `normalize()` completes such a name to one that a Spec reads.

Sources: containerd's pkg/reference/reference.go; distribution/reference's regexp.go and normalize.go.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.quoting import quote

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

_LEGACY_DEFAULT_DOMAIN: Final = "index.docker.io"
_OFFICIAL_PREFIX: Final = "library/"
_MAX_NAME_LENGTH: Final = 255
_SHOWN_LENGTH: Final = 300

_DOMAIN_COMPONENT: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN_NAME: Final = rf"{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*"
_DOMAIN: Final = rf"(?:{_DOMAIN_NAME}|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
_PATH_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_PATH: Final = rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*"
_TAG: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST: Final = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE: Final = re.compile(rf"(?:({_DOMAIN})/)?({_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?")
_TAG_RE: Final = re.compile(_TAG)
_BARE_DIGEST: Final = re.compile(r"[a-f0-9]{64}")
_DIGEST_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Spec:
    """A reference as containerd's API has it.

    Attributes:
        locator: host and path.
        object: a tag, `@digest`, `tag@digest`, or empty. The digest may be short or wrong; see `digest`.
    """

    locator: str
    object: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference.

        Raises:
            InvalidArgumentError: no host, a scheme, a path that climbs, or bytes that no URL has.
        """
        if "://" in text:
            raise InvalidArgumentError(f"invalid reference {_shown(text)}: a scheme is not allowed")
        host, path = _split_url(text)
        if not host:
            raise InvalidArgumentError(f"invalid reference {_shown(text)}: hostname required")
        name, separator, object_ = _split_object(path)
        if ".." in name.split("/"):
            raise InvalidArgumentError(f'invalid reference {_shown(text)}: ".." in the path')
        return cls(_join(host, name), object_ if separator == ":" else separator + object_)

    @property
    def hostname(self) -> str:
        """The part of the locator before its first slash, with the port if there is one."""
        return self.locator.partition("/")[0]

    @property
    def repository(self) -> str:
        """The part of the locator after the host; empty if there is none."""
        return self.locator.partition("/")[2]

    @property
    def digest(self) -> str:
        """What follows `@` in the object, not checked; empty without one."""
        return self.object.partition("@")[2]

    @property
    def tag(self) -> str:
        """What comes before `@` in the object; empty for a reference by digest alone."""
        return self.object.partition("@")[0]

    def __str__(self) -> str:
        if not self.object:
            return self.locator
        return self.locator + self.object if self.object.startswith("@") else f"{self.locator}:{self.object}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A reference in Docker's grammar with all its parts.

    Attributes:
        domain: registry host, with port; `docker.io` if none was written.
        path: repository.
        tag, digest: None where absent.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a familiar or full name; what is missing is completed, except the tag.

        Raises:
            InvalidArgumentError: it is not a reference; the text says how it fails.
        """
        if _BARE_DIGEST.fullmatch(text):
            raise InvalidArgumentError(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
        domain, remainder = _split_domain(text)
        repository = remainder.partition(":")[0]
        if repository.lower() != repository:
            raise InvalidArgumentError(
                f"invalid reference format: repository name ({repository[:_SHOWN_LENGTH]}) must be lowercase"
            )
        match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
        if match is None or match[1] is None:
            raise InvalidArgumentError(f"invalid reference format: {_shown(text)}")
        if len(match[1]) + 1 + len(match[2]) > _MAX_NAME_LENGTH:
            raise InvalidArgumentError(f"repository name must not be more than {_MAX_NAME_LENGTH} characters")
        _check_digest(match[4])
        return cls(domain=match[1], path=match[2], tag=match[3], digest=match[4])

    @property
    def name(self) -> str:
        """Domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The short form that Docker shows: `redis:7` for `docker.io/library/redis:7`."""
        if self.domain != DEFAULT_DOMAIN:
            return str(self)
        path = self.path
        if path.startswith(_OFFICIAL_PREFIX) and "/" not in path.removeprefix(_OFFICIAL_PREFIX):
            path = path.removeprefix(_OFFICIAL_PREFIX)
        return path + self._suffix()

    def with_default_tag(self) -> Self:
        """The same with `latest` if it has neither tag nor digest."""
        return replace(self, tag=DEFAULT_TAG) if self.tag is None and self.digest is None else self

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{tag}@{self.digest}" if self.digest is not None else tag

    def __str__(self) -> str:
        return self.name + self._suffix()


def normalize(text: str) -> str:
    """The full name of what people write: `redis` gives `docker.io/library/redis:latest`.

    With both tag and digest the tag is dropped, because the digest alone decides (ParseDockerRef of
    distribution/reference).

    Raises:
        InvalidArgumentError: it is not a reference.
    """
    named = Named.parse(text)
    if named.digest is not None:
        named = replace(named, tag=None)
    return str(named.with_default_tag())


def is_tag(text: str) -> bool:
    """Whether `text` can be a tag."""
    return _TAG_RE.fullmatch(text) is not None


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, _OFFICIAL_PREFIX + name
    if first == _LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    elif first == "localhost" or "." in first or ":" in first or first.lower() != first:
        domain = first
    else:
        domain, rest = DEFAULT_DOMAIN, name
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL_PREFIX + rest
    return domain, rest


def _check_digest(digest: str | None) -> None:
    if digest is None:
        return
    algorithm, _, encoded = digest.partition(":")
    if algorithm not in _DIGEST_LENGTHS:
        raise InvalidArgumentError(f"unsupported digest algorithm {quote(algorithm)} in reference")
    if len(encoded) != _DIGEST_LENGTHS[algorithm]:
        raise InvalidArgumentError(f"invalid checksum digest length in reference: {digest[:_SHOWN_LENGTH]}")
    if encoded != encoded.lower():
        raise InvalidArgumentError(f"invalid checksum digest format in reference: {digest}")


def _split_object(path: str) -> tuple[str, str, str]:
    match = re.search(r"[:@]", path)
    if match is None:
        return path, ":", ""
    return path[: match.start()], match[0], path[match.end() :]


_HOST_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9\-_.~!$&'()*+,;=:\[\]<>\"\x80-\U0010ffff%]")
_USERINFO: Final = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9a-fA-F]{2})")


def _split_url(text: str) -> tuple[str, str]:
    """Host and path as Go's net/url sees them in `dummy://<text>`: fragment, query and user are dropped."""
    if any(character < " " or character == "\x7f" for character in text):
        raise InvalidArgumentError(f"invalid reference {_shown(text)}: invalid control character")
    text_before = text.partition("#")[0].partition("?")[0]
    authority, slash, path = text_before.partition("/")
    user, at, host = authority.rpartition("@")
    if at and not _USERINFO.fullmatch(user):
        raise InvalidArgumentError(f"invalid reference {_shown(text)}: invalid user")
    _check_host(host, text)
    if _BAD_ESCAPE.search(path):
        raise InvalidArgumentError(f"invalid reference {_shown(text)}: invalid URL escape")
    return host.replace("%25", "%"), slash + _unescaped(path)


def _unescaped(path: str) -> str:
    if "%" not in path:
        return path
    from urllib.parse import unquote

    return unquote(path)


def _check_host(host: str, text: str) -> None:
    if _HOST_FORBIDDEN.search(host) or re.search(r"%(?!25)", host):
        raise InvalidArgumentError(f"invalid reference {_shown(text)}: invalid character in host name")
    if host.startswith("["):
        inner, bracket, port = host.partition("]")
        if not bracket:
            raise InvalidArgumentError(f"invalid reference {_shown(text)}: missing ']' in host")
        if not inner[1:] or not re.fullmatch(r"[0-9a-fA-F:.]+", inner[1:]):
            raise InvalidArgumentError(f"invalid reference {_shown(text)}: invalid host")
    elif "[" in host or "]" in host:
        raise InvalidArgumentError(f"invalid reference {_shown(text)}: invalid host")
    else:
        port = host[host.rfind(":") :] if ":" in host else ""
    if port and not re.fullmatch(r":[0-9]*", port):
        raise InvalidArgumentError(f"invalid reference {_shown(text)}: invalid port {quote(port[:80])} after host")


def _join(host: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    return "/".join([host, *parts])


def _shown(text: str) -> str:
    return quote(text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "…")
