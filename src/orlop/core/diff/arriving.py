"""Unpacking while a layer arrives: its bytes go to a worker as they are written, not only when they are a blob.

Nothing tells a daemon to which end a blob is sent. So what clients of the namespace did the last time decides: whoever
unpacked what had come will do so again, with the same snapshotter. When what was unpacked in this way is not asked for,
it is not done again until somebody unpacks.

What is unpacked becomes a spare of `ahead` when there is a blob: before that nobody can ask for it, for its digest is
known to nobody. A layer that waits for its bytes takes no turn from layers that are asked for.

Belongs to one event loop.
"""

import asyncio
import os
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.base.errdefs import FailedPreconditionError, InternalError
from orlop.base.settling import settle
from orlop.core.content.arrival import Arrival
from orlop.core.diff import Applied
from orlop.core.diff.ahead import Ahead, Spare
from orlop.core.diff.stream import HEAD, is_layer
from orlop.oci.digest import Digest

MIN_SIZE: Final = 1 << 18
"""Bytes of a blob from which on it is worth a process."""
ROOM: Final = 10
"""How many times a blob's size must be free on the disk, so that what is done in vain does not fill it."""
WAITING: Final = 64
"""Layers that may wait for others; each has a file open."""
_KNOWN: Final = 4096

Unpack = Callable[[Arrival, Path], Awaitable[Applied]]
"""Unpacks what arrives, alone, into an empty directory."""

Last = Callable[[str], Path | None]
"""The directory of the snapshotter with which a namespace's layers were unpacked before this daemon began, if any."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    arrival: Arrival
    root: Path


class Arriving:
    """Args:
    ahead: gets what is unpacked.
    atonce: layers at the same time.
    """

    def __init__(self, ahead: Ahead, unpack: Unpack, last: Last, *, atonce: int) -> None:
        self._ahead = ahead
        self._unpack = unpack
        self._last = last
        self._atonce = atonce
        self._habits: OrderedDict[str, Path | None] = OrderedDict()
        self._waiting: deque[_Layer] = deque()
        self._coming: dict[_Layer, Spare] = {}
        self._running = 0
        ahead.on_reached = self._reached
        ahead.is_expected = self._is_coming
        ahead.on_unused = lambda namespace: self._learn(namespace, None)

    def begin(self, arrival: Arrival) -> None:
        """Unpack it, if its namespace's layers are unpacked and it is one as far as can be seen."""
        if arrival.size < MIN_SIZE or not self._atonce:
            return
        if arrival.namespace not in self._habits:
            self._learn(arrival.namespace, self._last(arrival.namespace))
        root = self._habits[arrival.namespace]
        if root is None or len(self._waiting) == WAITING or not arrival.open():
            return
        layer = _Layer(arrival, root)
        self._waiting.append(layer)
        arrival.blob.add_done_callback(partial(self._came, layer))
        self._go()

    def close(self) -> None:
        """Stop; what was begun is removed by `Ahead.close`, which is to come after this."""
        self._atonce = 0
        self._let_go(list(self._waiting))
        while self._coming:
            self._ahead.discard(self._coming.popitem()[1])

    def _reached(self, namespace: str, digest: str, root: Path) -> None:
        self._learn(namespace, root)
        self._let_go([layer for layer in self._waiting if _digest(layer) == digest])

    def _is_coming(self, namespace: str, within_s: float) -> bool:
        """Whether something has come for a namespace in so many seconds, of which the rest is awaited."""
        since = time.monotonic() - within_s
        return any(
            layer.arrival.namespace == namespace and layer.arrival.grown_at > since
            for layer in (*self._coming, *self._waiting)
        )

    def _let_go(self, layers: Iterable[_Layer]) -> None:
        for layer in layers:
            self._waiting.remove(layer)
            layer.arrival.close()

    def _learn(self, namespace: str, root: Path | None) -> None:
        self._habits[namespace] = root
        self._habits.move_to_end(namespace)
        if len(self._habits) > _KNOWN:
            self._habits.popitem(last=False)

    def _go(self) -> None:
        """Begin what may be begun."""
        while self._waiting and self._running < self._atonce:
            layer = self._waiting.popleft()
            digest = _digest(layer)
            if layer.arrival.blob.cancelled() or (digest is not None and self._ahead.has(digest, layer.root)):
                layer.arrival.close()
                continue
            directory = self._ahead.directory(layer.root)
            spare = Spare(directory, asyncio.create_task(self._run(layer.arrival, directory)))
            self._running += 1
            spare.task.add_done_callback(partial(self._ran, layer.arrival))
            if digest is None:
                self._coming[layer] = spare
            else:
                self._ahead.adopt(layer.arrival.namespace, digest, layer.root, spare)

    def _ran(self, arrival: Arrival, _task: "asyncio.Task[Applied]") -> None:
        arrival.close()
        self._running -= 1
        self._go()

    def _came(self, layer: _Layer, blob: "asyncio.Future[Digest]") -> None:
        """All of it is there, or nothing more will come."""
        spare = self._coming.pop(layer, None)
        if spare is None:
            if blob.cancelled() and layer in self._waiting:
                self._let_go([layer])
        elif blob.cancelled() or spare.failed:
            self._ahead.discard(spare)
        else:
            self._ahead.adopt(layer.arrival.namespace, blob.result(), layer.root, spare)

    async def _run(self, arrival: Arrival, directory: Path) -> Applied:
        try:
            if not is_layer(await arrival.read_at(0, HEAD)):
                raise FailedPreconditionError("unpack while it arrives: it is no layer")
            await settle(asyncio.to_thread(_make, directory, arrival.size))
            failpoints.reach("unpack.arriving.made")
            return await self._unpack(arrival, directory)
        except OSError as error:
            raise InternalError(f"unpack while it arrives: {error}") from error


def _digest(layer: _Layer) -> Digest | None:
    blob = layer.arrival.blob
    return blob.result() if blob.done() and not blob.cancelled() else None


def _make(directory: Path, size: int) -> None:
    found = os.statvfs(directory.parent)
    if found.f_bavail * found.f_frsize < size * ROOM:
        raise FailedPreconditionError("unpack while it arrives: there is not much room")
    directory.mkdir(0o755)
