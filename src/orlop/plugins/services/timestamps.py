"""Times between our rows, nanoseconds since the epoch, and protobuf."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

_SECOND: Final = 1_000_000_000


def to_timestamp(nanoseconds: int) -> Timestamp:
    """The message for a time."""
    return Timestamp(seconds=nanoseconds // _SECOND, nanos=nanoseconds % _SECOND)


def set_timestamp(stamp: Timestamp, nanoseconds: int) -> None:
    """`to_timestamp` into a message's field, which takes half the time of handing one in."""
    stamp.seconds, stamp.nanos = divmod(nanoseconds, _SECOND)


def from_timestamp(stamp: Timestamp) -> int:
    """The time of a message."""
    return stamp.seconds * _SECOND + stamp.nanos
