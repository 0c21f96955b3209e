"""grpc.health.v1: whether the daemon serves. Its messages are one field each, so they are written here.

Source: grpc/health/v1/health.proto; `grpcio-health-checking` brings generated code that needs grpc at import.
"""

from collections.abc import AsyncIterator
from typing import Final

from orlop.base.errdefs import NotFoundError
from orlop.base.rpc import Call, Method, Service
from orlop.core.kinds import GRPC
from orlop.core.plugin import Context, Registration

NAME: Final = "grpc.health.v1.Health"
SERVING: Final = b"\x08\x01"


class _Encoded:
    """A message that is already encoded."""

    def SerializeToString(self) -> bytes:  # noqa: N802 -- protobuf's name, which doors call
        return SERVING


class Health:
    """The daemon itself, under the empty name, and this service are serving; of others nothing is said.

    Raises NotFoundError for another name, as containerd's health server does, which sets only the empty one.
    """

    def __init__(self, known: frozenset[str]) -> None:
        self._known = known

    def check(self, _call: Call, service: str) -> _Encoded:
        if service and service not in self._known:
            raise NotFoundError(f"service {service}")
        return _Encoded()

    async def watch(self, call: Call, service: str) -> AsyncIterator[_Encoded]:
        """One answer; the daemon's end ends the stream."""
        yield self.check(call, service)


def _service_name(payload: bytes) -> str:
    """Field 1, a string, of HealthCheckRequest."""
    from google.protobuf.wrappers_pb2 import StringValue

    return StringValue.FromString(payload).value


def _init(_context: Context) -> Service:
    health = Health(frozenset({NAME}))
    return Service(
        name=NAME,
        methods={
            name: Method(
                name=f"/{NAME}/{name}",
                client_streaming=False,
                server_streaming=streaming,
                decode=_service_name,
                handler=handler,
            )
            for name, streaming, handler in (("Check", False, health.check), ("Watch", True, health.watch))
        },
    )


REGISTRATION: Final = Registration(kind=GRPC, id="healthcheck", init=_init)
