"""Answers of registries that are no success: which error, in whose words.

The registry's own error body (`errors[].code`, `.message`) is quoted, bounded and cleaned of control characters, for it
is a stranger's text on its way to somebody's terminal. URLs are shown without user, query and fragment: signed download
addresses carry secrets there.

Source: distribution-spec's "Error Codes".
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
)

MAX_ERROR_BODY: Final = 64 << 10
"""Bytes of an error's body that are read."""

RETRIED_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Answers after which asking again may help."""

_MAX_QUOTED: Final = 300
_MAX_ERRORS: Final = 5

_CLASS_OF_STATUS: Final[dict[int, type[OrlopError]]] = {
    400: InvalidArgumentError,
    401: UnauthenticatedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: UnimplementedError,
    406: FailedPreconditionError,
    408: UnavailableError,
    409: FailedPreconditionError,
    410: NotFoundError,
    412: FailedPreconditionError,
    413: ResourceExhaustedError,
    415: InvalidArgumentError,
    416: OutOfRangeError,
    429: UnavailableError,
    451: PermissionDeniedError,
    507: ResourceExhaustedError,
}

_HINTS: Final = {
    401: "log in, or give --user",
    403: "the account may lack the right to this repository",
    429: "the registry limits requests; log in or wait",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What a request is for, as errors tell it.

    Attributes:
        phase: resolve, fetch, push or token.
        subject: the reference or digest.
        repository: its name on the registry.
    """

    phase: str
    subject: str
    repository: str

    def at(self, address: str) -> str:
        """The beginning of an error's text."""
        return f"{self.phase} {self.subject}: registry {address}, repository {self.repository}"


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Body(msgspec.Struct):
    errors: list[_Error] | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")
    error_description: str | None = None
    details: str | None = None
    message: str | None = None


def status_error(errand: Errand, address: str, status: int, body: bytes = b"") -> OrlopError:
    """The error for an HTTP status, with the registry's reason if it gave one."""
    cls = _CLASS_OF_STATUS.get(status)
    if cls is None:
        cls = UnavailableError if status >= 500 else UnknownError
    text = f"{errand.at(address)}: {status_line(status)}"
    reason = quoted_reason(body)
    if reason:
        text = f"{text}: {reason}"
    return cls(text, hint=_HINTS.get(status))


def status_line(status: int) -> str:
    """`404 Not Found`."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def quoted_reason(body: bytes) -> str:
    """What an error's body says: the spec's errors, a token server's error, or its first line if it is plain text."""
    if not body:
        return ""
    try:
        parsed = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _plain_reason(body)
    told = [_one_error(error) for error in (parsed.errors or [])[:_MAX_ERRORS]]
    if told:
        return "; ".join(filter(None, told))
    named = _text(parsed.error)
    described = parsed.error_description or parsed.details or parsed.message or ""
    return cleaned(": ".join(filter(None, (named, described))))


def _one_error(error: _Error) -> str:
    message, code = cleaned(error.message), cleaned(error.code)
    if message and code:
        return f"{message} ({code})"
    return message or code


def _text(raw: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _plain_reason(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    if text.startswith(("<", "{", "[")):
        return ""  # a page for browsers, or JSON of no known shape
    return cleaned(text.partition("\n")[0])


def cleaned(text: str) -> str:
    """A stranger's text, made fit for one line of a terminal."""
    shown = "".join(character if character.isprintable() else " " for character in text[:_MAX_QUOTED])
    return shown.strip() + ("…" if len(text) > _MAX_QUOTED else "")


def shown_url(url: str) -> str:
    """A URL without what may be secret in it."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", url[:2000], maxsplit=1)[0])
