"""Everything that a peer could want too much of, in one place, and a budget that refills."""

import time
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server's connections; sizes in bytes. A peer that breaks one is told ENHANCE_YOUR_CALM or a status.

    Attributes:
        max_receive: largest message taken; max_send the largest that is sent.
        streams: open at once on a connection, and handlers running for it, those of cancelled streams included.
        header_list: size of a request's header fields by HPACK's count; also what their encoded form may have.
        continuations: frames that a header block may come in beside the first.
        stream_window: what a peer may send on a stream before it is read; connection_window on all together, 65,535 at
            least.
        stream_backlog: whole messages that may wait for a streaming handler before its window stays shut.
        inbound: messages, whole or not, that may lie in memory for a connection; who goes beyond loses its call.
        outbound: answers that may wait for a connection's windows; beyond, new calls are refused.
        control_burst, control_rate: pings, settings, windows, empty and stray frames at once, and each second. An
            answer gives the burst back, and a new call some of it: clients that measure the line send a ping for each
            answer, and some widen a window for each call.
        reset_burst, reset_rate: streams that a peer may open and reset before they are answered.
        preface_timeout_s: how long a new connection may stay silent.
    """

    max_receive: int = 16 << 20
    max_send: int = 16 << 20
    streams: int = 10_000
    header_list: int = 32 << 10
    continuations: int = 32
    stream_window: int = 4 << 20
    connection_window: int = 16 << 20
    stream_backlog: int = 4 << 20
    inbound: int = 256 << 20
    outbound: int = 256 << 20
    control_burst: int = 2_000
    control_rate: float = 200.0
    reset_burst: int = 4_000
    reset_rate: float = 200.0
    preface_timeout_s: float = 20.0


DEFAULT: Final = Limits()


class Budget:
    """A number of things that may happen at once, refilled at a rate."""

    __slots__ = ("_burst", "_left", "_rate", "_since")

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._since = time.monotonic()

    def take(self, count: int = 1) -> bool:
        """Use some up; False if so many are not left."""
        if self._left < count:
            now = time.monotonic()
            self._left = min(float(self._burst), self._left + (now - self._since) * self._rate)
            self._since = now
            if self._left < count:
                return False
        self._left -= count
        return True

    def give(self, count: int) -> None:
        """Add to what is left; never more than the burst."""
        self._left = min(float(self._burst), self._left + count)
