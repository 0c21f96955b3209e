"""Events to the daemon: one queue, in order, sent one after the other by Events/Forward, again until it is there.

While the daemon is away events wait, the oldest given up beyond `_LIMIT`; nothing in the supervisor ever waits for
them.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Final, Protocol

from google.protobuf.message import Message

from orlop.api.services.ttrpc.events.v1 import events_pb2
from orlop.ttrpc.aio import Client
from orlop.ttrpc.errors import DEADLINE_EXCEEDED, UNAVAILABLE, TtrpcError

_log = logging.getLogger(__name__)

CREATE: Final = "/tasks/create"
START: Final = "/tasks/start"
OOM: Final = "/tasks/oom"
EXIT: Final = "/tasks/exit"
DELETE: Final = "/tasks/delete"
EXEC_ADDED: Final = "/tasks/exec-added"
EXEC_STARTED: Final = "/tasks/exec-started"
PAUSED: Final = "/tasks/paused"
RESUMED: Final = "/tasks/resumed"
CHECKPOINTED: Final = "/tasks/checkpointed"

_SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
_LIMIT: Final = 4096
_CALL_LIMIT_S: Final = 5.0
_RETRY_FIRST_S: Final = 0.1
_RETRY_MOST_S: Final = 5.0


class Forwarder(Protocol):
    """What sends one serialized ForwardRequest. Raises TtrpcError when it was not taken."""

    async def forward(self, request: bytes) -> None: ...

    async def close(self) -> None: ...


class Publisher:
    """Queues the events of one namespace and sends them.

    Args:
        forwarder: sends; None when the daemon has named no address for events, which are then dropped.
    """

    def __init__(self, namespace: str, forwarder: Forwarder | None) -> None:
        self._namespace = namespace
        self._forwarder = forwarder
        self._queue: deque[bytes] = deque()
        self._lost = 0
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def publish(self, topic: str, event: Message) -> None:
        """Queue `event`, dated now."""
        if self._forwarder is None:
            return
        request = events_pb2.ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.FromNanoseconds(time.time_ns())
        envelope.namespace = self._namespace
        envelope.topic = topic
        # typeurl's form: the bare name, without a host.
        envelope.event.type_url = event.DESCRIPTOR.full_name
        envelope.event.value = event.SerializeToString()
        if len(self._queue) >= _LIMIT:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(request.SerializeToString())
        self._some.set()
        self._none.clear()

    async def run(self) -> None:
        """Send for ever."""
        if self._forwarder is None:
            return
        pause = _RETRY_FIRST_S
        while True:
            await self._some.wait()
            request = self._queue[0]
            try:
                async with asyncio.timeout(_CALL_LIMIT_S):
                    await self._forwarder.forward(request)
                pause = _RETRY_FIRST_S
            except (TimeoutError, OSError, TtrpcError) as error:
                if not isinstance(error, TtrpcError) or error.code in (UNAVAILABLE, DEADLINE_EXCEEDED):
                    _log.debug("event not sent, daemon away: %s", error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _RETRY_MOST_S)
                    continue
                _log.warning("event refused by the daemon: %s", error)
            except Exception:
                # A defect here must not keep all later events from being told.
                _log.exception("event cannot be sent")
            self._sent(request)

    async def flush(self, limit_s: float) -> None:
        """Wait until all is sent, at most `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._none.wait()
        except TimeoutError:
            _log.warning("%d events were not sent", len(self._queue))

    async def close(self) -> None:
        if self._forwarder is not None:
            await self._forwarder.close()

    def _sent(self, request: bytes) -> None:
        if self._lost:
            _log.error("%d events were given up while the daemon was away", self._lost)
            self._lost = 0
        if self._queue and self._queue[0] is request:
            self._queue.popleft()
        if not self._queue:
            self._some.clear()
            self._none.set()


class TtrpcForwarder:
    """Sends to the daemon's ttrpc socket, over one connection that is made anew after a failure."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._client: Client | None = None

    async def forward(self, request: bytes) -> None:
        if self._client is None:
            self._client = await Client.connect(self._path)
        try:
            await self._client.call(_SERVICE, "Forward", request, timeout_s=_CALL_LIMIT_S)
        except TtrpcError as error:
            if error.code in (UNAVAILABLE, DEADLINE_EXCEEDED):
                await self.close()
            raise

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
