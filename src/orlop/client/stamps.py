"""Timestamps between protobuf, Python and text."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

EPOCH: Final = datetime.fromtimestamp(0, UTC)


def to_datetime(stamp: "Timestamp") -> datetime:
    """An aware datetime in UTC; nanoseconds are cut to microseconds, which is all Python's type holds."""
    return datetime.fromtimestamp(stamp.seconds, UTC).replace(microsecond=stamp.nanos // 1000)


def rfc3339_nano(stamp: "Timestamp") -> str:
    """As Go prints a time: trailing zeros of the fraction are dropped; the zero time for an absent one."""
    if not stamp.seconds and not stamp.nanos:
        return "0001-01-01T00:00:00Z"
    text = datetime.fromtimestamp(stamp.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{stamp.nanos:09d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def rfc3339(moment: datetime) -> str:
    """Seconds precision, as labels such as `containerd.io/gc.expire` hold it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
