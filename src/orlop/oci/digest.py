"""Digests: the names of immutable bytes, `sha256:<64 hex>`.

Source: image-spec's descriptor.md and github.com/opencontainers/go-digest.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Self

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError
from orlop.base.quoting import quote

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

HEX_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
"""The algorithms, with the length of their hexadecimal form in characters."""

_SHAPE: Final = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX: Final = re.compile(r"[a-f0-9]+")
_SHOWN_LENGTH: Final = 160


class InvalidDigestError(InvalidArgumentError):
    """A text that is no digest. `reason` is what go-digest says of it, which does not name the text."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason} {quote(text[:_SHOWN_LENGTH])}")
        self.reason = reason


class Digest(str):
    """A validated digest. It is a text, so that databases, messages and paths take it as it is.

    Make one by `parse`, `of` or `of_hash`, not by calling the class.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check a digest from outside.

        Raises:
            InvalidDigestError: the shape, the algorithm, the length or the alphabet is wrong.
        """
        if isinstance(text, cls):
            return text
        algorithm, _, encoded = text[:_SHOWN_LENGTH].partition(":")
        if not algorithm or not encoded:
            raise InvalidDigestError("invalid checksum digest format", text)
        if algorithm not in HEX_LENGTHS:
            if len(text) > _SHOWN_LENGTH or not _SHAPE.fullmatch(text):
                raise InvalidDigestError("invalid checksum digest format", text)
            raise InvalidDigestError("unsupported digest algorithm", algorithm)
        if len(text) != len(algorithm) + 1 + HEX_LENGTHS[algorithm]:
            raise InvalidDigestError("invalid checksum digest length", text)
        if not _HEX.fullmatch(encoded):
            raise InvalidDigestError("invalid checksum digest format", text)
        return cls(text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        """The digest of `data`."""
        return cls.of_hash(new_hash(algorithm, data), algorithm)

    @classmethod
    def of_hash(cls, state: "Hash", algorithm: str = "sha256") -> Self:
        """The digest of what a hash object has seen; `algorithm` must be its own."""
        return cls(f"{algorithm}:{state.hexdigest()}")

    @property
    def algorithm(self) -> str:
        """`sha256`, `sha384` or `sha512`."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """What follows the algorithm."""
        return self.partition(":")[2]

    def hasher(self) -> "Hash":
        """A new hash object of this digest's algorithm."""
        return new_hash(self.algorithm)

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest."""
        return new_hash(self.algorithm, data).hexdigest() == self.hex


EMPTY_SHA256: Final = Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""The digest of no bytes."""


class Verifier:
    """Follows bytes that should have a size and a digest, and refuses to go beyond them.

    Attributes:
        seen: bytes so far.
    """

    def __init__(self, digest: Digest, *, size: int | None = None, what: str = "") -> None:
        self._digest = digest
        self._size = size
        self._what = what or digest
        self._hash = digest.hasher()
        self.seen = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            FailedPreconditionError: there are more than expected.
        """
        self.seen += len(data)
        if self._size is not None and self.seen > self._size:
            raise FailedPreconditionError(f"{self._what}: more than the expected {self._size} bytes")
        self._hash.update(data)

    def finish(self) -> None:
        """Say that this was all.

        Raises:
            FailedPreconditionError: the size or the digest differs.
        """
        if self._size is not None and self.seen != self._size:
            raise FailedPreconditionError(f"{self._what}: unexpected size {self.seen}, expected {self._size}")
        found = Digest.of_hash(self._hash, self._digest.algorithm)
        if found != self._digest:
            raise FailedPreconditionError(f"{self._what}: unexpected digest {found}, expected {self._digest}")


def new_hash(algorithm: str = "sha256", data: bytes | Iterable[bytes] = b"") -> "Hash":
    """A hash object of one of the known algorithms; hashlib is imported here, not by everybody who names a digest.

    Raises:
        InvalidArgumentError: the algorithm is unknown.
    """
    import hashlib

    if algorithm not in HEX_LENGTHS:
        raise InvalidArgumentError(f"unsupported digest algorithm {quote(algorithm[:_SHOWN_LENGTH])}")
    if isinstance(data, bytes):
        return hashlib.new(algorithm, data, usedforsecurity=True)
    state = hashlib.new(algorithm)
    for part in data:
        state.update(part)
    return state
