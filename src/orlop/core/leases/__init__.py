"""Leases: a caller's hold on things while nothing else refers to them.

Source: containerd's core/leases/lease.go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Lease", "Resource", "unique_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease; it ends when it is deleted or its label `containerd.io/gc.expire` (RFC 3339) is past.

    `created_at` is in nanoseconds since the epoch, UTC.
    """

    id: str
    created_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a lease can hold: `content` by digest, `ingests` by ref, `images` by name, `snapshots/<name>` by key."""

    type: str
    id: str


def unique_id() -> str:
    """An id that no one else has: the clock's nanoseconds and four random characters, as containerd's own are."""
    import base64
    import os
    import time

    suffix = base64.urlsafe_b64encode(os.urandom(3)).decode("ascii").replace("_", "-")
    return f"{time.time_ns() % 10**9}-{suffix}"
