"""Namespaces as callers name them: where the name comes from and what makes it valid.

Source: containerd's pkg/namespaces.
"""

from collections.abc import Mapping
from typing import Final

from orlop.base import identifiers
from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError

DEFAULT: Final = "default"
"""The namespace of clients that say nothing; the server has no default."""

ENVIRONMENT_VARIABLE: Final = "CONTAINERD_NAMESPACE"

HEADER: Final = "containerd-namespace"
"""Name in gRPC and ttrpc metadata."""


def validate(name: str) -> str:
    """Return `name` if it can name a namespace.

    Raises:
        InvalidArgumentError: it is no identifier.
    """
    try:
        return identifiers.validate(name)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"namespace validation: {error.text}") from None


def require(name: str | None) -> str:
    """Return the validated namespace of a request.

    Raises:
        FailedPreconditionError: the request names none.
        InvalidArgumentError: it is no identifier.
    """
    if not name:
        raise FailedPreconditionError("namespace is required")
    return validate(name)


def from_environment(environment: Mapping[str, str]) -> str:
    """The namespace that a client uses when it is not told one; not validated."""
    return environment.get(ENVIRONMENT_VARIABLE) or DEFAULT
