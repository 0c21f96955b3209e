"""The errors of orlop: one tree along gRPC's codes.

    OrlopError                      code                 suffix of str()
    ├── CanceledError               1  CANCELLED         context canceled
    ├── UnknownError                2  UNKNOWN           unknown
    ├── InvalidArgumentError        3  INVALID_ARGUMENT  invalid argument
    ├── DeadlineExceededError       4  DEADLINE_EXCEEDED context deadline exceeded
    ├── NotFoundError               5  NOT_FOUND         not found
    ├── AlreadyExistsError          6  ALREADY_EXISTS    already exists
    ├── PermissionDeniedError       7  PERMISSION_DENIED permission denied
    ├── ResourceExhaustedError      8  RESOURCE_EXHAUSTED resource exhausted
    ├── FailedPreconditionError     9  FAILED_PRECONDITION failed precondition
    ├── AbortedError               10  ABORTED           aborted
    ├── OutOfRangeError            11  OUT_OF_RANGE      out of range
    ├── UnimplementedError         12  UNIMPLEMENTED     not implemented
    ├── InternalError              13  INTERNAL          internal
    ├── UnavailableError           14  UNAVAILABLE       unavailable
    ├── DataLossError              15  DATA_LOSS         data loss
    └── UnauthenticatedError       16  UNAUTHENTICATED   unauthenticated

The class tells the caller what to do; the text names the object and the reason, in lower case, without the suffix:
`raise NotFoundError('container "web"')` has `str()` `container "web": not found`. Go clients of containerd recognise an
error by its code and strip just that suffix (github.com/containerd/errdefs).
"""

from typing import ClassVar, Final


class OrlopError(Exception):
    """Base of all errors that cross an API of orlop.

    Args:
        text: which object, which phase and why; without the class's suffix.
        hint: what the user can do about it, when there is something to do.
    """

    code: ClassVar[int] = 2
    suffix: ClassVar[str] = "unknown"

    def __init__(self, text: str = "", *, hint: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint

    def __str__(self) -> str:
        if not self.text:
            return self.suffix
        if self.text == self.suffix or self.text.endswith(f": {self.suffix}"):
            return self.text
        return f"{self.text}: {self.suffix}"


class CanceledError(OrlopError):
    """The caller gave up; nothing is wrong with the request."""

    code = 1
    suffix = "context canceled"


class UnknownError(OrlopError):
    """A failure of which no more is known; also what a peer's code 2 becomes. The text stands alone."""

    def __str__(self) -> str:
        return self.text or self.suffix


class InvalidArgumentError(OrlopError):
    """The request can never succeed as it is."""

    code = 3
    suffix = "invalid argument"


class DeadlineExceededError(OrlopError):
    """The caller's deadline passed; the text names the phase that took the time."""

    code = 4
    suffix = "context deadline exceeded"


class NotFoundError(OrlopError):
    """The named object does not exist in this namespace."""

    code = 5
    suffix = "not found"


class AlreadyExistsError(OrlopError):
    """An object of that name is there already."""

    code = 6
    suffix = "already exists"


class PermissionDeniedError(OrlopError):
    """The caller, or a credential it gave, may not do this."""

    code = 7
    suffix = "permission denied"


class ResourceExhaustedError(OrlopError):
    """A disk, quota or bound is full."""

    code = 8
    suffix = "resource exhausted"


class FailedPreconditionError(OrlopError):
    """The object's state forbids it; change the state first."""

    code = 9
    suffix = "failed precondition"


class AbortedError(OrlopError):
    """Lost against a concurrent operation; trying again may succeed."""

    code = 10
    suffix = "aborted"


class OutOfRangeError(OrlopError):
    """An offset beyond the end."""

    code = 11
    suffix = "out of range"


class UnimplementedError(OrlopError):
    """This server does not do that."""

    code = 12
    suffix = "not implemented"


class InternalError(OrlopError):
    """A defect or a broken system underneath; logged with its traceback where it arose."""

    code = 13
    suffix = "internal"

    def __str__(self) -> str:
        return self.text or self.suffix


class UnavailableError(OrlopError):
    """The other side is gone or not ready; trying again later may succeed."""

    code = 14
    suffix = "unavailable"


class DataLossError(OrlopError):
    """Bytes on disk or on the wire are not what they must be."""

    code = 15
    suffix = "data loss"


class UnauthenticatedError(OrlopError):
    """No or wrong credentials."""

    code = 16
    suffix = "unauthenticated"


CLASS_OF_CODE: Final[dict[int, type[OrlopError]]] = {
    cls.code: cls
    for cls in (
        CanceledError,
        UnknownError,
        InvalidArgumentError,
        DeadlineExceededError,
        NotFoundError,
        AlreadyExistsError,
        PermissionDeniedError,
        ResourceExhaustedError,
        FailedPreconditionError,
        AbortedError,
        OutOfRangeError,
        UnimplementedError,
        InternalError,
        UnavailableError,
        DataLossError,
        UnauthenticatedError,
    )
}


def to_status(error: BaseException) -> tuple[int, str]:
    """The gRPC code and message of `error`, for the doors; an unknown class is INTERNAL."""
    if isinstance(error, OrlopError):
        return error.code, str(error)
    if isinstance(error, TimeoutError):
        return DeadlineExceededError.code, str(error) or DeadlineExceededError.suffix
    return InternalError.code, f"{type(error).__name__}: {error}"


def from_status(code: int, message: str) -> OrlopError:
    """The error that a peer's status stands for; `str()` gives the peer's message back."""
    cls = CLASS_OF_CODE.get(code, UnknownError)
    text = message
    for ending in (f": {cls.suffix}", cls.suffix):
        if text.endswith(ending):
            text = text[: -len(ending)]
            break
    error = cls(text)
    return error if str(error) == message else _verbatim(cls)(message)


def _verbatim(cls: type[OrlopError]) -> type[OrlopError]:
    """A subclass of `cls` whose text is a foreign peer's and so has no suffix added."""
    found = _VERBATIM.get(cls)
    if found is None:
        found = type(cls.__name__, (cls,), {"__str__": lambda self: str(self.text), "__module__": cls.__module__})
        _VERBATIM[cls] = found
    return found


_VERBATIM: dict[type[OrlopError], type[OrlopError]] = {}
