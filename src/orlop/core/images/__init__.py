"""Images: names for content, in a namespace.

Source: containerd's core/images/image.go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Image", "Target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The descriptor that an image points to; of its fields, those that are stored."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name with a target. `created_at` and `updated_at` are nanoseconds since the epoch, UTC."""

    name: str
    target: Target = field(default_factory=Target)
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0
