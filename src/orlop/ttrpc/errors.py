"""What a ttrpc call ends with when it does not end with an answer: a status, raised as `TtrpcError`.

The numbers are gRPC's (https://grpc.github.io/grpc/core/md_doc_statuscodes.html); ttrpc carries a `google.rpc.Status`.
Callers with an error tree of their own map `TtrpcError.code` and `.message` to it; nothing here knows that tree.
"""

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

# Go's words for an ended context; its clients and containerd's compare texts now and then.
TEXT_CANCELLED = "context canceled"
TEXT_DEADLINE = "context deadline exceeded"


class Status:
    """A status as it crosses the wire.

    Attributes:
        code: gRPC's number, 0 for success; numbers that gRPC does not define pass through.
        message: the peer's text, as it was sent.
        details: each a serialized `google.protobuf.Any`, undecoded.
    """

    __slots__ = ("code", "details", "message")

    def __init__(self, code: int, message: str = "", details: tuple[bytes, ...] = ()) -> None:
        self.code = code
        self.message = message
        self.details = details

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Status):
            return NotImplemented
        return (self.code, self.message, self.details) == (other.code, other.message, other.details)

    def __hash__(self) -> int:
        return hash((self.code, self.message, self.details))

    def __repr__(self) -> str:
        return f"Status({self.code}, {self.message!r})"


class TtrpcError(Exception):
    """A call failed: the peer said so, or the connection or the deadline ended it.

    Raised by a handler it is the answer that the peer gets; raised by a client `code` is what the peer or this side
    decided (UNAVAILABLE when the connection is lost, DEADLINE_EXCEEDED, CANCELLED, RESOURCE_EXHAUSTED for a message
    beyond the limit).
    """

    def __init__(self, code: int, message: str, details: tuple[bytes, ...] = ()) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def status(self) -> Status:
        """The same as a value."""
        return Status(self.code, self.message, self.details)

    def copy(self) -> "TtrpcError":
        """The same once more: one instance raised to several callers would mix their tracebacks."""
        return TtrpcError(self.code, self.message, self.details)

    def __str__(self) -> str:
        return self.message or f"status {self.code}"
