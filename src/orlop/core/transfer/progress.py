"""What pull, push, import and unpack tell their caller while they work."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

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


MOST_PARENTS: Final = 64
"""Of what a thing was found in; a layer may be in each of very many manifests."""

Callback = Callable[[Progress], None]


def found_in(parents: dict[str, tuple[str, ...]], child: str, parent: str) -> None:
    """Note what a thing was found in, each once."""
    known = parents.get(child, ())
    if parent not in known and len(known) < MOST_PARENTS:
        parents[child] = (*known, parent)


def ignore(_progress: Progress) -> None:
    """A callback for those who do not look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What the transfer service tells its caller, in containerd's words.

    Attributes:
        event: `waiting`, `downloading`, `uploading`, `complete`, `already exists`, `extracting`, `extracted` or `saved`
            of a thing; without a name a sentence about the whole.
        progress, total: bytes.
        parents: names of the things that it was found in.

    Source: Progress in containerd's core/transfer/transfer.go; core/transfer/local/progress.go.
    """

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: "Descriptor | None" = None


Listener = Callable[[Event], None]

MOVING: Final = frozenset({"downloading", "uploading", "extracting"})
"""Events of which only the newest of a thing counts."""

_WORDS: Final = {
    Status.WAITING: "waiting",
    Status.DOWNLOADING: "downloading",
    Status.UPLOADING: "uploading",
    Status.EXISTS: "already exists",
    Status.DONE: "complete",
    Status.UNPACKING: "extracting",
    Status.UNPACKED: "extracted",
}
_STATUSES: Final = {word: status for status, word in _WORDS.items()}


class Tracker:
    """Steps of an operation as events: a thing waits once, and is complete or was there, not both."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._seen: dict[str, Status] = {}

    def __call__(self, step: Progress) -> None:
        word = _WORDS.get(step.status)
        last = self._seen.get(step.ref)
        if word is None or (step.status is Status.WAITING and last is not None):
            return
        if step.status is Status.DONE and last is Status.EXISTS:
            return
        self._seen[step.ref] = step.status
        if word in MOVING and not step.offset:
            return
        self._listener(
            Event(
                event=word,
                name=step.ref,
                parents=() if step.status is Status.EXISTS else step.parents,
                progress=step.offset,
                total=step.total,
                descriptor=step.descriptor,
            )
        )


def step_of(event: Event) -> Progress | None:
    """The step that an event tells of, or None for a sentence or a word that we do not know."""
    status = _STATUSES.get(event.event, Status.DONE if event.event == "saved" else None)
    if status is None or not event.name:
        return None
    return Progress(
        ref=event.name,
        status=status,
        offset=event.progress,
        total=event.total,
        parents=event.parents,
        descriptor=event.descriptor,
    )
