"""Counts of the calls that came through the doors, under the names that gRPC's Prometheus interceptors have.

Handlers are wrapped only where somebody will look: without a metrics address no call pays for it.
"""

import dataclasses
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any, Final

from orlop.base.errdefs import to_status
from orlop.base.rpc import Call, Method, Service

# Go's names of the codes, by number.
CODES: Final = (
    *("OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists"),
    *("PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented"),
    *("Internal", "Unavailable", "DataLoss", "Unauthenticated"),
)
# Upper bounds in seconds: the default buckets of Prometheus's clients.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Key = tuple[str, str, str]  # service, method, kind of stream


class Calls:
    """What was counted since the start. Used on the event loop alone."""

    def __init__(self, *, histogram: bool = False) -> None:
        self.histogram = histogram
        self.started: Counter[Key] = Counter()
        self.handled: Counter[tuple[Key, str]] = Counter()
        self.received: Counter[Key] = Counter()
        self.sent: Counter[Key] = Counter()
        self.seconds: dict[Key, list[float]] = {}

    def ended(self, key: Key, began: float, error: BaseException | None = None) -> None:
        code = to_status(error)[0] if error is not None else 0
        self.handled[key, CODES[code] if code < len(CODES) else "Unknown"] += 1
        if self.histogram:
            row = self.seconds.setdefault(key, [0.0] * (len(BUCKETS) + 2))
            spent = time.monotonic() - began
            row[-1] += spent
            for number, bound in enumerate((*BUCKETS, float("inf"))):
                if spent <= bound:
                    row[number] += 1
                    break


def counted(services: Iterable[Service], calls: Calls) -> list[Service]:
    """The same services, each call of which is counted."""
    return [
        dataclasses.replace(
            service, methods={name: _counting(method, _key(method), calls) for name, method in service.methods.items()}
        )
        for service in services
    ]


def _key(method: Method) -> Key:
    service, _, name = method.name.strip("/").partition("/")
    kinds = {
        (False, False): "unary",
        (True, False): "client_stream",
        (False, True): "server_stream",
        (True, True): "bidi_stream",
    }
    return service, name, kinds[method.client_streaming, method.server_streaming]


def _counting(method: Method, key: Key, calls: Calls) -> Method:
    handler = method.handler

    def handle(call: Call, request: Any) -> Any:
        began = time.monotonic()
        calls.started[key] += 1
        if method.client_streaming:
            request = _received(request, key, calls)
        else:
            calls.received[key] += 1
        try:
            answer = handler(call, request)
        except BaseException as error:
            calls.ended(key, began, error)
            raise
        if method.server_streaming:
            return _stream(answer, key, calls, began)
        if inspect.isawaitable(answer):
            return _later(answer, key, calls, began)
        calls.sent[key] += 1
        calls.ended(key, began)
        return answer

    return dataclasses.replace(method, handler=handle)


async def _later(answer: Awaitable[Any], key: Key, calls: Calls, began: float) -> Any:
    try:
        value = await answer
    except BaseException as error:
        calls.ended(key, began, error)
        raise
    calls.sent[key] += 1
    calls.ended(key, began)
    return value


async def _stream(answers: Any, key: Key, calls: Calls, began: float) -> AsyncIterator[Any]:
    try:
        async for answer in answers:
            calls.sent[key] += 1
            yield answer
    except BaseException as error:
        calls.ended(key, began, error)
        raise
    else:
        calls.ended(key, began)
    finally:
        await answers.aclose()


async def _received(requests: AsyncIterator[Any], key: Key, calls: Calls) -> AsyncIterator[Any]:
    async for request in requests:
        calls.received[key] += 1
        yield request
