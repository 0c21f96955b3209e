"""Names of containers, namespaces, leases, execs and the like: safe as one component of a path.

Source: containerd's pkg/identifiers/validate.go.
"""

import re
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.quoting import quote

MAX_LENGTH: Final = 76
"""Longest identifier in bytes."""

PATTERN: Final = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
"""What error texts show; in Go's regexps `$` is the very end of the text."""

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def validate(identifier: str) -> str:
    """Return `identifier` if it is one.

    Raises:
        InvalidArgumentError: it is empty, longer than 76 bytes, or has characters other than letters and digits
            with single `.`, `_` or `-` between them.
    """
    if not identifier:
        raise InvalidArgumentError("identifier must not be empty")
    # The length comes first: the text is not to be handed to the expression, nor wholly quoted, before.
    if len(identifier.encode("utf-8", "surrogateescape")) > MAX_LENGTH:
        shown = quote(identifier[: 4 * MAX_LENGTH])
        raise InvalidArgumentError(f"identifier {shown} greater than maximum length ({MAX_LENGTH} characters)")
    if not _IDENTIFIER.fullmatch(identifier):
        raise InvalidArgumentError(f"identifier {quote(identifier)} must match {PATTERN}")
    return identifier
