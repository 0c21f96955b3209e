"""What pull, push, import and unpack tell their caller while they work."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.oci.image import Descriptor


class Status(StrEnum):
    """What is happening to a thing; the words that `dist pull` shows."""

    RESOLVING = "resolving"
    RESOLVED = "resolved"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    UPLOADING = "uploading"
    COMMITTING = "committing"
    EXISTS = "exists"
    DONE = "done"
    UNPACKING = "unpacking"
    UNPACKED = "unpacked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of an operation.

    Attributes:
        ref: which thing: the image's name, `layer-sha256:…`, `manifest-sha256:…`, `config-sha256:…`, `index-sha256:…`.
        offset: bytes done.
        total: bytes in all, 0 where unknown.
        parents: refs of the things that it was found in.
        descriptor: of the thing, where it has one.
    """

    ref: str
    status: Status
    offset: int = 0
    total: int = 0
    parents: tuple[str, ...] = ()
    descriptor: "Descriptor | None" = None


Callback = Callable[[Progress], None]


def ignore(_progress: Progress) -> None:
    """A callback for those who do not look."""
